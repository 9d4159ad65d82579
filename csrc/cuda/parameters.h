// What kernels are told, by value. Every member is eight bytes; twin of the ctypes structures in
// sca_kernels/cuda_kernels/parameters.py, which are checked against these sizes before the first launch.
#pragma once

namespace sca {

using int64 = long long;

// An activation [T, N, C, S], or a state (t unused). Strides in elements: per step, per place (two digits, see Walk)
// and per stripe. data is null where there is none.
struct Strided {
    void* data;
    int64 t, outer, inner, stripe;
};

// How a tensor is cut among threads (walk.h has the reading, tiling.py the choice).
struct Walk {
    int64 places, inner;            // places of a stripe, in two digits: outer = place / inner, place % inner
    int64 stripes, lanes, columns;  // columns = channels * fold, of which `lanes` vectors lie side by side in a block
    int64 fold;                     // columns per channel
    int64 splits, items;            // blocks that share a stripe; places per thread
    int64 rows, outer_step, inner_step;  // threads one above the other in a block, and that as digits
};

// Rows of the lists in include/sca; numbers to be rounded to float32.
struct NeuronParameters {
    int64 charge, reset, surrogate, detach;
    double rate, threshold, rest, alpha, beta;
};

// Per-channel vectors [C], or null: y = x * scale + shift, and the leak's own rate.
struct PreludeParameters {
    const float *scale, *shift, *rate;
};

struct ForwardParameters {
    Walk walk;
    NeuronParameters neuron;
    PreludeParameters prelude;
    int64 steps;
    Strided x, spikes, v_init, v_last;
    const float* mask;  // [C] or null: 1 where a channel emits, else 0
    double* partials;   // [2, splits, columns]: spikes, and |v - rest|
};

struct BackwardParameters {
    Walk walk;
    NeuronParameters neuron;
    PreludeParameters prelude;
    int64 steps, resident;  // all, and those that shared memory holds at a time
    Strided x, grad_spikes, grad_v, v_init, grad_x, grad_v_init;
    const float *center, *slope, *offset;  // grad_x = g * scale + slope * (x - center) + offset; null: without the rest
    double* partials;    // [3, splits, columns]: sums of g, g * (x - center) and the rate's gradient; or null
    float* checkpoints;  // v at the start of all but the last `resident` steps, of all threads
};

struct MomentsParameters {
    Walk walk;
    int64 steps;
    Strided x;
    double* partials;  // [2, splits, columns]: sums of x and x^2
};

// Kernels over channels; each reads and writes what it has use for.
struct SumsParameters {
    int64 channels, fold, splits;
    const double* partials;  // [quantities, splits, channels * fold]
    double count, presentations, eps;
    int64* spike_count;
    float* membrane_l1;
    const float *weight, *bias;
    float *mean, *var, *scale, *shift, *slope, *offset, *grad_scale, *grad_shift, *grad_rate;
};

struct BitpackParameters {
    int64 numel;
    void* spikes;
    unsigned char* packed;
    int* valid;  // set to 0 where a value is neither 0 nor 1
};

}  // namespace sca

// row(structure): their sizes are compared with those of the caller's.
#define SCA_PARAMETERS(row) \
    row(ForwardParameters) row(BackwardParameters) row(MomentsParameters) row(SumsParameters) row(BitpackParameters)

#ifdef SCA_SIZES
namespace sca {
constexpr unsigned long long kExpectedSizes[] = {SCA_SIZES};
#define SCA_ROW(Parameters) sizeof(Parameters),
constexpr unsigned long long kSizes[] = {SCA_PARAMETERS(SCA_ROW)};
#undef SCA_ROW
static_assert(kSizes[0] == kExpectedSizes[0] && kSizes[1] == kExpectedSizes[1] && kSizes[2] == kExpectedSizes[2] &&
                  kSizes[3] == kExpectedSizes[3] && kSizes[4] == kExpectedSizes[4],
              "the caller packs other structures than these");
}  // namespace sca
#endif
