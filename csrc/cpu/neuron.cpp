#include "neuron.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "isa.h"

namespace sca {
namespace {

// A tile's time steps stay in the second-level cache between the two halves of the backward pass.
constexpr int64_t kTapeElements = 1 << 15;
constexpr int64_t kMostLanes = 1024, kLeastLanes = 64;
// Outputs larger than this are written past the caches: they would not stay there, and reading the lines that are about to
// be overwritten costs a third of the traffic.
constexpr int64_t kStreamBytes = int64_t{8} << 20;
// Below this much work, starting threads costs more than it saves.
constexpr int64_t kThreadElements = 1 << 14;

// ---- memory ----------------------------------------------------------------------------------------------------------

// Scratch of one thread, kept between calls. Rows are spaced so that equal lanes of different rows don't compete for the same
// cache set.
class Scratch {
  public:
    Scratch(int64_t rows, int64_t lanes) : step_((lanes + 15) / 16 * 16 + 16) {
        const size_t wanted = static_cast<size_t>(rows * step_) + 16;
        if (memory().size < wanted) memory() = {std::make_unique<float[]>(wanted), wanted};
        next_ = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory().data.get()) + 63) / 64 * 64);
    }
    int64_t step() const { return step_; }
    float* rows(int64_t count) {
        float* first = next_;
        next_ += count * step_;
        return first;
    }

  private:
    struct Memory {
        std::unique_ptr<float[]> data;
        size_t size = 0;
    };
    static Memory& memory() {
        static thread_local Memory kept;
        return kept;
    }
    int64_t step_;
    float* next_;
};

struct Rows {
    const float* data;
    int64_t step;
};

// Time steps [first, first + count) as float32: in place where memory is already that, else converted into `buffer`.
Rows read(const Kernels& k, const Cursor& from, int64_t first, int64_t count, int64_t lanes, float* buffer, int64_t step) {
    if (from.dtype == DType::float32 && from.lane == 1) return {reinterpret_cast<const float*>(from.data) + first * from.t, from.t};
    for (int64_t i = 0; i < count; ++i) {
        float* to = buffer + i * step;
        if (from.dtype == DType::float32) {
            const float* row = reinterpret_cast<const float*>(from.data) + (first + i) * from.t;
            for (int64_t l = 0; l < lanes; ++l) to[l] = row[l * from.lane];
        } else {
            const uint16_t* row = reinterpret_cast<const uint16_t*>(from.data) + (first + i) * from.t;
            if (from.lane == 1)
                k.widen(row, to, lanes);
            else
                for (int64_t l = 0; l < lanes; ++l) to[l] = bits_as<float>(static_cast<uint32_t>(row[l * from.lane]) << 16);
        }
    }
    return {buffer, step};
}

void read_copy(const Kernels& k, const Cursor& from, int64_t lanes, float* to) {
    const Rows rows = read(k, from, 0, 1, lanes, to, 0);
    if (rows.data != to) std::memcpy(to, rows.data, lanes * sizeof(float));
}

bool in_place(const Cursor& to) { return to.dtype == DType::float32 && to.lane == 1; }

void write(const Kernels& k, const Cursor& to, int64_t first, int64_t count, int64_t lanes, float* buffer, int64_t step, bool stream) {
    for (int64_t i = 0; i < count; ++i) {
        float* from = buffer + i * step;
        if (to.dtype == DType::float32) {
            float* row = reinterpret_cast<float*>(to.data) + (first + i) * to.t;
            if (to.lane == 1 && stream)
                k.stream(from, row, lanes);
            else if (to.lane == 1)
                std::memcpy(row, from, lanes * sizeof(float));
            else
                for (int64_t l = 0; l < lanes; ++l) row[l * to.lane] = from[l];
        } else {
            uint16_t* row = reinterpret_cast<uint16_t*>(to.data) + (first + i) * to.t;
            if (to.lane == 1)
                k.narrow(from, row, lanes);
            else
                for (int64_t l = 0; l < lanes; ++l) k.narrow(from + l, row + l * to.lane, 1);
        }
    }
}

