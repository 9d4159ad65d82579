// All time steps of a neuron, forward and adjoint, over the structs of include/sca.
//
// Which neuron, reset and surrogate it is, a kernel learns at run time: the choice is the same for all threads and made
// once for V elements, so that it costs an instruction or two per element of kernels that wait for memory. That keeps
// the compiled variants to the dtype, the layout and the width of an access; and whether it is `plain`, of which the
// registers are fewer: fires at h >= threshold, one number, resets by that or to rest, has a surrogate's factor of 1,
// and keeps its potentials to itself.
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

SCA_DEVICE constexpr bool is_soft(HardReset) { return false; }
SCA_DEVICE constexpr bool is_soft(SoftReset) { return true; }

// One number for V elements, or one for each.
struct Same {
    float number;
    SCA_DEVICE float operator[](int) const { return number; }
};
template <int V>
struct Each {
    float at[V];
    SCA_DEVICE float operator[](int v) const { return at[v]; }
};

// Levels of the potential: the threshold, the least that fires, and what a reset does by. Two numbers, or all three per
// channel.
template <bool planes, int V, bool plain>
class Levels;

template <bool planes, int V>
class Levels<planes, V, true> {
  public:
    static constexpr int kVectors = 0;

    SCA_DEVICE Levels(const NeuronParameters& neuron, const PreludeParameters&, const Place<planes, V>&, int)
        : threshold_(static_cast<float>(neuron.threshold)), rest_(static_cast<float>(neuron.rest)) {}

    SCA_DEVICE Same threshold() const { return {threshold_}; }
    SCA_DEVICE Same fires_at() const { return {threshold_}; }
    template <class Reset>
    SCA_DEVICE Same by() const {
        return {is_soft(Reset{}) ? threshold_ : Reset::by(rest_)};
    }

  private:
    const float threshold_, rest_;
};

template <bool planes, int V>
class Levels<planes, V, false> {
  public:
    static constexpr int kVectors = 3;  // per channel

    SCA_DEVICE Levels(const NeuronParameters& neuron, const PreludeParameters& given, const Place<planes, V>& place,
                      int slot)
        : threshold_(place, slot), fires_at_(place, slot + 1), by_(place, slot + 2) {
        float vector[Place<planes, V>::kWidth];
        place.of_channel(vector, given.threshold, static_cast<float>(neuron.threshold));
        threshold_.put(vector);
        place.of_channel(vector, given.fires_at, static_cast<float>(neuron.fires_at));
        fires_at_.put(vector);
        place.of_channel(vector, neuron.subtracts != 0 ? given.threshold : nullptr, static_cast<float>(neuron.by));
        by_.put(vector);
    }

    SCA_DEVICE Each<V> threshold() const { return of(threshold_); }
    SCA_DEVICE Each<V> fires_at() const { return of(fires_at_); }
    template <class>
    SCA_DEVICE Each<V> by() const {
        return of(by_);
    }

  private:
    static SCA_DEVICE Each<V> of(const PerChannel<planes, V>& numbers) {
        Each<V> each;
        numbers.get(each.at);
        return each;
    }

    PerChannel<planes, V> threshold_, fires_at_, by_;
};

// A neuron's numbers as a thread has them, from its scale and shift. A barrier follows before they are used.
template <bool planes, int V, bool plain>
struct Cell {
    static constexpr int kVectors = 3 + Levels<planes, V, plain>::kVectors;  // per channel
    static constexpr int kWidth = Place<planes, V>::kWidth;
    const NeuronParameters& neuron;
    const Levels<planes, V, plain> levels;
    const float rest;
    PerChannel<planes, V> scale, shift, rate;

    SCA_DEVICE Cell(const NeuronParameters& own, const PreludeParameters& given, const float (&scales)[kWidth],
                    const float (&shifts)[kWidth], const Place<planes, V>& place)
        : neuron(own),
          levels(own, given, place, 3),
          rest(static_cast<float>(own.rest)),
          scale(place, 0),
          shift(place, 1),
          rate(place, 2) {
        float vector[kWidth];
        scale.put(scales);
        shift.put(shifts);
        place.of_channel(vector, given.rate, static_cast<float>(own.rate));
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
        const auto fires_at = levels.fires_at();
        with_reset(neuron.reset, [&](auto reset) {
            using Reset = decltype(reset);
            const auto by = levels.template by<Reset>();
#pragma unroll
            for (int v = 0; v < V; ++v) potential[v] = Reset::after(h[v], fires_at[v], by[v]);
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
