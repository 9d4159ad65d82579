// Neurons: charge, reset and their adjoints, one element and one time step at a time (method.md, section 2).
//
// Every function is branch-free, so that a loop over elements vectorises, and is evaluated as written, each operation
// rounded: compile with -ffp-contract=off (nvcc --fmad=false) and no fast math, or spikes differ from the other backends.
//
//   v     potential before the step          h     potential after the charge, before the reset
//   x     input current                      rest  vr0: v_reset, or 0 under soft reset
//   rate  tau or 1/tau, as the leak wants it
#pragma once

#include "macros.h"

namespace sca {
inline namespace SCA_ISA {

// ---- leaks: d / tau --------------------------------------------------------------------------------------------------

struct DivideByTau {
    static SCA_HOST_DEVICE float leak(float d, float tau) { return d / tau; }
    static SCA_HOST_DEVICE float fraction(float tau) { return 1.0f / tau; }
};

// For a learned 1/tau, and for a tau that is a power of two: there the product is the same number as the quotient.
struct MultiplyByRate {
    static SCA_HOST_DEVICE float leak(float d, float rate) { return d * rate; }
    static SCA_HOST_DEVICE float fraction(float rate) { return rate; }
};

// ---- charge: h(v, x), its derivatives dh/dv and dh/dx, and dh/d(1/tau) -----------------------------------------------

struct IntegrateAndFire {
    static SCA_HOST_DEVICE float charge(float v, float x, float, float) { return v + x; }
    static SCA_HOST_DEVICE float by_v(float) { return 1.0f; }
    static SCA_HOST_DEVICE float by_x(float) { return 1.0f; }
    static SCA_HOST_DEVICE float by_leak(float, float, float) { return 0.0f; }
};

// LIF and PLIF, decay_input=True.
template <class Leak>
struct Leaky {
    static SCA_HOST_DEVICE float charge(float v, float x, float rest, float rate) {
        return v + Leak::leak(x - (v - rest), rate);
    }
    static SCA_HOST_DEVICE float by_v(float rate) { return 1.0f - Leak::fraction(rate); }
    static SCA_HOST_DEVICE float by_x(float rate) { return Leak::fraction(rate); }
    static SCA_HOST_DEVICE float by_leak(float v, float x, float rest) { return x - (v - rest); }
};

// LIF and PLIF, decay_input=False.
template <class Leak>
struct LeakyFullInput {
    static SCA_HOST_DEVICE float charge(float v, float x, float rest, float rate) {
        return v - Leak::leak(v - rest, rate) + x;
    }
    static SCA_HOST_DEVICE float by_v(float rate) { return 1.0f - Leak::fraction(rate); }
    static SCA_HOST_DEVICE float by_x(float) { return 1.0f; }
    static SCA_HOST_DEVICE float by_leak(float v, float, float rest) { return rest - v; }
};

// ---- reset: the potential after a spike, and the adjoint of fire and reset together ----------------------------------
//
// grad_h(g_s, g_v, ...) is dL/dh from dL/ds and dL/dv; `slope` is the surrogate derivative at h - threshold.

struct HardReset {
    static SCA_HOST_DEVICE float after(float h, float threshold, float rest) { return h >= threshold ? rest : h; }

    template <bool detach>
    static SCA_HOST_DEVICE float grad_h(float g_s, float g_v, float h, float slope, float threshold, float rest) {
        const float through_spike = detach ? g_s : g_s + g_v * (rest - h);
        return through_spike * slope + (h >= threshold ? 0.0f : g_v);
    }
};

struct SoftReset {
    static SCA_HOST_DEVICE float after(float h, float threshold, float) { return h >= threshold ? h - threshold : h; }

    template <bool detach>
    static SCA_HOST_DEVICE float grad_h(float g_s, float g_v, float, float slope, float threshold, float) {
        const float through_spike = detach ? g_s : g_s - g_v * threshold;
        return through_spike * slope + g_v;
    }
};

}  // namespace SCA_ISA
}  // namespace sca

// A new neuron is one struct above and one row here: row(index, struct). What maps a configuration to an index is
// charge_of() in ../../cpu/neuron.h.
#define SCA_CHARGES(row)                              \
    row(0, IntegrateAndFire)                          \
    row(1, Leaky<DivideByTau>)                        \
    row(2, Leaky<MultiplyByRate>)                     \
    row(3, LeakyFullInput<DivideByTau>)               \
    row(4, LeakyFullInput<MultiplyByRate>)

#define SCA_RESETS(row) \
    row(0, HardReset)   \
    row(1, SoftReset)