// An absent tensor is a constant one.
View or_constant(const View& view, const float* constant) {
    View filled = view;
    if (filled.data == nullptr) filled.data = const_cast<float*>(constant);
    return filled;
}

// ---- channels --------------------------------------------------------------------------------------------------------

// Gives each lane its channel's value.
void spread(const float* per_channel, float otherwise, const Part& part, int64_t rows, float* to) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < part.channels; ++c, to += part.length)
            std::fill_n(to, part.length, per_channel == nullptr ? otherwise : per_channel[part.channel + c]);
}

// Adds lanes up per channel, in an order that depends on the part alone.
template <class T>
void fold(const T* lanes, const Part& part, int64_t rows, double* sums) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < part.channels; ++c, lanes += part.length) {
            double partial[8] = {};
            int64_t l = 0;
            for (; l + 8 <= part.length; l += 8)
                for (int j = 0; j < 8; ++j) partial[j] += lanes[l + j];
            double sum = ((partial[0] + partial[1]) + (partial[2] + partial[3])) + ((partial[4] + partial[5]) + (partial[6] + partial[7]));
            for (; l < part.length; ++l) sum += lanes[l];
            sums[c] += sum;
        }
    }
}

// Sums per block and channel; combined in block order, so that the result is the same for any number of threads.
class Sums {
  public:
    Sums(const Layout& layout, int kinds) : kinds_(kinds) {
        for (const Part& part : layout.parts) channels_ = std::max(channels_, part.channels);
        partial_.resize(layout.blocks.size() * kinds_ * channels_);
        total_.resize(kinds_ * layout.shape.c);
        all_channels_ = layout.shape.c;
    }
    double* partial(int64_t block, int kind) { return partial_.data() + (block * kinds_ + kind) * channels_; }
    const double* total(int kind) const { return total_.data() + kind * all_channels_; }
    void combine(const Group& group) {
        for (int kind = 0; kind < kinds_; ++kind) {
            double* total = total_.data() + kind * all_channels_ + group.channel;
            std::fill_n(total, group.channels, 0.0);
            for (int64_t b = group.first; b < group.last; ++b)
                for (int64_t c = 0; c < group.channels; ++c) total[c] += partial(b, kind)[c];
        }
    }

  private:
    int kinds_;
    int64_t channels_ = 0, all_channels_;
    std::vector<double> partial_, total_;
};

// ---- parallelism -----------------------------------------------------------------------------------------------------

template <class Work>
void parallel_for(int64_t first, int64_t last, int threads, const Work& work) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t i = first; i < last; ++i) work(i);
}

int useful_threads(const Input& in) {
    return in.shape.t * in.shape.n * in.shape.c * in.shape.s < kThreadElements ? 1 : std::max(1, in.threads);
}

// Runs work(group, threads) for all groups: groups side by side where there are enough of them (a channel's data then stays in
// one core's cache between two passes), else one after the other, each on all threads.
template <class Work>
void for_groups(const Layout& layout, int threads, const Work& work) {
    const int64_t groups = static_cast<int64_t>(layout.groups.size());
    const bool side_by_side = groups >= 4 * threads;
    parallel_for(0, groups, side_by_side ? threads : 1, [&](int64_t g) { work(layout.groups[g], side_by_side ? 1 : threads); });
}

bool empty(const Shape& s) { return s.n == 0 || s.c == 0 || s.s == 0; }

int64_t bytes(const Shape& s, DType dtype) { return s.t * s.n * s.c * s.s * (dtype == DType::float32 ? 4 : 2); }

void end_of_stream(bool streamed) {
#if defined(__SSE2__)
    if (streamed) _mm_sfence();
#endif
}

// ---- forward ---------------------------------------------------------------------------------------------------------

class Forward {
  public:
    Forward(const Neuron& neuron, const Input& in, const ForwardOutput& out)
        : layout({in.shape}, {&in.x, &out.spikes, &in.v_init, &out.v}, kMostLanes),
          neuron_(neuron), in_(in), out_(out), k_(kernels()), sums_(layout, 2),
          x_{in.x}, v_init_(or_constant(in.v_init, &neuron_.rest)),
          stream_(bytes(in.shape, out.spikes.dtype) > kStreamBytes) {}

