// All time steps of a neuron, forward and adjoint, with or without training batch norm in front.
#pragma once

#include <cstdint>
#include <string>

#include "tiling.h"

namespace sca {

struct NeuronConfig {
    int charge, reset, surrogate;  // rows of the lists at the foot of neurons.h and surrogates.h
    bool detach_reset, subtracts_threshold;
    float rate;                       // tau, 1/tau or decay, as the charge wants it, where it is not given per channel
    float threshold, fires_at, by;    // see neurons.h; where they are not given per channel
    float rest, alpha, beta, gain;
};

// From the names of its structs, as they stand in these lists. Throws std::invalid_argument for one that is not there.
NeuronConfig neuron_config(const std::string& charge, const std::string& reset, const std::string& surrogate,
                           bool detach_reset, bool subtracts_threshold, double rate, double threshold, double fires_at,
                           double by, double rest, double alpha, double beta, double gain);

// What both directions read. Per-channel vectors are [C] or null. x with time stride 0 is one step, presented T times.
struct Input {
    Shape shape;
    View x, v_init;  // v_init: [N, C, S] float32, or null: starts from rest
    const float *scale, *shift, *rate, *threshold, *fires_at;
    int threads;
    // What a reset does by, per channel; null: by the configuration's number.
    const float* by(const NeuronConfig& neuron) const { return neuron.subtracts_threshold ? threshold : nullptr; }
};

struct ForwardOutput {
    View spikes, v, h;    // float32, or null: v the final potential [N, C, S], h those before resets [T, N, C, S]
    const uint8_t* mask;  // channels that emit zeros, or null
    int64_t* count;       // [C]
    float* l1;            // [C]
};

struct BackwardInput {
    View spikes, v, h;  // dL/ds in x's dtype, dL/dv (final potential) and dL/dh in float32; null: zero
};

struct BackwardOutput {
    View x, v_init;               // null: not wanted; x with time stride 0 holds the sum over time
    float *scale, *shift, *rate, *threshold;  // [C], or null
};

struct BatchNorm {
    const float *weight, *bias;  // [C], or null
    double eps;
};

bool empty(const Shape&);
// Zero the sums.
void clear(const ForwardOutput&, int64_t channels);
void clear(const BackwardOutput&, int64_t channels);

void neuron_forward(const NeuronConfig&, const Input&, const ForwardOutput&);
void neuron_backward(const NeuronConfig&, const Input&, const BackwardInput&, const BackwardOutput&);

// Training batch norm in front: scale and shift of the input are ignored; statistics, [4, C], are an output: mean,
// (biased) variance, and scale and shift that follow from these.
void batch_norm_forward(const NeuronConfig&, const BatchNorm&, const Input&, const ForwardOutput&, float* statistics);
// scale and shift of the output are the gradients of weight and bias; the bias itself is not read.
void batch_norm_backward(const NeuronConfig&, const BatchNorm&, const Input&, const float* statistics,
                         const BackwardInput&, const BackwardOutput&);

// The same by parts, for statistics of more elements than these (those of other processes). Sums are [2 to 4, C].
// Of x and of x^2, a step that is presented often counted once:
void batch_norm_moments(const Input&, double* sums);
// Of dL/dy, of dL/dy (x - center) and, where they are given, of dL/d(1/tau) and dL/dthreshold, for
// y = x * scale + shift:
void batch_norm_sums(const NeuronConfig&, const Input&, const float* center, const BackwardInput&, double* sums);
// dL/dx = scale dL/dy + (slope (x - center) + offset), and dL/dv_init.
void batch_norm_gradient(const NeuronConfig&, const Input&, const float* center, const float* slope,
                         const float* offset, const BackwardInput&, const BackwardOutput&);

}  // namespace sca
