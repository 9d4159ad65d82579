// Neurons: charge, reset and their adjoints, for one time step.
//
// Evaluated as written, each operation rounded: compile with -ffp-contract=off (nvcc --fmad=false) and no fast math, or
// spikes differ from the other backends. Branch-free.
//
//   v     potential before the step          h     potential after the charge, before the reset
//   x     input current                      rest  vr0: what the leak decays to, where a sequence starts
//   rate  tau, 1/tau or the decay, as the charge wants it
#pragma once

#include "macros.h"

namespace sca {
inline namespace SCA_ISA {

// ---- leaks: d / tau
// --------------------------------------------------------------------------------------------------

struct DivideByTau {
    template <class F>
    static SCA_HOST_DEVICE F leak(F d, F tau) {
        return d / tau;
    }
    template <class F>
    static SCA_HOST_DEVICE F fraction(F tau) {
        return 1.0f / tau;
    }
};

// For a learned 1/tau, and for a tau that is a power of two: there the product is the same number as the quotient.
struct MultiplyByRate {
    template <class F>
    static SCA_HOST_DEVICE F leak(F d, F rate) {
        return d * rate;
    }
    template <class F>
    static SCA_HOST_DEVICE F fraction(F rate) {
        return rate;
    }
};

// ---- charge: h(v, x), its derivatives dh/dv and dh/dx, and dh/d(1/tau)
// -----------------------------------------------

struct IntegrateAndFire {
    template <class F>
    static SCA_HOST_DEVICE F charge(F v, F x, F, F) {
        return v + x;
    }
    template <class F>
    static SCA_HOST_DEVICE F by_v(F) {
        return F(1.0f);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_x(F) {
        return F(1.0f);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_leak(F, F, F) {
        return F(0.0f);
    }
};

// LIF and PLIF, decay_input=True.
template <class Leak>
struct Leaky {
    template <class F>
    static SCA_HOST_DEVICE F charge(F v, F x, F rest, F rate) {
        return v + Leak::leak(x - (v - rest), rate);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_v(F rate) {
        return 1.0f - Leak::fraction(rate);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_x(F rate) {
        return Leak::fraction(rate);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_leak(F v, F x, F rest) {
        return x - (v - rest);
    }
};

// LIF and PLIF, decay_input=False.
template <class Leak>
struct LeakyFullInput {
    template <class F>
    static SCA_HOST_DEVICE F charge(F v, F x, F rest, F rate) {
        return v - Leak::leak(v - rest, rate) + x;
    }
    template <class F>
    static SCA_HOST_DEVICE F by_v(F rate) {
        return 1.0f - Leak::fraction(rate);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_x(F) {
        return F(1.0f);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_leak(F v, F, F rest) {
        return rest - v;
    }
};

// LIF whose leak is the decay = 1 - 1/tau of what stays, decay_input=False.
struct Decaying {
    template <class F>
    static SCA_HOST_DEVICE F charge(F v, F x, F rest, F decay) {
        return (v - rest) * decay + rest + x;
    }
    template <class F>
    static SCA_HOST_DEVICE F by_v(F decay) {
        return decay;
    }
    template <class F>
    static SCA_HOST_DEVICE F by_x(F) {
        return F(1.0f);
    }
    template <class F>
    static SCA_HOST_DEVICE F by_leak(F, F, F) {
        return F(0.0f);
    }
};

// ---- reset: the potential after a spike, and the adjoint of fire and reset together
// ----------------------------------
//
//   fires_at  the least h that fires: the threshold, the next number above it for a neuron that fires at h > threshold,
//             NaN for one that never does
//   by        what the reset does by: the potential after a hard reset, what a soft one subtracts
//   slope     the surrogate derivative at h - threshold
//
// rest() and by() are the numbers as far as the reset knows them: constant zeros save the operations. Of dL/dh from
// dL/ds and dL/dv, by_spike is the part that comes by the spike, carried the other; of the threshold's gradient,
// -by_spike is what comes by the spike, -subtracted what a threshold that is subtracted adds.

struct HardReset {
    template <class F>
    static SCA_HOST_DEVICE F rest(F given) {
        return given;
    }
    template <class F>
    static SCA_HOST_DEVICE F by(F given) {
        return given;
    }
    template <class F>
    static SCA_HOST_DEVICE F after(F h, F fires_at, F by) {
        return select(h >= fires_at, by, h);
    }
    template <bool detach, class F>
    static SCA_HOST_DEVICE F by_spike(F g_s, F g_v, F h, F slope, F by) {
        return (detach ? g_s : g_s - g_v * (h - by)) * slope;
    }
    template <class F>
    static SCA_HOST_DEVICE F carried(F g_v, F h, F fires_at) {
        return select(h >= fires_at, F(0.0f), g_v);
    }
    template <class F>
    static SCA_HOST_DEVICE F subtracted(F, F, F) {
        return F(0.0f);
    }
};

// v_reset = v_rest = 0.
struct HardResetAtZero : HardReset {
    template <class F>
    static SCA_HOST_DEVICE F rest(F) {
        return F(0.0f);
    }
    template <class F>
    static SCA_HOST_DEVICE F by(F) {
        return F(0.0f);
    }
};

struct SoftReset {
    template <class F>
    static SCA_HOST_DEVICE F rest(F given) {
        return given;
    }
    template <class F>
    static SCA_HOST_DEVICE F by(F given) {
        return given;
    }
    template <class F>
    static SCA_HOST_DEVICE F after(F h, F fires_at, F by) {
        return select(h >= fires_at, h - by, h);
    }
    template <bool detach, class F>
    static SCA_HOST_DEVICE F by_spike(F g_s, F g_v, F, F slope, F by) {
        return (detach ? g_s : g_s - g_v * by) * slope;
    }
    template <class F>
    static SCA_HOST_DEVICE F carried(F g_v, F, F) {
        return g_v;
    }
    template <class F>
    static SCA_HOST_DEVICE F subtracted(F g_v, F h, F fires_at) {
        return select(h >= fires_at, g_v, F(0.0f));
    }
};

// v_rest = 0.
struct SoftResetAtZero : SoftReset {
    template <class F>
    static SCA_HOST_DEVICE F rest(F) {
        return F(0.0f);
    }
};

}  // namespace SCA_ISA
}  // namespace sca

// A new neuron is a struct above and a row here, row(index, struct), of the name that its row in sca_kernels/neurons/
// has for it; a template over the leak has a row for each of the two leaks.
#define SCA_CHARGES(row)                                                              \
    row(0, IntegrateAndFire) row(1, Leaky<DivideByTau>) row(2, Leaky<MultiplyByRate>) \
        row(3, LeakyFullInput<DivideByTau>) row(4, LeakyFullInput<MultiplyByRate>) row(5, Decaying)

#define SCA_RESETS(row) row(0, HardReset) row(1, HardResetAtZero) row(2, SoftReset) row(3, SoftResetAtZero)