    const Layout layout;

    void run(const Group& group, int threads) {
        parallel_for(group.first, group.last, threads, [&](int64_t b) { run(b); });
        sums_.combine(group);
        for (int64_t c = group.channel; c < group.channel + group.channels; ++c) {
            out_.count[c] = static_cast<int64_t>(sums_.total(0)[c]);
            out_.l1[c] = static_cast<float>(sums_.total(1)[c]);
        }
    }

  private:
    void run(int64_t b) {
        const Block& block = layout.blocks[b];
        const Part& part = layout.parts[block.part];
        const int64_t most_rows = layout.most_rows(), most = part.lanes() * most_rows, steps = in_.shape.t;

        Scratch scratch(2 * kSteps + 7, layout.most_lanes());
        const int64_t step = scratch.step();
        float* x_buffer = scratch.rows(kSteps);
        float* s_buffer = scratch.rows(kSteps);
        float* v = scratch.rows(1);
        float* l1 = scratch.rows(1);
        int32_t* count = reinterpret_cast<int32_t*>(scratch.rows(1));
        float* rate = scratch.rows(1);
        float* scale = scratch.rows(1);
        float* shift = scratch.rows(1);
        float* gate = scratch.rows(1);
        const bool prelude = in_.scale != nullptr || in_.shift != nullptr;
        spread(in_.rate, neuron_.rate, part, most_rows, rate);
        if (prelude) {
            spread(in_.scale, 1.0f, part, most_rows, scale);
            spread(in_.shift, 0.0f, part, most_rows, shift);
        }
        bool gated = false;
        if (out_.mask != nullptr) {
            float* to = gate;
            for (int64_t r = 0; r < most_rows; ++r) {
                for (int64_t c = part.channel; c < part.channel + part.channels; ++c, to += part.length) {
                    std::fill_n(to, part.length, out_.mask[c] ? 1.0f : 0.0f);
                    gated = gated || !out_.mask[c];
                }
            }
        }
        std::fill_n(l1, most, 0.0f);
        std::fill_n(count, most, 0);
        Lanes lanes{0, neuron_.threshold, neuron_.rest, 0, 0, rate, scale, shift, nullptr, nullptr};

        for (int64_t tile = block.first; tile < block.last; ++tile) {
            lanes.size = part.lanes() * layout.rows(tile);
            const Cursor x = layout.at(x_, part, tile), s = layout.at(out_.spikes, part, tile);
            read_copy(k_, layout.at(v_init_, part, tile), lanes.size, v);
            const bool direct = in_place(s) && !gated && !stream_;
            for (int64_t t = 0; t < steps;) {
                const int64_t now = steps - t >= kSteps ? kSteps : 1;
                const Rows rows = read(k_, x, t, now, lanes.size, x_buffer, step);
                float* to = direct ? reinterpret_cast<float*>(s.data) + t * s.t : s_buffer;
                k_.fire[neuron_.charge][neuron_.reset][prelude][now == kSteps](lanes, rows.data, rows.step, to, direct ? s.t : step, v,
                                                                             count, l1);
                if (!direct) {
                    for (int64_t i = 0; gated && i < now; ++i) k_.multiply(gate, s_buffer + i * step, lanes.size);
                    write(k_, s, t, now, lanes.size, s_buffer, step, stream_);
                }
                t += now;
            }
            if (out_.v.data != nullptr) write(k_, layout.at(out_.v, part, tile), 0, 1, lanes.size, v, 0, false);
        }
        fold(count, part, most_rows, sums_.partial(b, 0));
        fold(l1, part, most_rows, sums_.partial(b, 1));
        end_of_stream(stream_);
    }

    const Neuron& neuron_;
    const Input& in_;
    const ForwardOutput& out_;
    const Kernels& k_;
    Sums sums_;
    const View x_, v_init_;
    const bool stream_;
};

// ---- backward --------------------------------------------------------------------------------------------------------

