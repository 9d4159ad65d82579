#pragma once

#include "batch_norm.h"
#include "neuron.h"

namespace sca {

// A thread's scale and shift from given statistics: once per column of the block, since double is slow on most devices.
template <bool planes, int V, int W>
SCA_DEVICE void prelude_of(float (&scale)[W], float (&shift)[W], const ForwardParameters& p,
                           const Place<planes, V>& place) {
    for (int w = 0; w < W && place.leads(); ++w) {
        const int64 channel = place.channel(w);
        if (channel >= p.tiles.channels) continue;
        const int64 at = listed(p.affine.channels, channel);
        const AffineMap map(p.mean[at], p.var[at], p.affine, at);
        scale[w] = static_cast<float>(map.scale);
        shift[w] = static_cast<float>(map.shift);
    }
    if (!planes) return;  // there the first row puts them where all read them
    float* const both = reinterpret_cast<float*>(shared_memory());
    if (place.leads()) both[0] = scale[0], both[1] = shift[0];
    __syncthreads();
    scale[0] = both[0];
    shift[0] = both[1];
}

// As torch.lerp, whose kernels fuse here, too.
SCA_DEVICE float moved(float old, float to, float weight) {
    return absolute(weight) < 0.5f ? fmaf(weight, to - old, old) : fmaf(weight - 1.0f, to - old, to);
}
SCA_DEVICE bool is_finite(float x) { return (bits_as<unsigned>(x) & 0x7f800000u) != 0x7f800000u; }

// What a call changes beside its own outputs, for one channel.
SCA_DEVICE void track(const TrackingParameters& p, int64 channel, int64 channels, int64 spikes, float l1) {
    const int64 at = listed(p.channels, channel);
    if (p.spikes != nullptr) {
        p.spikes[at] += spikes;
        p.l1[at] += static_cast<double>(l1);
        p.positions[at] += p.seen;
    }
    if (p.batches != nullptr && channel == 0) ++*p.batches;
    if (p.norm == nullptr) return;
    const float mean = p.norm[channel], var = p.norm[channels + channel] * static_cast<float>(p.unbiased);
    if (p.finite_only != 0 && !(is_finite(mean) && is_finite(var))) return;
    const float weight = p.weight_float != nullptr    ? *p.weight_float
                         : p.weight_double != nullptr ? static_cast<float>(*p.weight_double)
                                                      : static_cast<float>(p.weight);
    p.running_mean[at] = moved(p.running_mean[at], mean, weight);
    p.running_var[at] = moved(p.running_var[at], var, weight);
}

template <class T, bool planes, int V, bool plain = true>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 || planes ? 5 : 3)
    neuron_forward(const ForwardParameters p) {
    Place<planes, V> place(p.tiles);
    const ColumnSums<planes, V> columns(place);
    const BlockSums<2> sums(p.tiles, p.partials, place);
    float scales[place.kWidth], shifts[place.kWidth], open[place.kWidth];
    place.of_channel(scales, p.prelude.scale, 1.0f);
    place.of_channel(shifts, p.prelude.shift, 0.0f);
    if (p.var != nullptr) prelude_of(scales, shifts, p, place);
    const Cell<planes, V, plain> cell(p.neuron, p.prelude, scales, shifts, place);
    PerChannel<planes, V> gate(place, cell.kVectors);
    place.of_channel(open, p.mask, 1.0f);
    gate.put(open);
    __syncthreads();

    int fired[place.kWidth] = {};
    float l1[place.kWidth] = {};
    const int64 step = place.step();
    T* const to = static_cast<T*>(p.spikes);
    const int tiles = static_cast<int>(p.tiles.tiles);
    for (int tile = 0; tile < tiles; ++tile, place.next()) {
        if (!place.valid()) continue;
        const T* x_at = place.template in<T>(p.x);
        const int64 at = place.dense();
        T* spikes_at = to + at;
        float potential[V];
        initial(potential, p.v_init, at, cell.rest);
        for (int left = static_cast<int>(p.steps); left > 0; left -= kAhead) {
            Vector<T, V> x[kAhead];
            load_steps(x, x_at, p.x.t, left);
#pragma unroll
            for (int k = 0; k < kAhead; ++k) {
                if (k >= left) break;
                Vector<T, V> spikes;
                float h[V], gates[V], distance[V];
                int spike[V];
                cell.step(x[k], h, potential);
                const auto fires_at = cell.levels.fires_at();
                gate.get(gates);
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    spike[v] = h[v] >= fires_at[v] ? 1 : 0;
                    distance[v] = absolute(potential[v] - cell.rest);
                    spikes.at[v] = spike[v] != 0 && gates[v] != 0.0f ? One<T>::value() : T{};
                }
                accumulate(fired, spike);
                accumulate(l1, distance);
                store_global(spikes_at, spikes);
                if constexpr (!plain)
                    if (p.potentials != nullptr) store_state(p.potentials + (spikes_at - to), h);
                spikes_at += step;
            }
            x_at += kAhead * p.x.t;
        }
        if (p.v_last != nullptr) store_state(p.v_last + at, potential);
    }

    columns.put(fired, l1);
    double totals[2] = {};
    sums.own_columns([&](int column) {
        totals[0] += columns.template get<int>(0, column);
        totals[1] += columns.template get<float>(1, column);
    });
    sums.put(totals, [&](int64 channel, const double(&found)[2]) {
        const int64 count = static_cast<int64>(found[0]);  // exact: integers below 2^53
        const float distance = static_cast<float>(found[1]);
        p.spike_count[channel] = count;
        p.membrane_l1[channel] = distance;
        track(p.tracking, channel, p.tiles.channels, count, distance);
    });
}

}  // namespace sca
