#pragma once

#include "neuron.h"

namespace sca {

// What a thread keeps per step, in shared memory, since registers can't be indexed at run time: h, and x and dL/ds as
// they came; h, the last, may have a slot
// more, for a sum over all steps. No other thread looks at it, so there is nothing to wait for.
template <class T, int V>
class Tape {
    static constexpr int kAccess = V < 4 ? V : 4;

  public:
    SCA_DEVICE Tape(unsigned char* memory, int64 steps) {
        const int64 thread = static_cast<int64>(threadIdx.x);
        grad_ = reinterpret_cast<Vector<T, V>*>(memory) + thread;
        x_ = grad_ + steps * kThreads;
        h_ = reinterpret_cast<float*>(memory + 2 * steps * kThreads * sizeof(Vector<T, V>)) + thread * kAccess;
    }

    SCA_DEVICE void put_h(int64 k, const float (&h)[V]) { store_floats(h_ + k * kThreads * V, kThreads * kAccess, h); }
    SCA_DEVICE void get_h(int64 k, float (&h)[V]) const { load_floats(h, h_ + k * kThreads * V, kThreads * kAccess); }
    SCA_DEVICE Vector<T, V>& grad(int64 k) { return grad_[k * kThreads]; }
    SCA_DEVICE Vector<T, V>& x(int64 k) { return x_[k * kThreads]; }