// dL/dx = a g_y + (b (x - center) + d), per channel; without batch norm a = scale and the rest is zero.
struct PreludeAdjoint {
    const float *a, *b, *d, *center;
};

class Backward {
  public:
    enum Kind { kScale, kShift, kRate, kKinds };

    Backward(const Neuron& neuron, const Input& in, const BackwardInput& grad, const BackwardOutput& out, PreludeAdjoint prelude)
        : layout({in.shape}, {&in.x, &out.x, &grad.spikes, &in.v_init, &grad.v, &out.v_init},
                 std::min(kMostLanes, std::max(kLeastLanes, kTapeElements / in.shape.t / 16 * 16))),
          neuron_(neuron), in_(in), out_(out), prelude_(prelude), k_(kernels()), sums_(layout, kKinds),
          v_init_(or_constant(in.v_init, &neuron_.rest)), g_s_(or_constant(grad.spikes, &zero_)), g_v_(or_constant(grad.v, &zero_)),
          stream_(bytes(in.shape, in.x.dtype) > kStreamBytes) {}

    const Layout layout;

    // Either half can run alone: batch norm needs its sums before it can write anything.
    void run(const Group& group, int threads, bool sums, bool outputs) {
        parallel_for(group.first, group.last, threads, [&](int64_t b) { run(b, sums, outputs); });
        sums_.combine(group);
    }
    double sum(Kind kind, int64_t channel) const { return sums_.total(kind)[channel]; }

