// The forward pass of a neuron, block by block.
#pragma once

#include "neuron.h"
#include "tiles.h"

namespace sca {

class Forward {
  public:
    // The arguments must outlive it.
    Forward(const Neuron& neuron, const Input& in, const ForwardOutput& out, Order order);

    const Layout layout;

    // Spikes, states and sums of a group of channels.
    void run(const Group& group, int threads);

  private:
    void run(int64_t block);

    const Neuron& neuron_;
    const Input& in_;
    const ForwardOutput& out_;
    const Kernels& kernels_;
    Sums sums_;
    const bool stream_;
};

}  // namespace sca
