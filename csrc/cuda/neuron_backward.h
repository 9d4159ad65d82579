#pragma once

#include "batch_norm.h"
#include "neuron.h"

namespace sca {

// What a thread keeps per step, in shared memory, since registers can't be indexed at run time: h, and x and dL/ds as
// they came; h, the last, may have a slot more, for a sum over all steps. No other thread looks at it, so there is
// nothing to wait for.
template <class T, int V>
class Tape {
    static constexpr int kAccess = V < 4 ? V : 4;

  public:
    SCA_DEVICE Tape(unsigned char* memory, int steps) {
        const int thread = static_cast<int>(threadIdx.x);
        grad_ = reinterpret_cast<Vector<T, V>*>(memory) + thread;
        x_ = grad_ + steps * kThreads;
        h_ = reinterpret_cast<float*>(memory + 2 * steps * kThreads * sizeof(Vector<T, V>)) + thread * kAccess;
    }

    SCA_DEVICE void put_h(int k, const float (&h)[V]) { store_floats(h_ + k * kThreads * V, kThreads * kAccess, h); }
    SCA_DEVICE void get_h(int k, float (&h)[V]) const { load_floats(h, h_ + k * kThreads * V, kThreads * kAccess); }
    SCA_DEVICE Vector<T, V>& grad(int k) { return grad_[k * kThreads]; }
    SCA_DEVICE Vector<T, V>& x(int k) { return x_[k * kThreads]; }