  private:
    void run(int64_t b, bool sums, bool outputs) {
        const Block& block = layout.blocks[b];
        const Part& part = layout.parts[block.part];
        const int64_t most_rows = layout.most_rows(), most = part.lanes() * most_rows, steps = in_.shape.t;
        const bool prelude = in_.scale != nullptr || in_.shift != nullptr;
        const bool leak = outputs && out_.rate != nullptr;
        const bool to_x = outputs && out_.x.data != nullptr;
        const bool summed = out_.x.t == 0 && steps > 1;
        sums = sums && prelude;

        Scratch scratch(steps + 3 * kSteps + 17, layout.most_lanes());
        const int64_t step = scratch.step();
        float* h = scratch.rows(steps);
        float* x_buffer = scratch.rows(kSteps);
        float* g_s_buffer = scratch.rows(kSteps);
        float* g_buffer = scratch.rows(kSteps);
        float* v = scratch.rows(1);
        float* v_start = scratch.rows(1);
        float* g_v = scratch.rows(1);
        float* total = scratch.rows(1);
        const auto lane_values = [&](const float* per_channel, float otherwise) {
            float* to = scratch.rows(1);
            spread(per_channel, otherwise, part, most_rows, to);
            return to;
        };
        const auto zeros = [&] {
            float* to = scratch.rows(1);
            std::fill_n(to, most, 0.0f);
            return to;
        };
        float* rate = lane_values(in_.rate, neuron_.rate);
        float *by_v = scratch.rows(1), *by_x = scratch.rows(1), *ones = nullptr;
        k_.derivatives[neuron_.charge](rate, by_v, by_x, most);
        float *g_scale = nullptr, *g_shift = nullptr, *g_rate = nullptr;
        float *scale = nullptr, *shift = nullptr, *center = nullptr, *a = nullptr, *d = nullptr, *slope = nullptr;
        if (prelude) {
            scale = lane_values(in_.scale, 1.0f);
            shift = lane_values(in_.shift, 0.0f);
            center = lane_values(prelude_.center, 0.0f);
            a = lane_values(prelude_.a, 1.0f);
            slope = lane_values(prelude_.b, 0.0f);
            d = lane_values(prelude_.d, 0.0f);
        }
        if (sums) g_scale = zeros(), g_shift = zeros();
        if (leak) g_rate = zeros(), ones = lane_values(nullptr, 1.0f);
        // With a learned leak the kernel hands back dL/dh, which leak_adjoint turns into dL/dy.
        Lanes lanes{0, neuron_.threshold, neuron_.rest, neuron_.alpha, neuron_.beta, rate, scale, shift, by_v, leak ? ones : by_x};

        for (int64_t tile = block.first; tile < block.last; ++tile) {
            lanes.size = part.lanes() * layout.rows(tile);
            const Cursor x = layout.at(in_.x, part, tile), g_s = layout.at(g_s_, part, tile), g_x = layout.at(out_.x, part, tile);
            read_copy(k_, layout.at(v_init_, part, tile), lanes.size, v);
            if (leak) std::memcpy(v_start, v, lanes.size * sizeof(float));
            for (int64_t t = 0; t < steps;) {
                const int64_t now = steps - t >= kSteps ? kSteps : 1;
                const Rows rows = read(k_, x, t, now, lanes.size, x_buffer, step);
                k_.charge[neuron_.charge][neuron_.reset][prelude][now == kSteps](lanes, rows.data, rows.step, h + t * step, step, v);
                t += now;
            }
            read_copy(k_, layout.at(g_v_, part, tile), lanes.size, g_v);
            if (summed) std::fill_n(total, lanes.size, 0.0f);
            const bool direct = to_x && in_place(g_x) && !stream_ && !prelude && !leak && !summed;
            for (int64_t t = steps; t > 0;) {
                const int64_t now = t >= kSteps ? kSteps : 1;
                t -= now;
                const Rows grad = read(k_, g_s, t, now, lanes.size, g_s_buffer, step);
                float* g = direct ? reinterpret_cast<float*>(g_x.data) + t * g_x.t : g_buffer;
                k_.adjoint[neuron_.surrogate][neuron_.reset][neuron_.detach_reset][now == kSteps](
                    lanes, h + t * step, step, grad.data, grad.step, g, direct ? g_x.t : step, g_v);
                if (direct) continue;
                const Rows rows = prelude || leak ? read(k_, x, t, now, lanes.size, x_buffer, step) : Rows{};
                for (int64_t i = 0; i < now; ++i) {
                    float* g_row = g_buffer + i * step;
                    const float* x_row = rows.data + i * rows.step;
                    if (leak) {
                        const float* before = v_start;
                        if (t + i > 0) k_.reset[neuron_.reset](lanes, h + (t + i - 1) * step, v), before = v;
                        k_.leak_adjoint[neuron_.charge][prelude](lanes, x_row, before, by_x, g_row, g_rate);
                    }
                    if (sums) k_.prelude_sums(g_row, x_row, center, g_scale, g_shift, lanes.size);
                    if (summed)
                        k_.add(g_row, total, lanes.size);
                    else if (prelude && to_x)
                        k_.prelude_adjoint(x_row, center, a, slope, d, g_row, lanes.size);
                }
                if (to_x && !summed) write(k_, g_x, t, now, lanes.size, g_buffer, step, stream_);
            }
            if (to_x && summed) {
                if (prelude) k_.prelude_adjoint(read(k_, x, 0, 1, lanes.size, x_buffer, step).data, center, a, slope, d, total, lanes.size);
                write(k_, g_x, 0, 1, lanes.size, total, step, false);
            }
            if (outputs && out_.v_init.data != nullptr) write(k_, layout.at(out_.v_init, part, tile), 0, 1, lanes.size, g_v, 0, false);
        }
        if (sums) fold(g_scale, part, most_rows, sums_.partial(b, kScale)), fold(g_shift, part, most_rows, sums_.partial(b, kShift));
        if (leak) fold(g_rate, part, most_rows, sums_.partial(b, kRate));
        end_of_stream(stream_ && to_x);
    }

    const float zero_ = 0.0f;
    const Neuron& neuron_;
    const Input& in_;
    const BackwardOutput& out_;
    const PreludeAdjoint prelude_;
    const Kernels& k_;
    Sums sums_;
    const View v_init_, g_s_, g_v_;
    const bool stream_;
};

template <class From, class To>
void round_to(const From& value, int64_t channels, To* to) {
    for (int64_t c = 0; to != nullptr && c < channels; ++c) to[c] = static_cast<To>(value(c));
}

// ---- batch norm ------------------------------------------------------------------------------------------------------

