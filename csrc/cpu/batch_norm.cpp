#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backward.h"
#include "forward.h"
#include "isa.h"

namespace sca {
namespace {

// Per-channel numbers of batch norm from the rounded statistics, in double.
class AffineNorm {
  public:
    AffineNorm(const BatchNorm& norm, const float* mean, const float* var) : norm_(norm), mean_(mean), var_(var) {}

    double rstd(int64_t c) const { return 1.0 / std::sqrt(static_cast<double>(var_[c]) + norm_.eps); }
    double scale(int64_t c) const {
        return norm_.weight == nullptr ? rstd(c) : rstd(c) * static_cast<double>(norm_.weight[c]);
    }
    double shift(int64_t c) const {
        const double moved = -static_cast<double>(mean_[c]) * scale(c);
        return norm_.bias == nullptr ? moved : moved + static_cast<double>(norm_.bias[c]);
    }

  private:
    const BatchNorm& norm_;
    const float *mean_, *var_;
};

enum Moment { kSum, kSquare, kMoments };

// Sums of x and of x^2, in double.
void sum_moments(const Input& in, const Tiling& tiling, int64_t b, Sums& sums) {
    const int64_t steps = in.x.t == 0 ? 1 : in.shape.t;
    Scratch scratch(4, tiling.most_period(), kSteps);
    double *first = scratch.slot_doubles(), *second = scratch.slot_doubles();
    std::fill_n(first, tiling.most_period(), 0.0);
    std::fill_n(second, tiling.most_period(), 0.0);
    const Rows buffer = scratch.piece_rows(kSteps);
    const auto moments = kernels().moments[static_cast<int>(in.x.dtype)];
    const Task& task = tiling.tasks[b];
    Pieces piece(tiling, task);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        const LaneView x = piece.at(in.x), ahead = piece.ahead(next, in.x);
        for (int64_t t = 0; t < steps; t += kSteps) {
            const int64_t now = std::min(kSteps, steps - t);
            moments(piece.lanes({}), now, read(x, ahead, t, now, piece.size, buffer), first, second);
        }
    }
    const Span& span = tiling.spans[task.first_span];
    sums.drain(b, span, kSum, first);
    sums.drain(b, span, kSquare, second);
}

}  // namespace

void batch_norm_forward(const NeuronConfig& neuron, const BatchNorm& norm, const Input& given, const ForwardOutput& out,
                        float* statistics) {
    const int64_t channels = given.shape.c;
    clear(out, channels);
    std::fill_n(statistics, 4 * channels, std::numeric_limits<float>::quiet_NaN());
    if (empty(given.shape)) return;

    float *const mean = statistics, *const var = mean + channels, *const scale = var + channels,
                 *const shift = scale + channels;
    Input in = given;
    in.scale = scale;
    in.shift = shift;
    ForwardPass forward(neuron, in, out, Order::channels);
    Sums sums(forward.tiling, kMoments);
    const AffineNorm numbers(norm, mean, var);
    const double count = static_cast<double>((in.x.t == 0 ? 1 : in.shape.t) * in.shape.n * in.shape.s);
    for_stripes(forward.tiling, useful_threads(in.shape, in.threads), [&](const Stripe& stripe, int threads) {
        parallel_for(stripe.first, stripe.last, threads, [&](int64_t b) { sum_moments(in, forward.tiling, b, sums); });
        sums.combine(stripe);
        for (int64_t c = stripe.channel; c < stripe.channel + stripe.channels; ++c) {
            const double average = sums.of(kSum, c) / count;
            mean[c] = static_cast<float>(average);
            var[c] = static_cast<float>(std::max(0.0, sums.of(kSquare, c) / count - average * average));
            scale[c] = static_cast<float>(numbers.scale(c));
            shift[c] = static_cast<float>(numbers.shift(c));
        }
        forward.run(stripe, threads);
    });
}

