// The forward pass of a neuron, task by task.
#pragma once

#include "neuron.h"
#include "pieces.h"

namespace sca {

class ForwardPass {
  public:
    // The arguments must outlive it.
    ForwardPass(const NeuronConfig& neuron, const Input& in, const ForwardOutput& out, Order order);

    const Tiling tiling;

    // Spikes, states and sums of a stripe of channels.
    void run(const Stripe& stripe, int threads);

  private:
    void run(int64_t task);

    const NeuronConfig& neuron_;
    const Input& in_;
    const ForwardOutput& out_;
    const Kernels& kernels_;
    Sums sums_;
    const bool stream_;
};

}  // namespace sca