// Sums of x and x^2 in double over one presentation.
void moments(const Kernels& k, const Input& in, const Layout& layout, int64_t b, double* sum, double* square) {
    const Block& block = layout.blocks[b];
    const Part& part = layout.parts[block.part];
    const int64_t steps = in.x.t == 0 ? 1 : in.shape.t, most = part.lanes() * layout.most_rows();
    Scratch scratch(5, layout.most_lanes());
    float* buffer = scratch.rows(1);
    double* sums = reinterpret_cast<double*>(scratch.rows(2));
    double* squares = reinterpret_cast<double*>(scratch.rows(2));
    std::fill_n(sums, most, 0.0);
    std::fill_n(squares, most, 0.0);
    for (int64_t tile = block.first; tile < block.last; ++tile) {
        const Cursor x = layout.at(in.x, part, tile);
        const int64_t lanes = part.lanes() * layout.rows(tile);
        for (int64_t t = 0; t < steps; ++t) k.moments(read(k, x, t, 1, lanes, buffer, 0).data, sums, squares, lanes);
    }
    fold(sums, part, layout.most_rows(), sum);
    fold(squares, part, layout.most_rows(), square);
}

}  // namespace

Neuron make_neuron(const std::string& neuron, double tau, double v_threshold, bool soft_reset, double v_rest, bool decay_input,
                   bool detach_reset, const std::string& surrogate, double alpha, double beta) {
    static const char* const names[] = {
#define SCA_ROW(index, Surrogate, name) name,
        SCA_SURROGATES(SCA_ROW)
#undef SCA_ROW
    };
    Neuron made{};
    int exponent;
    const bool exact = std::frexp(tau, &exponent) == 0.5;  // 1 / tau is exact
    const bool multiplies = neuron == "plif" || exact;
    if (neuron == "if")
        made.charge = 0;
    else if (neuron == "lif" || neuron == "plif")
        made.charge = (decay_input ? 1 : 3) + (multiplies ? 1 : 0);
    else
        throw std::invalid_argument("neuron: expected one of if, lif, plif, got '" + neuron + "'");
    made.rate = static_cast<float>(multiplies ? 1.0 / tau : tau);
    made.reset = soft_reset ? 1 : 0;
    made.surrogate = static_cast<int>(std::find(names, names + kSurrogates, surrogate) - names);
    if (made.surrogate == kSurrogates) throw std::invalid_argument("surrogate: '" + surrogate + "' is not compiled in");
    made.detach_reset = detach_reset;
    made.threshold = static_cast<float>(v_threshold);
    made.rest = static_cast<float>(v_rest);
    made.alpha = static_cast<float>(alpha);
    made.beta = static_cast<float>(beta);
    return made;
}

void neuron_forward(const Neuron& neuron, const Input& in, const ForwardOutput& out) {
    std::fill_n(out.count, in.shape.c, 0);
    std::fill_n(out.l1, in.shape.c, 0.0f);
    if (empty(in.shape)) return;
    Forward forward(neuron, in, out);
    for_groups(forward.layout, useful_threads(in), [&](const Group& group, int threads) { forward.run(group, threads); });
}

void neuron_backward(const Neuron& neuron, const Input& in, const BackwardInput& grad, const BackwardOutput& out) {
    for (float* sum : {out.scale, out.shift, out.rate})
        if (sum != nullptr) std::fill_n(sum, in.shape.c, 0.0f);
    if (empty(in.shape)) return;
    Backward backward(neuron, in, grad, out, {in.scale, nullptr, nullptr, nullptr});
    for_groups(backward.layout, useful_threads(in),
               [&](const Group& group, int threads) { backward.run(group, threads, true, true); });
    round_to([&](int64_t c) { return backward.sum(Backward::kScale, c); }, in.shape.c, out.scale);
    round_to([&](int64_t c) { return backward.sum(Backward::kShift, c); }, in.shape.c, out.shift);
    round_to([&](int64_t c) { return backward.sum(Backward::kRate, c); }, in.shape.c, out.rate);
}

namespace {

// Per-channel numbers of batch norm, from the rounded statistics, in double (method.md, section 4).
struct Normalisation {
    const BatchNorm& norm;
    const float *mean, *var;

