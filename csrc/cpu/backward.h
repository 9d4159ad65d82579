// The backward pass of a neuron, task by task: potentials are recomputed from x, then time runs backwards.
#pragma once

#include "neuron.h"
#include "pieces.h"

namespace sca {

// dL/dx = g_y dL/dy + (slope (x - center) + offset) per channel, for y = x * scale + shift. Null vectors: scale, and
// zeros.
struct PreludeAdjointVectors {
    const float *g_y, *slope, *offset, *center;
};

class BackwardPass {
  public:
    // Sums of dL/dy * (x - center), of dL/dy, of dL/d(1/tau) and of dL/dthreshold.
    enum Sum { kScale, kShift, kRate, kThreshold, kKinds };

    // The arguments must outlive it; the vectors of `prelude` are read when they are needed.
    BackwardPass(const NeuronConfig& neuron, const Input& in, const BackwardInput& grad, const BackwardOutput& out,
                 PreludeAdjointVectors prelude, Order order);

    const Tiling tiling;

    // All gradients of a stripe of channels.
    void run(const Stripe& stripe, int threads);
    // All but the sums.
    void run_gradients(const Stripe& stripe, int threads);
    // The same in two passes, the second of which writes dL/dx, for a prelude whose adjoint depends on the sums.
    // Between them `parked` holds dL/dy, in parked_size() floats; null: the second pass computes it again.
    void run_sums(const Stripe& stripe, int threads, float* parked);
    void run_x(const Stripe& stripe, int threads, const float* parked);
    // 0 where dL/dy would not stay in a cache, or does not go with x element by element in float32.
    int64_t parked_size(const Stripe& stripe) const;

    double sum(Sum kind, int64_t channel) const { return sums_.of(kind, channel); }

  private:
    struct Wanted {
        bool sums;   // and the gradients of rate and threshold
        bool state;  // the gradient of v_init
        bool x;
        float* parked;  // where dL/dy goes, or null
    };
    void run(int64_t task, Wanted pass);
    void finish(int64_t task, const float* parked);
    // Floats of a task's dL/dy: the steps of a piece, padded, then those of the next.
    int64_t parked_task() const;

    const NeuronConfig& neuron_;
    const Input& in_;
    const BackwardInput& grad_;
    const BackwardOutput& out_;
    const PreludeAdjointVectors prelude_adjoint_;
    const Kernels& kernels_;
    Sums sums_;
    const bool prelude_, summed_;
    const bool stream_;
    const View grad_spikes_;
};

}  // namespace sca
