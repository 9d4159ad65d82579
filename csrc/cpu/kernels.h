// The loops over elements, compiled once per instruction set from kernels.inl, behind a table of function pointers.
//
// A kernel works on `lanes`: neighbouring elements of one tile, each with its own per-channel parameters, so that the
// same loop serves planar memory (all lanes of one channel) and channels last (one lane per channel), and takes `steps`
// time steps of a lane with its potential in a register. Rows that belong to the driver (potentials, sums, parameters)
// are float32, and may be read and written up to the next multiple of 16 lanes.
#pragma once

#include <cstdint>

#include "sca/neurons.h"
#include "sca/surrogates.h"

namespace sca {

#define SCA_COUNT(...) +1
constexpr int kCharges = 0 SCA_CHARGES(SCA_COUNT);
constexpr int kResets = 0 SCA_RESETS(SCA_COUNT);
constexpr int kSurrogates = 0 SCA_SURROGATES(SCA_COUNT);
#undef SCA_COUNT

enum class DType { float32, bfloat16 };
constexpr int kDTypes = 2;
constexpr int64_t element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Parameters of a run of lanes; pointers are per lane.
struct Lanes {
    int64_t size;
    float threshold, rest, alpha, beta;
    const float *rate, *scale, *shift;  // charge: y = x * scale + shift, where there is a prelude
    const float* gate;                  // what a spike counts for outside: 1, or 0 for a masked channel
    const float *by_v, *by_x;           // adjoint: dh/dv, dh/dx, from `derivatives`
    const float *center, *g_y, *slope,
        *bias;  // adjoint of the prelude: dL/dx = g_y dL/dy + (slope (x - center) + bias)
};

// Time steps of a run of lanes, `step` elements apart.
struct Source {
    const void* data;
    int64_t step;
    int64_t ahead;  // distance, in elements, to lanes that will be wanted soon: they are prefetched
};

struct Sink {
    void* data;
    int64_t step;
    bool streamed;  // past the caches; data and step are multiples of 64 bytes
};

struct Rows {
    float* data;
    int64_t step;
};

struct Kernels {
    // x -> spikes; v is carried on, spikes are counted and |v - rest| is summed per lane.
    using Fire = void (*)(const Lanes&, int64_t steps, const Source& x, const Sink& s, float* v, int32_t* count,
                          float* l1);
    // x -> h, for the backward pass.
    using Charge = void (*)(const Lanes&, int64_t steps, const Source& x, const Rows& h, float* v);
    // dL/ds -> dL/dy (float32), from the last step down; g_v is carried on.
    using Adjoint = void (*)(const Lanes&, int64_t steps, const Rows& h, const Source& g_s, const Sink& g_y,
                             float* g_v);
    // One step: sums dL/d(1/tau), and turns dL/dh into dL/dy in place. v_before is the potential that the step started
    // from.
    using LeakAdjoint = void (*)(const Lanes&, const void* x, const float* v_before, const float* by_x, float* g,
                                 float* g_rate);

    const char* name;
    Fire fire[kCharges][kResets][2][kDTypes];           // [prelude]
    Charge charge[kCharges][kResets][2][kDTypes];       // [prelude]
    Adjoint adjoint[kSurrogates][kResets][2][kDTypes];  // [detach]
    LeakAdjoint leak_adjoint[kCharges][2][kDTypes];     // [prelude]
    void (*derivatives[kCharges])(const float* rate, float* by_v, float* by_x, int64_t size);
    void (*reset[kResets])(const Lanes&, const float* h, float* v);

    // g are rows of dL/dy.
    void (*prelude_sums[kDTypes])(const Lanes&, int64_t steps, const Rows& g, const Source& x, float* g_scale,
                                  float* g_shift);
    void (*prelude_adjoint[kDTypes])(const Lanes&, int64_t steps, const Rows& g, const Source& x, const Sink& g_x);
    void (*put[kDTypes])(int64_t size, int64_t steps, const Rows& from, const Sink& to);
    void (*add)(int64_t size, int64_t steps, const Rows& from, float* total);
    void (*moments[kDTypes])(int64_t size, int64_t steps, const Source& x, double* sum, double* square);

    // 0/1 elements to bits, 8 to a byte; false where another value was met.
    bool (*pack[kDTypes])(const void* from, uint8_t* to, int64_t bytes);
};

}  // namespace sca
