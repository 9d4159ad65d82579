// What kernels are told, by value. Every member is eight bytes; twin of the ctypes structures in
// sca_kernels/cuda_kernels/parameters.py, which are checked against these sizes before the first launch.
#pragma once

namespace sca {

using int64 = long long;

// The tiles of a launch; sca_kernels/gpu/plan.py has the plan, walk.h the reading. Sizes in elements.
struct TileParameters {
    int64 rows, columns, channels;  // columns: of all stripes together; in planes of one channel
    int64 inner;                    // positions per sample where rows are not evenly spaced, else 1: a row is two
    int64 outer_step, inner_step;   // digits, row / inner and row % inner; and the rows of a tile, in these
    int64 fold;                     // columns per channel
    int64 stripes;
    int64 splits, group, tiles;  // blocks that share a stripe, and that add up together; tiles of each block
    int64 tile_rows, tile_columns;
    int64 column_tiles;          // side by side in a plane
    int64 lane_bits, slot_bits;  // log2 of the threads side by side, and of the channels that a stripe can have
};

// Where sums go: double [quantity, splits and then their groups, stripes * slots], and the counters that blocks arrive
// at. Null: no sums.
struct Partials {
    double* sums;
    int* counters;
};

// An activation [T, N, C, S]. Strides in elements: per step, per row (by its two digits) and per stripe. data is null
// where there is none. Whatever has no strides is dense in the layout of x.
struct Strided {
    const void* data;
    int64 t, outer, inner, stripe;
};

// Rows of the lists in include/sca; numbers to be rounded to float32.
struct NeuronParameters {
    int64 charge, reset, surrogate, detach;
    int64 subtracts;  // whether a reset subtracts the threshold, whatever that is
    double rate, threshold, fires_at, by, rest, alpha, beta, gain;
};

// Per-channel vectors [C], or null: y = x * scale + shift, and the leak's own rate and the threshold, with the least
// potentials that fire, in place of the neuron's.
struct PreludeParameters {
    const float *scale, *shift, *rate, *threshold, *fires_at;
};

// What batch norm has beside statistics: [C], or longer and then read at `channels`; each may be null.
struct AffineParameters {
    const float *weight, *bias;
    const int64* channels;
    double eps;
};

// What the finish of a forward pass changes beside the sums of the call; each may be null.
struct TrackingParameters {
    const int64* channels;  // where channels stand in all that follows, which may be longer
    int64* spikes;
    double* l1;
    int64 *positions, *batches;
    const float* norm;  // mean and variance, [2, C] of it
    float *running_mean, *running_var;
    const float* weight_float;  // weight of this batch, one number, in either type; or else `weight`
    const double* weight_double;
    double weight, unbiased;
    int64 finite_only, seen;
};

struct ForwardParameters {
    TileParameters tiles;
    NeuronParameters neuron;
    PreludeParameters prelude;
    const float *mean, *var;  // where given, scale and shift follow from these and `affine`
    AffineParameters affine;
    int64 steps;
    Strided x;
    void* spikes;
    const float* v_init;
    float *v_last, *potentials;  // of all steps, before each reset
    const bool* mask;   // [C] or null: whether a channel emits
    Partials partials;  // 2 quantities: spikes, and |v - rest|
    int64* spike_count;
    float* membrane_l1;
    TrackingParameters tracking;
};

struct BackwardParameters {
    TileParameters tiles;
    NeuronParameters neuron;
    PreludeParameters prelude;
    int64 steps, resident;  // all, and those that shared memory holds at a time
    int64 repeated;         // whether one step of x is presented at all of them
    Strided x, grad_spikes;
    const float *grad_v, *v_init, *grad_h;
    void* grad_x;
    float* grad_v_init;
    const float *center, *slope, *offset;  // grad_x = g * scale + slope * (x - center) + offset; null: without the rest
    float* checkpoints;  // v at the start of all but the last `resident` steps, of all threads
    Partials partials;   // 4 quantities: sums of g, g * (x - center), the rate's gradient and the threshold's; of the
                         // plain variant 3, 2 without a rate
    int64 wide;          // whether the sums are wanted in double
    void *first, *second, *third, *fourth;
    float* coefficients;  // [2, C] or null: slope and offset of training batch norm; first and second are then its
    const float* norm;    // [2, C] of it: mean, variance    gradients of bias and weight, grad_size long
    AffineParameters affine;
    int64 grad_size;
    double count, presentations;
};

struct MomentsParameters {
    TileParameters tiles;
    int64 steps;
    Strided x;
    Partials partials;  // 2 quantities: sums of x and x^2
    double* moments;    // [2, C]: these sums; or null
    float* norm;        // [4, C]: mean, variance, scale, shift; or null
    AffineParameters affine;
    double count;
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
    row(ForwardParameters) row(BackwardParameters) row(MomentsParameters) row(BitpackParameters)

#ifdef SCA_SIZES
namespace sca {
constexpr unsigned long long kExpectedSizes[] = {SCA_SIZES};
#define SCA_ROW(Parameters) sizeof(Parameters),
constexpr unsigned long long kSizes[] = {SCA_PARAMETERS(SCA_ROW)};
#undef SCA_ROW
static_assert(kSizes[0] == kExpectedSizes[0] && kSizes[1] == kExpectedSizes[1] && kSizes[2] == kExpectedSizes[2] &&
                  kSizes[3] == kExpectedSizes[3],
              "the caller packs other structures than these");
}  // namespace sca
#endif
