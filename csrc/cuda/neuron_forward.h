#pragma once

#include "neuron.h"

namespace sca {

template <class T, bool planes, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 3) neuron_forward(const ForwardParameters p) {
    Place<planes, V> place(p.walk);
    const Cell<planes, V> cell(p.neuron, p.prelude, place);
    PerChannel<planes, V> gate(place, cell.kVectors);
    float open[place.kWidth];
    place.of_channel(open, p.mask, 1.0f);
    gate.put(open);
    __syncthreads();

    int fired[place.kWidth] = {};
    float l1[place.kWidth] = {};
    for (; place.valid(); place.next()) {
        const T* x_at = place.template in<const T>(p.x);
        T* spikes_at = place.template in<T>(p.spikes);
        float potential[V];
        initial(potential, p.v_init, place, cell.rest);
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
                gate.get(gates);
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    spike[v] = h[v] >= cell.threshold ? 1 : 0;
                    distance[v] = absolute(potential[v] - cell.rest);
                    spikes.at[v] = spike[v] != 0 && gates[v] != 0.0f ? One<T>::value() : T{};
                }
                accumulate(fired, spike);
                accumulate(l1, distance);
                store_global(spikes_at, spikes);
                spikes_at += p.spikes.t;
            }
            x_at += kAhead * p.x.t;
        }
        if (p.v_last.data != nullptr) store_state(place.template in<float>(p.v_last), potential);
    }
    place.put(p.partials, 0, fired);
    place.put(p.partials, 1, l1);
}

}  // namespace sca