void batch_norm_backward(const NeuronConfig& neuron, const BatchNorm& norm, const Input& given,
                         const float* statistics, const BackwardInput& grad, const BackwardOutput& out) {
    const int64_t channels = given.shape.c;
    clear(out, channels);
    if (empty(given.shape)) return;

    const float *const mean = statistics, *const var = mean + channels;
    std::vector<float> slope(channels), offset(channels);
    const AffineNorm numbers(norm, mean, var);
    Input in = given;
    in.scale = var + channels;
    in.shift = in.scale + channels;
    BackwardPass backward(neuron, in, grad, out, {in.scale, slope.data(), offset.data(), mean}, Order::channels);
    // Each presentation of x subtracts the two means once.
    const double presentations = out.x.t == 0 ? static_cast<double>(in.shape.t) : 1.0;
    const double count = static_cast<double>(in.shape.t * in.shape.n * in.shape.s);
    for_stripes(backward.tiling, useful_threads(in.shape, in.threads), [&](const Stripe& stripe, int threads) {
        static thread_local std::vector<float> memory;  // kept between calls
        const int64_t size = backward.parked_size(stripe);
        if (static_cast<int64_t>(memory.size()) < size + kLine) memory.resize(size + kLine);
        const uintptr_t line = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
        float* const parked = size > 0 ? reinterpret_cast<float*>(line) : nullptr;
        backward.run_sums(stripe, threads, parked);
        for (int64_t c = stripe.channel; c < stripe.channel + stripe.channels; ++c) {
            const double rstd = numbers.rstd(c), factor = -numbers.scale(c) * presentations / count;
            slope[c] = static_cast<float>(factor * rstd * rstd * backward.sum(BackwardPass::kScale, c));
            offset[c] = static_cast<float>(factor * backward.sum(BackwardPass::kShift, c));
            if (out.scale != nullptr) out.scale[c] = static_cast<float>(backward.sum(BackwardPass::kScale, c) * rstd);
            if (out.shift != nullptr) out.shift[c] = static_cast<float>(backward.sum(BackwardPass::kShift, c));
            if (out.rate != nullptr) out.rate[c] = static_cast<float>(backward.sum(BackwardPass::kRate, c));
            if (out.threshold != nullptr)
                out.threshold[c] = static_cast<float>(backward.sum(BackwardPass::kThreshold, c));
        }
        backward.run_x(stripe, threads, parked);
    });
}

void batch_norm_moments(const Input& in, double* out) {
    const int64_t channels = in.shape.c;
    std::fill_n(out, kMoments * channels, 0.0);
    if (empty(in.shape)) return;
    // In the order of batch_norm_forward, whose bits these are.
    const Tiling tiling(in.shape, {&in.x}, kMostLanes, Order::channels);
    Sums sums(tiling, kMoments);
    for_stripes(tiling, useful_threads(in.shape, in.threads), [&](const Stripe& stripe, int threads) {
        parallel_for(stripe.first, stripe.last, threads, [&](int64_t b) { sum_moments(in, tiling, b, sums); });
        sums.combine(stripe);
    });
    for (int kind = 0; kind < kMoments; ++kind)
        for (int64_t c = 0; c < channels; ++c) out[kind * channels + c] = sums.of(kind, c);
}

void batch_norm_sums(const NeuronConfig& neuron, const Input& in, const float* center, const BackwardInput& grad,
                     double* out) {
    const int64_t channels = in.shape.c;
    const int own = (in.rate != nullptr) + (in.threshold != nullptr);
    std::fill_n(out, (2 + own) * channels, 0.0);
    if (empty(in.shape)) return;
    const BackwardOutput none{};
    BackwardPass backward(neuron, in, grad, none, {in.scale, nullptr, nullptr, center}, Order::channels);
    for_stripes(backward.tiling, useful_threads(in.shape, in.threads),
                [&](const Stripe& stripe, int threads) { backward.run_sums(stripe, threads, nullptr); });
    for (int64_t c = 0; c < channels; ++c) {
        out[c] = backward.sum(BackwardPass::kShift, c);
        out[channels + c] = backward.sum(BackwardPass::kScale, c);
        if (in.rate != nullptr) out[2 * channels + c] = backward.sum(BackwardPass::kRate, c);
        if (in.threshold != nullptr) out[(1 + own) * channels + c] = backward.sum(BackwardPass::kThreshold, c);
    }
}

void batch_norm_gradient(const NeuronConfig& neuron, const Input& in, const float* center, const float* slope,
                         const float* offset, const BackwardInput& grad, const BackwardOutput& out) {
    if (empty(in.shape)) return;
    BackwardPass backward(neuron, in, grad, out, {in.scale, slope, offset, center}, Order::memory);
    for_stripes(backward.tiling, useful_threads(in.shape, in.threads),
                [&](const Stripe& stripe, int threads) { backward.run_gradients(stripe, threads); });
}

}  // namespace sca
