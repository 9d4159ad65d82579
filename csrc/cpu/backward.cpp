#include "backward.h"

#include <algorithm>

#include "isa.h"

namespace sca {
namespace {

constexpr float kZero = 0.0f;
// Elements of a stripe whose dL/dy is worth parking: 1 MiB; above, the caches hold too little else.
constexpr int64_t kMostParked = 1 << 18;

View or_zero(const View& view, DType dtype) {
    return view.data != nullptr ? view : View{const_cast<float*>(&kZero), dtype, 0, 0, 0, 0};
}

}  // namespace

BackwardPass::BackwardPass(const NeuronConfig& neuron, const Input& in, const BackwardInput& grad,
                           const BackwardOutput& out, PreludeAdjointVectors prelude, Order order)
    : tiling(in.shape, {&in.x, &out.x, &grad.spikes, &in.v_init, &grad.v, &grad.h, &out.v_init}, kMostLanes, order),
      neuron_(neuron),
      in_(in),
      grad_(grad),
      out_(out),
      prelude_adjoint_(prelude),
      kernels_(kernels()),
      sums_(tiling, kKinds),
      prelude_(in.scale != nullptr || in.shift != nullptr),
      summed_(out.x.t == 0 && in.shape.t > 1),
      stream_(worth_streaming(in.shape, in.x.dtype)),
      grad_spikes_(or_zero(grad.spikes, in.x.dtype)) {}

void BackwardPass::run(const Stripe& stripe, int threads) {
    parallel_for(stripe.first, stripe.last, threads, [&](int64_t b) { run(b, {true, true, true, nullptr}); });
    sums_.combine(stripe);
}

void BackwardPass::run_gradients(const Stripe& stripe, int threads) {
    parallel_for(stripe.first, stripe.last, threads, [&](int64_t b) { run(b, {false, true, true, nullptr}); });
}

void BackwardPass::run_sums(const Stripe& stripe, int threads, float* parked) {
    parallel_for(stripe.first, stripe.last, threads, [&](int64_t b) {
        run(b, {true, true, false, parked == nullptr ? nullptr : parked + (b - stripe.first) * parked_task()});
    });
    sums_.combine(stripe);
}

void BackwardPass::run_x(const Stripe& stripe, int threads, const float* parked) {
    // From the last task down: its data is what the caches still hold.
    parallel_for(stripe.first, stripe.last, threads, [&](int64_t i) {
        const int64_t b = stripe.first + stripe.last - 1 - i;
        parked == nullptr ? run(b, {false, false, true, nullptr}) : finish(b, parked + (b - stripe.first) * parked_task());
    });
}

int64_t BackwardPass::parked_task() const {
    int64_t tiles = 0;
    for (const Task& task : tiling.tasks) tiles = std::max(tiles, task.last - task.first);
    return tiles * padded(tiling.most_lanes()) * in_.shape.t;
}

int64_t BackwardPass::parked_size(const Stripe& stripe) const {
    const Shape& shape = in_.shape;
    const bool fits = shape.t * shape.n * shape.s * stripe.channels <= kMostParked;
    const bool suits = in_.x.dtype == DType::float32 && !summed_ && out_.x.data != nullptr;
    return fits && suits ? (stripe.last - stripe.first) * parked_task() : 0;
}

void BackwardPass::run(int64_t b, Wanted pass) {
    const int64_t steps = in_.shape.t, chunks = (steps + kSteps - 1) / kSteps;
    const int dtype = static_cast<int>(in_.x.dtype);
    const bool to_x = pass.x && out_.x.data != nullptr, leak = pass.sums && in_.rate != nullptr,
               learned = pass.sums && in_.threshold != nullptr;

    Scratch scratch(14, tiling.most_period(), chunks + 4 * kSteps + 2);
    Parameters parameters(tiling, scratch);
    Lanes lanes_of_span{};
    lanes_of_span.threshold = neuron_.threshold;
    lanes_of_span.fires_at = neuron_.fires_at;
    lanes_of_span.by = neuron_.by;
    // No gradient comes by spikes where none was given, and none by a reset that is detached.
    lanes_of_span.surrogate = grad_.spikes.data == nullptr && neuron_.detach_reset ? kNoSurrogate : neuron_.surrogate;
    const bool general = in_.threshold != nullptr || grad_.h.data != nullptr;
    if (general) {
        lanes_of_span.thresholds = parameters.row(in_.threshold, neuron_.threshold);
        lanes_of_span.fire_at = parameters.row(in_.fires_at, neuron_.fires_at);
        lanes_of_span.bys = parameters.row(in_.by(neuron_), neuron_.by);
    }
    lanes_of_span.rest = neuron_.rest;
    lanes_of_span.alpha = neuron_.alpha;
    lanes_of_span.beta = neuron_.beta;
    lanes_of_span.gain = neuron_.gain;
    lanes_of_span.rate = parameters.row(in_.rate, neuron_.rate);
    if (prelude_) {
        lanes_of_span.scale = parameters.row(in_.scale, 1.0f);
        lanes_of_span.shift = parameters.row(in_.shift, 0.0f);
        lanes_of_span.center = parameters.row(prelude_adjoint_.center, 0.0f);
        if (pass.parked == nullptr) {  // else dL/dy itself is wanted
            lanes_of_span.g_y = parameters.row(prelude_adjoint_.g_y, 1.0f);
            lanes_of_span.slope = parameters.row(prelude_adjoint_.slope, 0.0f);
            lanes_of_span.offset = parameters.row(prelude_adjoint_.offset, 0.0f);
        }
    }
    const bool wanted[kKinds] = {pass.sums && prelude_, pass.sums && prelude_, leak, learned};
    float* sums[kKinds]{};
    for (int kind = 0; kind < kKinds; ++kind)
        if (wanted[kind]) std::fill_n(sums[kind] = scratch.slot_row(), tiling.most_period(), 0.0f);

    // Potentials at the first of every kSteps time steps: from there the rest follows a second time.
    const Rows checkpoints = scratch.piece_rows(chunks);
    const Rows x_buffer = scratch.piece_rows(kSteps), g_s_buffer = scratch.piece_rows(kSteps),
               g_h_buffer = scratch.piece_rows(kSteps), g_x_buffer = scratch.piece_rows(kSteps);
    const bool from_rest = chunks == 1 && in_.v_init.data == nullptr;
    if (in_.v_init.data == nullptr && !from_rest) std::fill_n(checkpoints.data, kMostLanes, neuron_.rest);
    // dL/dv, where a call does not both begin and end it.
    const bool carries = chunks > 1 || grad_.v.data != nullptr || out_.v_init.data != nullptr;
    float *g_v = carries ? scratch.piece_row() : nullptr, *over_time = to_x && summed_ ? scratch.piece_row() : nullptr;
    const auto advance = kernels_.advance[general][neuron_.charge][neuron_.reset][dtype];
    const auto adjoint = kernels_.adjoint[general ? kSurrogates : neuron_.surrogate][neuron_.charge][neuron_.reset][dtype];
    const auto finish = kernels_.finish[dtype];

    const auto propagate = [&](const Pieces& piece, const Pieces& next) {
        const LaneView x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), g_x = piece.at(out_.x);
        const LaneView g_s = piece.at(grad_spikes_), g_s_ahead = piece.ahead(next, grad_spikes_);
        const LaneView g_h = piece.at(grad_.h), g_h_ahead = piece.ahead(next, grad_.h);
        const int64_t size = piece.size;
        const Lanes lanes = piece.lanes(lanes_of_span);

        if (in_.v_init.data != nullptr) read_state(piece.at(in_.v_init), neuron_.rest, size, checkpoints.data);
        for (int64_t c = 1; c < chunks; ++c) {
            float* v = checkpoints.data + c * checkpoints.step;
            std::copy_n(v - checkpoints.step, checkpoints.step, v);
            advance(lanes, kSteps, read(x, x, (c - 1) * kSteps, kSteps, size, x_buffer), v);
        }

        if (carries) read_state(piece.at(grad_.v), 0.0f, size, g_v);
        if (over_time != nullptr) std::fill_n(over_time, kMostLanes, 0.0f);
        for (int64_t c = chunks - 1; c >= 0; --c) {
            const int64_t t = c * kSteps, now = std::min(kSteps, steps - t);
            Gradients g{};
            if (wanted[kScale]) {
                g.scale = sums[kScale];
                g.shift = sums[kShift];
            }
            if (leak) g.rate = sums[kRate];
            if (learned) g.threshold = sums[kThreshold];
            g.subtracted = neuron_.subtracts_threshold;
            g.over_time = over_time;
            const Output out(to_x && over_time == nullptr ? g_x : LaneView{}, t, now, size, g_x_buffer, stream_);
            g.x = pass.parked == nullptr ? out.sink : Sink{pass.parked + t * padded(size), padded(size), false};
            adjoint(lanes, now, neuron_.detach_reset, read(x, x_ahead, t, now, size, x_buffer, pass.x),
                    read(g_s, g_s_ahead, t, now, size, g_s_buffer, pass.x),
                    g_h.data == nullptr ? Source{} : read(g_h, g_h_ahead, t, now, size, g_h_buffer, pass.x),
                    from_rest ? nullptr : checkpoints.data + c * checkpoints.step, g_v, g);
            out.finish();
        }
        if (over_time != nullptr) {
            const Output out(g_x, 0, 1, size, g_x_buffer, false);
            finish(lanes, over_time, read(x, x, 0, 1, size, x_buffer), out.sink);
            out.finish();
        }
        if (pass.state && carries) write_state(g_v, size, piece.at(out_.v_init));
        if (pass.parked != nullptr) pass.parked += steps * padded(size);
    };
    const auto drain = [&](const Span& done) {
        for (int kind = 0; kind < kKinds; ++kind)
            if (wanted[kind]) sums_.drain(b, done, kind, sums[kind]);
    };
    sums_.for_pieces(b, [&](const Span& begun) { parameters.fill(begun); }, propagate, drain);
    finish_streaming(stream_ && to_x);
}