  private:
    float* h_;
    Vector<T, V>* grad_;
    Vector<T, V>* x_;
};

// With g the gradient of the input current: grad_x and the sums that the parameters list. h is recomputed from x,
// `resident` steps at a time, the last first; the others start from checkpoints.
template <class T, bool planes, int V>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 && planes ? 3 : 2)
    neuron_backward(const BackwardParameters p) {
    Place<planes, V> place(p.walk);
    const Cell<planes, V> cell(p.neuron, p.prelude, place);
    constexpr int kFirst = cell.kVectors;
    PerChannel<planes, V> by_v(place, kFirst), by_x(place, kFirst + 1), center(place, kFirst + 2),
        slope(place, kFirst + 3), offset(place, kFirst + 4);
    float vector[place.kWidth], derivative[place.kWidth];
    place.of_channel(vector, p.prelude.rate, static_cast<float>(p.neuron.rate));
    with_charge(p.neuron.charge, [&](auto c) {
        for (int w = 0; w < place.kWidth; ++w) derivative[w] = decltype(c)::by_v(vector[w]);
        by_v.put(derivative);
        for (int w = 0; w < place.kWidth; ++w) derivative[w] = decltype(c)::by_x(vector[w]);
        by_x.put(derivative);
    });
    place.of_channel(vector, p.center, 0.0f);
    center.put(vector);
    place.of_channel(vector, p.slope, 0.0f);
    slope.put(vector);
    place.of_channel(vector, p.offset, 0.0f);
    offset.put(vector);
    __syncthreads();

    Tape<T, V> tape(shared_memory() + (kFirst + 5) * PerChannel<planes, V>::bytes(place), p.resident);
    const float alpha = static_cast<float>(p.neuron.alpha), beta = static_cast<float>(p.neuron.beta);
    const bool repeated = p.grad_x.data != nullptr && p.grad_x.t == 0, sums = p.partials != nullptr,
               leaks = sums && p.prelude.rate != nullptr;
    const int resident = static_cast<int>(p.resident);
    const int chunks = static_cast<int>((p.steps + resident - 1) / resident);  // of steps
    float* const checkpoints =
        p.checkpoints +
        (static_cast<int64>(blockIdx.x) * (chunks - 1) * kThreads + static_cast<int64>(threadIdx.x)) * V;

    // From g, the gradient of the current.
    const auto input_gradient = [&](const float (&g)[V], const Vector<T, V>& x) {
        Vector<T, V> to;
        float factor[V], slopes[V], centers[V], offsets[V];
        cell.scale.get(factor);
        if (p.slope != nullptr) {
            slope.get(slopes);
            center.get(centers);
            offset.get(offsets);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float scaled = g[v] * factor[v];
            round_to(to.at[v],
                     p.slope == nullptr ? scaled : scaled + (slopes[v] * (widened(x.at[v]) - centers[v]) + offsets[v]));
        }
        return to;
    };

    float sum_g[place.kWidth] = {}, sum_gx[place.kWidth] = {}, sum_rate[place.kWidth] = {};
    for (; place.valid(); place.next()) {
        float potential[V], grad_v[V];
        const T* x_at = place.template in<const T>(p.x);
        // Loads a chunk's steps, kAhead at once, and integrates them.
        const auto record = [&](int chunk, int steps, bool with_gradients) {
            const int64 first = static_cast<int64>(chunk) * resident;
            const T* grad_at = place.template in<const T>(p.grad_spikes);
            for (int t = 0; t < steps; t += kAhead) {
                Vector<T, V> x[kAhead], grad[kAhead] = {};
                load_steps(x, x_at + (first + t) * p.x.t, p.x.t, steps - t);
                if (with_gradients)
                    load_steps(grad, grad_at + (first + t) * p.grad_spikes.t, p.grad_spikes.t, steps - t);
#pragma unroll
                for (int k = 0; k < kAhead; ++k) {
                    if (k >= steps - t) break;
                    tape.x(t + k) = x[k];
                    tape.grad(t + k) = grad[k];
                }
            }
#pragma unroll 1
            for (int t = 0; t < steps; ++t) {
                float h[V];
                cell.step(tape.x(t), h, potential);
                tape.put_h(t, h);
            }
        };
        initial(potential, p.v_init, place, cell.rest);
        for (int c = 0; c < chunks - 1; ++c) {
            record(c, resident, false);
            store_state(checkpoints + static_cast<int64>(c) * kThreads * V, potential);
        }
        const auto restart = [&](float (&v)[V], int chunk) {  // v in front of a chunk's steps
            if (chunk == 0)
                initial(v, p.v_init, place, cell.rest);
            else
                load_floats(v, checkpoints + static_cast<int64>(chunk - 1) * kThreads * V, 4);
        };
        initial(grad_v, p.grad_v, place, 0.0f);
        if (repeated) tape.put_h(resident, {});
        for (int c = chunks - 1; c >= 0; --c) {
            const int64 first = static_cast<int64>(c) * resident;
            const int steps = c == chunks - 1 ? static_cast<int>(p.steps - first) : resident;
            if (c < chunks - 1) restart(potential, c);
            record(c, steps, p.grad_spikes.data != nullptr);

            T* out = place.template in<T>(p.grad_x) + (first + steps) * p.grad_x.t;
#pragma unroll 1
            for (int t = steps - 1; t >= 0; --t) {
                float h[V], at_h[V], g_h[V], derivatives[V];
                tape.get_h(t, h);
                with_surrogate(p.neuron.surrogate, [&](auto s) {
#pragma unroll
                    for (int v = 0; v < V; ++v) at_h[v] = decltype(s)::slope(h[v] - cell.threshold, alpha, beta);
                });
                const Vector<T, V> g_s = tape.grad(t);
                with_reset(p.neuron.reset, [&](auto r) {
                    using Reset = decltype(r);
                    const float at_rest = Reset::rest(cell.rest);
#pragma unroll
                    for (int v = 0; v < V; ++v) {
                        const float spike = widened(g_s.at[v]);
                        g_h[v] = p.neuron.detach ? Reset::template grad_h<true>(spike, grad_v[v], h[v], at_h[v],
                                                                                cell.threshold, at_rest)
                                                 : Reset::template grad_h<false>(spike, grad_v[v], h[v], at_h[v],
                                                                                 cell.threshold, at_rest);
                    }
                });
                const Vector<T, V> x = tape.x(t);
                if (leaks) {
                    float before[V], scales[V], shifts[V], by_rate[V];  // before: v in front of this step
                    if (t > 0) {
                        tape.get_h(t - 1, h);
                        cell.after(h, before);
                    } else {
                        restart(before, c);
                    }
                    cell.scale.get(scales);
                    cell.shift.get(shifts);
                    with_charge(p.neuron.charge, [&](auto charge) {
#pragma unroll
                        for (int v = 0; v < V; ++v) {
                            const float y = widened(x.at[v]) * scales[v] + shifts[v];
                            by_rate[v] = g_h[v] * decltype(charge)::by_leak(before[v], y, cell.rest);
                        }
                    });
                    accumulate(sum_rate, by_rate);
                }
                by_v.get(derivatives);
                for (int v = 0; v < V; ++v) grad_v[v] = g_h[v] * derivatives[v];
                by_x.get(derivatives);
                for (int v = 0; v < V; ++v) g_h[v] *= derivatives[v];  // from here on: of the current
                if (sums) {
                    float by_scale[V];
                    center.get(by_scale);
#pragma unroll
                    for (int v = 0; v < V; ++v) by_scale[v] = g_h[v] * (widened(x.at[v]) - by_scale[v]);
                    accumulate(sum_g, g_h);
                    accumulate(sum_gx, by_scale);
                }
                out -= p.grad_x.t;
                if (repeated) {
                    tape.get_h(resident, h);
                    for (int v = 0; v < V; ++v) g_h[v] += h[v];
                    tape.put_h(resident, g_h);
                } else if (p.grad_x.data != nullptr) {
                    store_global(out, input_gradient(g_h, x));
                }
            }
        }
        if (repeated) {
            float sum[V];
            tape.get_h(resident, sum);
            store_global(place.template in<T>(p.grad_x), input_gradient(sum, load<T, V>(x_at)));
        }
        if (p.grad_v_init.data != nullptr) store_state(place.template in<float>(p.grad_v_init), grad_v);
    }
    if (!sums) return;
    place.put(p.partials, 0, sum_g);
    place.put(p.partials, 1, sum_gx);
    if (leaks) place.put(p.partials, 2, sum_rate);
}

}  // namespace sca
