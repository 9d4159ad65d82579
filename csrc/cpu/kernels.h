// The loops over elements, compiled once per instruction set from kernels.inl, behind a table of function pointers.
//
// A kernel works on `lanes`: neighbouring elements of one tile, each with a slot of its own for per-channel parameters
// and sums, so that the same loop serves planar memory (all lanes of one channel) and channels last (one lane per
// channel), and takes `steps` time steps of a lane with its potential in a register. Slots repeat after a period, so
// that what is read and written beside activations stays in the first-level cache. Kernels run over whole lines of
// kLine lanes: rows that belong to the driver (potentials, slots) are float32 and padded, activations too (read() and
// Output in pieces.h).
#pragma once

#include <cstdint>

#include "sca/neurons.h"
#include "sca/surrogates.h"
#include "winograd_kernels.h"

namespace sca {

#define SCA_COUNT(...) +1
constexpr int kCharges = 0 SCA_CHARGES(SCA_COUNT);
constexpr int kResets = 0 SCA_RESETS(SCA_COUNT);
constexpr int kSurrogates = 0 SCA_SURROGATES(SCA_COUNT);
#undef SCA_COUNT

enum class DType { float32, bfloat16 };
constexpr int kDTypes = 2;
constexpr int64_t element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// What numbers of lanes are rounded up to: two cache lines of float32, a whole number of vectors on any machine.
constexpr int64_t kLine = 32;
constexpr int64_t padded(int64_t lanes) { return (lanes + kLine - 1) / kLine * kLine; }
// Time steps that a kernel takes in one go at most.
constexpr int64_t kSteps = 4;

// A run of lanes and their parameters; pointers are to slots.
struct Lanes {
    int64_t size, first, period;  // lane i has slot (first + i) % period; first and period are whole lines
    float threshold, fires_at, by, rest, alpha, beta, gain;  // see neurons.h; gain: factor of the surrogate
    const float *rate, *scale, *shift;  // charge: y = x * scale + shift, where there is a prelude
    const float* gate;                  // what a spike counts for outside: 1, or 0 for a masked channel
    const float *center, *g_y, *slope,
        *offset;  // adjoint of the prelude: dL/dx = g_y dL/dy + (slope (x - center) + offset)
    const float *thresholds, *fire_at, *bys;  // in general kernels: threshold, fires_at and by, per slot
    int surrogate;                            // in the general adjoint: its row, or kNoSurrogate
};

// Of a row in SCA_SURROGATES: derivatives are zeros that nobody computes.
constexpr int kNoSurrogate = -1;

// Time steps of a run of lanes, `step` elements apart.
struct Source {
    const void* data;
    int64_t step;
    int64_t ahead;  // distance, in elements, to lanes that will be wanted soon: they are prefetched
    bool last;      // nobody will read any of this again
};

struct Sink {
    void* data;
    int64_t step;
    bool streamed;  // past the caches; data and step are multiples of 64 bytes
};

// What the adjoint hands back; null: not wanted.
struct Gradients {
    Sink x;
    float *scale, *shift, *rate;  // sums per slot of dL/dy (x - center), of dL/dy, and of dL/d(1/tau)
    float* threshold;             // the same of dL/dthreshold
    bool subtracted;              // whether a soft reset subtracts the threshold
    float* over_time;             // sum per lane of dL/dy over all steps, for `finish`
};

struct Kernels {
    // x -> spikes, and, in the general ones, potentials before the resets (float32) where these have a place; v is
    // carried on, from rest to nowhere if null; spikes are counted and |v - rest| is summed per slot.
    using Fire = void (*)(const Lanes&, int64_t steps, const Source& x, const Sink& s, const Sink& h, float* v,
                          int32_t* count, float* l1);
    // v alone is carried on.
    using Advance = void (*)(const Lanes&, int64_t steps, const Source& x, float* v);
    // x, dL/ds, in the general ones dL/dh (float32; zero if null), and the potential v that the first of at most kSteps
    // steps starts from (null: from rest) -> gradients; g_v is carried back, from zero to nowhere if null.
    using Adjoint = void (*)(const Lanes&, int64_t steps, bool detach, const Source& x, const Source& g_s,
                             const Source& g_h, const float* v, float* g_v, const Gradients&);

    const char* name;
    // What few neurons have (thresholds per channel, potentials of all steps) costs those that have it: it stands in
    // general kernels, last in `general` order and behind the last surrogate, which their adjoint chooses at run time.
    Fire fire[2][kCharges][kResets][kDTypes];
    Advance advance[2][kCharges][kResets][kDTypes];
    Adjoint adjoint[kSurrogates + 1][kCharges][kResets][kDTypes];
    // dL/dx of one step that stands for many, from the sum of dL/dy.
    void (*finish[kDTypes])(const Lanes&, const float* over_time, const Source& x, const Sink& g_x);
    // Sums of x and of x^2 per slot.
    void (*moments[kDTypes])(const Lanes&, int64_t steps, const Source& x, double* sum, double* square);

    // 0/1 elements to bits, 8 to a byte; false where another value was met.
    bool (*pack[kDTypes])(const void* from, uint8_t* to, int64_t bytes);

    WinogradKernels winograd;
};

}  // namespace sca
