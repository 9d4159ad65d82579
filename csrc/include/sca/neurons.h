// Neurons: charge, reset and their adjoints, for one time step.
//
// Evaluated as written, each operation rounded: compile with -ffp-contract=off (nvcc --fmad=false) and no fast math, or
// spikes differ from the other backends. Branch-free.
//
//   v     potential before the step          h     potential after the charge, before the reset
//   x     input current                      rest  vr0: v_reset, or 0 under soft reset
//   rate  tau or 1/tau, as the leak wants it
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

// ---- reset: the potential after a spike, and the adjoint of fire and reset together
// ----------------------------------
//
// rest() is the resting potential as far as the reset knows it: a constant zero saves the subtractions from it. grad_h
// is dL/dh from dL/ds and dL/dv; `slope` is the surrogate derivative at h - threshold.

struct HardReset {
    template <class F>
    static SCA_HOST_DEVICE F rest(F given) {
        return given;
    }
    template <class F>
    static SCA_HOST_DEVICE F after(F h, F threshold, F rest) {
        return select(h >= threshold, rest, h);
    }
    template <bool detach, class F>
    static SCA_HOST_DEVICE F grad_h(F g_s, F g_v, F h, F slope, F threshold, F rest) {
        const F through_spike = detach ? g_s : g_s - g_v * (h - rest);
        return through_spike * slope + select(h >= threshold, F(0.0f), g_v);
    }
};

struct HardResetToZero : HardReset {
    template <class F>
    static SCA_HOST_DEVICE F rest(F) {
        return F(0.0f);
    }
};

struct SoftReset {
    template <class F>
    static SCA_HOST_DEVICE F rest(F) {
        return F(0.0f);
    }
    template <class F>
    static SCA_HOST_DEVICE F after(F h, F threshold, F) {
        return select(h >= threshold, h - threshold, h);
    }
    template <bool detach, class F>
    static SCA_HOST_DEVICE F grad_h(F g_s, F g_v, F, F slope, F threshold, F) {
        const F through_spike = detach ? g_s : g_s - g_v * threshold;
        return through_spike * slope + g_v;
    }
};

}  // namespace SCA_ISA
}  // namespace sca

// A new neuron is a struct above and a row here, row(index, struct), of the name that its row in sca_kernels/neurons/
// has for it; a template over the leak has a row for each of the two leaks.
#define SCA_CHARGES(row)                                                              \
    row(0, IntegrateAndFire) row(1, Leaky<DivideByTau>) row(2, Leaky<MultiplyByRate>) \
        row(3, LeakyFullInput<DivideByTau>) row(4, LeakyFullInput<MultiplyByRate>)

#define SCA_RESETS(row) row(0, HardReset) row(1, HardResetToZero) row(2, SoftReset)
