// The loops over elements, compiled once per instruction set from kernels.inl, behind a table of function pointers.
//
// A kernel works on `lanes`: neighbouring elements of one tile, each with its own per-channel parameters, so that the same loop
// serves planar memory (all lanes of one channel) and channels last (one lane per channel). Everything here is float32; other
// dtypes are converted on the way in and out. `*_step` is the distance between two time steps, in elements.
#pragma once

#include <cstdint>

#include "sca/neurons.h"
#include "sca/surrogates.h"

namespace sca {

// How many time steps a kernel takes at once, with the potential in a register. A remainder is taken one by one.
constexpr int kSteps = 4;

#define SCA_COUNT(...) +1
constexpr int kCharges = 0 SCA_CHARGES(SCA_COUNT);
constexpr int kResets = 0 SCA_RESETS(SCA_COUNT);
constexpr int kSurrogates = 0 SCA_SURROGATES(SCA_COUNT);
#undef SCA_COUNT

// Parameters of one tile; pointers are per lane.
struct Lanes {
    int64_t size;
    float threshold, rest, alpha, beta;
    const float *rate, *scale, *shift;  // charge: y = x * scale + shift, where there is a prelude
    const float *by_v, *by_x;           // adjoint: dh/dv, dh/dx, from `derivatives`
};

struct Kernels {
    // x -> spikes; v is carried on, spikes are counted and |v - rest| is summed per lane.
    using Fire = void (*)(const Lanes&, const float* x, int64_t x_step, float* s, int64_t s_step, float* v, int32_t* count,
                          float* l1);
    // x -> h, for the backward pass.
    using Charge = void (*)(const Lanes&, const float* x, int64_t x_step, float* h, int64_t h_step, float* v);
    // dL/ds -> dL/dy, from the last step down; g_v is carried on.
    using Adjoint = void (*)(const Lanes&, const float* h, int64_t h_step, const float* g_s, int64_t g_s_step, float* g_y,
                             int64_t g_y_step, float* g_v);
    // One step: sums dL/d(1/tau), and turns dL/dh into dL/dy in place. v_before is the potential that the step started from.
    using LeakAdjoint = void (*)(const Lanes&, const float* x, const float* v_before, const float* by_x, float* g, float* g_rate);

    const char* name;
    Fire fire[kCharges][kResets][2][2];             // [prelude][one step, kSteps]
    Charge charge[kCharges][kResets][2][2];         // [prelude][one step, kSteps]
    Adjoint adjoint[kSurrogates][kResets][2][2];    // [detach][one step, kSteps]
    LeakAdjoint leak_adjoint[kCharges][2];          // [prelude]
    void (*derivatives[kCharges])(const float* rate, float* by_v, float* by_x, int64_t size);
    void (*reset[kResets])(const Lanes&, const float* h, float* v);

    // One row of `size` elements each.
    void (*widen)(const uint16_t* from, float* to, int64_t size);   // bfloat16 to float32
    void (*narrow)(const float* from, uint16_t* to, int64_t size);  // float32 to bfloat16, to nearest even
    void (*stream)(const float* from, float* to, int64_t size);     // copy past the caches
    void (*multiply)(const float* by, float* row, int64_t size);
    void (*add)(const float* from, float* row, int64_t size);
    void (*moments)(const float* x, double* sum, double* square, int64_t size);
    void (*prelude_sums)(const float* g, const float* x, const float* center, float* g_scale, float* g_shift, int64_t size);
    // g = a g + (b (x - center) + d)
    void (*prelude_adjoint)(const float* x, const float* center, const float* a, const float* b, const float* d, float* g,
                            int64_t size);
    // 0/1 elements to bits, 8 to a byte; false where another value was met.
    bool (*pack_float)(const uint32_t* from, uint8_t* to, int64_t bytes);
    bool (*pack_half)(const uint16_t* from, uint8_t* to, int64_t bytes);
};

}  // namespace sca
