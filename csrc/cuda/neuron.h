// All time steps of a neuron, forward and adjoint, over the structs of include/sca.
//
// Which neuron, reset and surrogate it is, a kernel learns at run time: the choice is the same for all threads and made
// once for V elements, so that it costs an instruction or two per element of kernels that wait for memory. That keeps
// the compiled variants to the dtype, the layout and the width of an access.
#pragma once

#include "../include/sca/neurons.h"
#include "../include/sca/surrogates.h"
#include "sums.h"

namespace sca {

constexpr int kAhead = 4;  // steps whose loads are issued before the first is used

#define SCA_CASE(index, ...) \
    case index:              \
        return body(__VA_ARGS__{});

template <class Body>
SCA_DEVICE void with_charge(int64 row, const Body& body) {
    switch (row) { SCA_CHARGES(SCA_CASE) }
}
template <class Body>
SCA_DEVICE void with_reset(int64 row, const Body& body) {
    switch (row) { SCA_RESETS(SCA_CASE) }
}
template <class Body>
SCA_DEVICE void with_surrogate(int64 row, const Body& body) {
    switch (row) { SCA_SURROGATES(SCA_CASE) }
}
#undef SCA_CASE

// A neuron's numbers as a thread has them, from its scale and shift. A barrier follows before they are used.
template <bool planes, int V>
struct Cell {
    static constexpr int kVectors = 3;  // per channel
    static constexpr int kWidth = Place<planes, V>::kWidth;
    const NeuronParameters& neuron;
    const float threshold, rest;
    PerChannel<planes, V> scale, shift, rate;

    SCA_DEVICE Cell(const NeuronParameters& given, const float (&scales)[kWidth], const float (&shifts)[kWidth],
                    const float* rates, const Place<planes, V>& place)
        : neuron(given),
          threshold(static_cast<float>(given.threshold)),
          rest(static_cast<float>(given.rest)),
          scale(place, 0),
          shift(place, 1),
          rate(place, 2) {
        float vector[kWidth];
        scale.put(scales);
        shift.put(shifts);
        place.of_channel(vector, rates, static_cast<float>(given.rate));
        rate.put(vector);
    }

    // One time step of V elements: potentials before the reset in h, after it in `potential`.
    template <class T>
    SCA_DEVICE void step(const Vector<T, V>& x, float (&h)[V], float (&potential)[V]) const {
        float scales[V], shifts[V], rates[V];
        scale.get(scales);
        shift.get(shifts);
        rate.get(rates);
        with_charge(neuron.charge, [&](auto charge) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const float y = widened(x.at[v]) * scales[v] + shifts[v];
                h[v] = decltype(charge)::charge(potential[v], y, rest, rates[v]);
            }
        });
        after(h, potential);
    }

    // Potentials after the reset.
    SCA_DEVICE void after(const float (&h)[V], float (&potential)[V]) const {
        with_reset(neuron.reset, [&](auto reset) {
            using Reset = decltype(reset);
#pragma unroll
            for (int v = 0; v < V; ++v) potential[v] = Reset::after(h[v], threshold, Reset::rest(rest));
        });
    }
};

// kAhead steps or fewer of a tensor; one step stands for all where its stride is 0.
template <class T, int V>
SCA_DEVICE void load_steps(Vector<T, V> (&to)[kAhead], const T* p, int64 stride, int steps) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k, p += stride)
        if (k < steps) to[k] = k > 0 && stride == 0 ? to[0] : load<T, V>(p);
}

// Potentials of a dense tensor at an offset, or what stands for an absent one.
template <int V>
SCA_DEVICE void initial(float (&potential)[V], const float* z, int64 at, float absent) {
#pragma unroll
    for (int v = 0; v < V; ++v) potential[v] = absent;
    if (z != nullptr) load_floats(potential, z + at, 4);
}

}  // namespace sca