  private:
    float* h_;
    Vector<T, V>* grad_;
    Vector<T, V>* x_;
};

SCA_DEVICE void write(void* to, int64 at, double value, int64 wide) {
    if (to == nullptr) return;
    if (wide != 0)
        static_cast<double*>(to)[at] = value;
    else
        static_cast<float*>(to)[at] = static_cast<float>(value);
}

// A gradient of channel `at` of a vector that may be longer: every entry that the list has not becomes zero, each once.
SCA_DEVICE void write_listed(void* to, const BackwardParameters& p, int64 channel, int64 at, double value) {
    if (to == nullptr) return;
    write(to, at, value, p.wide);
    const int64* const list = p.affine.channels;
    if (list == nullptr) return;
#pragma unroll 1
    for (int64 gap = channel == 0 ? 0 : list[channel - 1] + 1; gap < at; ++gap) write(to, gap, 0.0, p.wide);
    if (channel != p.tiles.channels - 1) return;
#pragma unroll 1
    for (int64 rest = at + 1; rest < p.grad_size; ++rest) write(to, rest, 0.0, p.wide);
}

// What is made of a channel's sums of g, g * (x - center) and the rate's and the threshold's gradients. Between the two
// passes of batch norm: gradients of its weight and bias, and what the gradient of x takes. Each presentation of x
// subtracts the mean of g, and the mean of g * (x - mean) times (x - mean) / (var + eps).
template <int Q>
SCA_DEVICE void finish_gradients(const BackwardParameters& p, int64 channel, const double (&found)[Q]) {
    const double g = found[0];
    double gx = found[1];
    int64 at = channel;
    if (p.coefficients != nullptr) {
        const int64 channels = p.tiles.channels;
        at = listed(p.affine.channels, channel);
        const AffineMap map(p.norm[channel], p.norm[channels + channel], p.affine, at);
        const double factor = -map.scale * p.presentations / p.count;
        p.coefficients[channel] = static_cast<float>(factor * map.rstd * map.rstd * gx);
        p.coefficients[channels + channel] = static_cast<float>(factor * g);
        gx *= map.rstd;
    }
    write_listed(p.first, p, channel, at, g);
    write_listed(p.second, p, channel, at, gx);
    write(p.third, channel, found[2], p.wide);
    if constexpr (Q > 3) write(p.fourth, channel, found[3], p.wide);
}

// With g the gradient of the input current: grad_x and the sums that the parameters list. h is recomputed from x,
// `resident` steps at a time, the last first; the others start from checkpoints. Behind the threshold nothing has to be
// rounded as the equations say: there this file fuses multiplications and additions.
template <class T, bool planes, int V, bool plain = true>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 && planes ? 3 : 2)
    neuron_backward(const BackwardParameters p) {
    Place<planes, V> place(p.tiles);
    float vector[place.kWidth], shifts[place.kWidth];
    place.of_channel(vector, p.prelude.scale, 1.0f);
    place.of_channel(shifts, p.prelude.shift, 0.0f);
    const Cell<planes, V, plain> cell(p.neuron, p.prelude, vector, shifts, place);
    constexpr int kFirst = cell.kVectors;
    PerChannel<planes, V> by_v(place, kFirst), by_x(place, kFirst + 1), center(place, kFirst + 2),
        slope(place, kFirst + 3), offset(place, kFirst + 4);
    float derivative[place.kWidth];
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

    const int resident = static_cast<int>(p.resident);
    Tape<T, V> tape(shared_memory() + (kFirst + 5) * PerChannel<planes, V>::bytes(place), resident);
    const float alpha = static_cast<float>(p.neuron.alpha), beta = static_cast<float>(p.neuron.beta);
    const bool repeated = p.grad_x != nullptr && p.repeated != 0, sums = p.partials.sums != nullptr,
               leaks = sums && p.prelude.rate != nullptr;
    const int chunks = static_cast<int>((p.steps + resident - 1) / resident);  // of steps
    const int64 step = place.step();
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
            const float of_norm =
                p.slope == nullptr ? 0.0f : fmaf(slopes[v], widened(x.at[v]) - centers[v], offsets[v]);
            round_to(to.at[v], p.slope == nullptr ? g[v] * factor[v] : fmaf(g[v], factor[v], of_norm));
        }
        return to;
    };

    float sum_g[place.kWidth] = {}, sum_gx[place.kWidth] = {}, sum_rate[place.kWidth] = {};
    [[maybe_unused]] float sum_threshold[place.kWidth] = {};
    const int tiles = static_cast<int>(p.tiles.tiles);
    for (int tile = 0; tile < tiles; ++tile, place.next()) {
        if (!place.valid()) continue;
        float potential[V], grad_v[V];
        const int64 at = place.dense();
        const T* x_at = place.template in<T>(p.x);
        // Loads a chunk's steps, kAhead at once, and integrates them.
        const auto record = [&](int chunk, int steps, bool with_gradients) {
            const int64 first = static_cast<int64>(chunk) * resident;
            const T* grad_at = place.template in<T>(p.grad_spikes);
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
        initial(potential, p.v_init, at, cell.rest);
        for (int c = 0; c < chunks - 1; ++c) {
            record(c, resident, false);
            store_state(checkpoints + static_cast<int64>(c) * kThreads * V, potential);
        }
        const auto restart = [&](float (&v)[V], int chunk) {  // v in front of a chunk's steps
            if (chunk == 0)
                initial(v, p.v_init, at, cell.rest);
            else
                load_floats(v, checkpoints + static_cast<int64>(chunk - 1) * kThreads * V, 4);
        };
        initial(grad_v, p.grad_v, at, 0.0f);
        if (repeated) tape.put_h(resident, {});
        for (int c = chunks - 1; c >= 0; --c) {
            const int64 first = static_cast<int64>(c) * resident;
            const int steps = c == chunks - 1 ? static_cast<int>(p.steps - first) : resident;
            if (c < chunks - 1) restart(potential, c);
            record(c, steps, p.grad_spikes.data != nullptr);

            T* out = static_cast<T*>(p.grad_x) + at + (first + steps) * step;
#pragma unroll 1
            for (int t = steps - 1; t >= 0; --t) {
                float h[V], at_h[V], g_h[V], derivatives[V];
                tape.get_h(t, h);
                const auto threshold = cell.levels.threshold(), fires_at = cell.levels.fires_at();
                with_surrogate(p.neuron.surrogate, [&](auto s) {
#pragma unroll
                    for (int v = 0; v < V; ++v) at_h[v] = decltype(s)::slope(h[v] - threshold[v], alpha, beta);
                });
                if constexpr (!plain)
                    for (int v = 0; v < V; ++v) at_h[v] *= static_cast<float>(p.neuron.gain);
                const Vector<T, V> g_s = tape.grad(t);
                with_reset(p.neuron.reset, [&](auto r) {
                    using Reset = decltype(r);
                    float through[V];  // dL/dh by the spike; then the threshold's gradient
                    const auto by = cell.levels.template by<Reset>();
#pragma unroll
                    for (int v = 0; v < V; ++v) {
                        const float spike = widened(g_s.at[v]);
                        through[v] = p.neuron.detach
                                         ? Reset::template by_spike<true>(spike, grad_v[v], h[v], at_h[v], by[v])
                                         : Reset::template by_spike<false>(spike, grad_v[v], h[v], at_h[v], by[v]);
                        g_h[v] = through[v] + Reset::carried(grad_v[v], h[v], fires_at[v]);
                    }
                    if constexpr (!plain) {
                        for (int v = 0; v < V; ++v) {
                            const float subtracted = Reset::subtracted(grad_v[v], h[v], fires_at[v]);
                            through[v] = -through[v] - (p.neuron.subtracts != 0 ? subtracted : 0.0f);
                        }
                        accumulate(sum_threshold, through);
                    }
                });
                if constexpr (!plain) {
                    if (p.grad_h != nullptr) {
                        float direct[V];
                        load_floats(direct, p.grad_h + at + (first + t) * step, 4);
                        for (int v = 0; v < V; ++v) g_h[v] += direct[v];
                    }
                }
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
                            by_rate[v] = decltype(charge)::by_leak(before[v], y, cell.rest);
                        }
                    });
                    accumulate(sum_rate, g_h, by_rate);
                }
                by_v.get(derivatives);
                for (int v = 0; v < V; ++v) grad_v[v] = g_h[v] * derivatives[v];
                by_x.get(derivatives);
                for (int v = 0; v < V; ++v) g_h[v] *= derivatives[v];  // from here on: of the current
                if (sums) {
                    float centered[V];
                    center.get(centered);
#pragma unroll
                    for (int v = 0; v < V; ++v) centered[v] = widened(x.at[v]) - centered[v];
                    accumulate(sum_g, g_h);
                    accumulate(sum_gx, g_h, centered);
                }
                out -= step;
                if (repeated) {
                    tape.get_h(resident, h);
                    for (int v = 0; v < V; ++v) g_h[v] += h[v];
                    tape.put_h(resident, g_h);
                } else if (p.grad_x != nullptr) {
                    store_global(out, input_gradient(g_h, x));
                }
            }
        }
        if (repeated) {
            float sum[V];
            tape.get_h(resident, sum);
            store_global(static_cast<T*>(p.grad_x) + at, input_gradient(sum, load<T, V>(x_at)));
        }
        if (p.grad_v_init != nullptr) store_state(p.grad_v_init + at, grad_v);
    }
    if (!sums) return;

    const ColumnSums<planes, V> columns(place);
    constexpr int kSums = plain ? 3 : 4;
    const int taken = plain && !leaks ? 2 : kSums;
    const BlockSums<kSums> blocks(p.tiles, p.partials, place, taken);
    if constexpr (!plain)
        columns.put(sum_g, sum_gx, sum_rate, sum_threshold);
    else if (leaks)
        columns.put(sum_g, sum_gx, sum_rate);
    else
        columns.put(sum_g, sum_gx);
    double totals[kSums] = {};
    blocks.own_columns([&](int column) {
#pragma unroll
        for (int q = 0; q < kSums; ++q)
            if (q < taken) totals[q] += columns.template get<float>(q, column);
    });
    blocks.put(totals, [&](int64 channel, const double(&found)[kSums]) { finish_gradients(p, channel, found); });
}

}  // namespace sca
