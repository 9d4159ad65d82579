// The backward pass of a neuron, block by block: potentials are recomputed from x, then time runs backwards.
#pragma once

#include "neuron.h"
#include "tiles.h"

namespace sca {

// dL/dx = g_y dL/dy + (slope (x - center) + bias) per channel, for y = x * scale + shift. Null vectors: scale, and
// zeros.
struct PreludeAdjoint {
    const float *g_y, *slope, *bias, *center;
};

class Backward {
  public:
    // Sums of dL/dy * (x - center), of dL/dy and of dL/d(1/tau).
    enum Sum { kScale, kShift, kRate, kKinds };

    // The arguments must outlive it; the vectors of `prelude` are read when they are needed.
    Backward(const Neuron& neuron, const Input& in, const BackwardInput& grad, const BackwardOutput& out,
             PreludeAdjoint prelude, Order order);

    const Layout layout;

    // All gradients of a group of channels.
    void run(const Group& group, int threads);
    // The same in two passes, the second of which writes dL/dx, for a prelude whose adjoint depends on the sums.
    // Between them `parked` holds dL/dy, in parked_size() floats; null: the second pass computes it again.
    void run_sums(const Group& group, int threads, float* parked);
    void run_x(const Group& group, int threads, const float* parked);
    // 0 where dL/dy would not stay in a cache, or does not go with x element by element in float32.
    int64_t parked_size(const Group& group) const;

    double sum(Sum kind, int64_t channel) const { return sums_.total(kind, channel); }

  private:
    struct Pass {
        bool sums;  // and the gradients of v_init and rate
        bool x;
        float* parked;  // where dL/dy goes, or null
    };
    void run(int64_t block, Pass pass);
    void finish(int64_t block, const float* parked);
    // Floats of a block's dL/dy: the steps of a piece, padded, then those of the next.
    int64_t parked_block() const;

    const Neuron& neuron_;
    const Input& in_;
    const BackwardInput& grad_;
    const BackwardOutput& out_;
    const PreludeAdjoint prelude_adjoint_;
    const Kernels& kernels_;
    Sums sums_;
    const bool prelude_, summed_;
    const bool stream_;
    const View grad_spikes_;
};

}  // namespace sca