void BackwardPass::finish(int64_t b, const float* parked) {
    const Task& task = tiling.tasks[b];
    const int dtype = static_cast<int>(in_.x.dtype);
    Scratch scratch(4, tiling.most_period(), 2);
    Parameters parameters(tiling, scratch);
    Lanes lanes_of_span{};
    lanes_of_span.scale = lanes_of_span.g_y = parameters.row(prelude_adjoint_.g_y, 0.0f);
    lanes_of_span.slope = parameters.row(prelude_adjoint_.slope, 0.0f);
    lanes_of_span.center = parameters.row(prelude_adjoint_.center, 0.0f);
    lanes_of_span.offset = parameters.row(prelude_adjoint_.offset, 0.0f);
    parameters.fill(tiling.spans[task.first_span]);
    const Rows x_buffer = scratch.piece_rows(1), g_x_buffer = scratch.piece_rows(1);
    Pieces piece(tiling, task);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        const LaneView x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), g_x = piece.at(out_.x);
        const Lanes lanes = piece.lanes(lanes_of_span);
        for (int64_t t = 0; t < in_.shape.t; ++t, parked += padded(piece.size)) {
            const Output out(g_x, t, 1, piece.size, g_x_buffer, stream_);
            kernels_.finish[dtype](lanes, parked, read(x, x_ahead, t, 1, piece.size, x_buffer), out.sink);
            out.finish();
        }
    }
    finish_streaming(stream_);
}

}  // namespace sca