    double rstd(int64_t c) const { return 1.0 / std::sqrt(static_cast<double>(var[c]) + norm.eps); }
    double scale(int64_t c) const { return norm.weight == nullptr ? rstd(c) : rstd(c) * static_cast<double>(norm.weight[c]); }
    double shift(int64_t c) const {
        const double moved = -static_cast<double>(mean[c]) * scale(c);
        return norm.bias == nullptr ? moved : moved + static_cast<double>(norm.bias[c]);
    }
};

}  // namespace

void batch_norm_forward(const Neuron& neuron, const BatchNorm& norm, const Input& given, const ForwardOutput& out, float* mean,
                        float* var) {
    const int64_t channels = given.shape.c;
    std::fill_n(out.count, channels, 0);
    std::fill_n(out.l1, channels, 0.0f);
    std::fill_n(mean, channels, std::nanf(""));
    std::fill_n(var, channels, std::nanf(""));
    if (empty(given.shape)) return;
    std::vector<float> scale(channels), shift(channels);
    Input in = given;
    in.scale = scale.data();
    in.shift = shift.data();
    Forward forward(neuron, in, out);
    Sums sums(forward.layout, 2);
    const double count = static_cast<double>((in.x.t == 0 ? 1 : in.shape.t) * in.shape.n * in.shape.s);
    for_groups(forward.layout, useful_threads(in), [&](const Group& group, int threads) {
        parallel_for(group.first, group.last, threads, [&](int64_t b) {
            moments(kernels(), in, forward.layout, b, sums.partial(b, 0), sums.partial(b, 1));
        });
        sums.combine(group);
        const Normalisation numbers{norm, mean, var};
        for (int64_t c = group.channel; c < group.channel + group.channels; ++c) {
            const double average = sums.total(0)[c] / count;
            mean[c] = static_cast<float>(average);
            var[c] = static_cast<float>(std::max(0.0, sums.total(1)[c] / count - average * average));
            scale[c] = static_cast<float>(numbers.scale(c));
            shift[c] = static_cast<float>(numbers.shift(c));
        }
        forward.run(group, threads);
    });
}

void batch_norm_backward(const Neuron& neuron, const BatchNorm& norm, const Input& given, const float* mean, const float* var,
                         const BackwardInput& grad, const BackwardOutput& out) {
    const int64_t channels = given.shape.c;
    for (float* sum : {out.scale, out.shift, out.rate})
        if (sum != nullptr) std::fill_n(sum, channels, 0.0f);
    if (empty(given.shape)) return;
    std::vector<float> scale(channels), shift(channels), slope(channels), offset(channels);
    const Normalisation numbers{norm, mean, var};
    round_to([&](int64_t c) { return numbers.scale(c); }, channels, scale.data());
    round_to([&](int64_t c) { return numbers.shift(c); }, channels, shift.data());
    Input in = given;
    in.scale = scale.data();
    in.shift = shift.data();
    Backward backward(neuron, in, grad, out, {scale.data(), slope.data(), offset.data(), mean});
    const double count = static_cast<double>(in.shape.t * in.shape.n * in.shape.s);
    const double presentations = out.x.t == 0 ? static_cast<double>(in.shape.t) : 1.0;
    for_groups(backward.layout, useful_threads(in), [&](const Group& group, int threads) {
        backward.run(group, threads, true, false);
        for (int64_t c = group.channel; c < group.channel + group.channels; ++c) {
            const double rstd = numbers.rstd(c), factor = -numbers.scale(c) * presentations / count;
            slope[c] = static_cast<float>(factor * rstd * rstd * backward.sum(Backward::kScale, c));
            offset[c] = static_cast<float>(factor * backward.sum(Backward::kShift, c));
        }
        backward.run(group, threads, false, true);
    });
    round_to([&](int64_t c) { return backward.sum(Backward::kScale, c) * numbers.rstd(c); }, channels, out.scale);
    round_to([&](int64_t c) { return backward.sum(Backward::kShift, c); }, channels, out.shift);
    round_to([&](int64_t c) { return backward.sum(Backward::kRate, c); }, channels, out.rate);
}

}  // namespace sca
