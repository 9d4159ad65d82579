#include "backward.h"

#include <algorithm>

#include "isa.h"

namespace sca {
namespace {

constexpr float kZero = 0.0f;
// Elements of a group whose dL/dy is worth parking: 1 MiB; above, the caches hold too little else.
constexpr int64_t kMostParked = 1 << 18;

View or_zero(const View& view, DType dtype) {
    return view.data != nullptr ? view : View{const_cast<float*>(&kZero), dtype, 0, 0, 0, 0};
}

}  // namespace

Backward::Backward(const Neuron& neuron, const Input& in, const BackwardInput& grad, const BackwardOutput& out,
                   PreludeAdjoint prelude, Order order)
    : layout(in.shape, {&in.x, &out.x, &grad.spikes, &in.v_init, &grad.v, &out.v_init}, kMostLanes, order),
      neuron_(neuron),
      in_(in),
      grad_(grad),
      out_(out),
      prelude_adjoint_(prelude),
      kernels_(kernels()),
      sums_(layout, kKinds),
      prelude_(in.scale != nullptr || in.shift != nullptr),
      summed_(out.x.t == 0 && in.shape.t > 1),
      stream_(worth_streaming(in.shape, in.x.dtype)),
      grad_spikes_(or_zero(grad.spikes, in.x.dtype)) {}

void Backward::run(const Group& group, int threads) {
    parallel_for(group.first, group.last, threads, [&](int64_t b) { run(b, {true, true, nullptr}); });
    sums_.combine(group);
}

void Backward::run_sums(const Group& group, int threads, float* parked) {
    parallel_for(group.first, group.last, threads, [&](int64_t b) {
        run(b, {true, false, parked == nullptr ? nullptr : parked + (b - group.first) * parked_block()});
    });
    sums_.combine(group);
}

void Backward::run_x(const Group& group, int threads, const float* parked) {
    // From the last block down: its data is what the caches still hold.
    parallel_for(group.first, group.last, threads, [&](int64_t i) {
        const int64_t b = group.first + group.last - 1 - i;
        parked == nullptr ? run(b, {false, true, nullptr}) : finish(b, parked + (b - group.first) * parked_block());
    });
}

int64_t Backward::parked_block() const {
    int64_t tiles = 0;
    for (const Block& block : layout.blocks) tiles = std::max(tiles, block.last - block.first);
    return tiles * padded(layout.most_lanes()) * in_.shape.t;
}

int64_t Backward::parked_size(const Group& group) const {
    const Shape& shape = in_.shape;
    const bool fits = shape.t * shape.n * shape.s * group.channels <= kMostParked;
    const bool suits = in_.x.dtype == DType::float32 && !summed_ && out_.x.data != nullptr;
    return fits && suits ? (group.last - group.first) * parked_block() : 0;
}

void Backward::run(int64_t b, Pass pass) {
    const int64_t steps = in_.shape.t, chunks = (steps + kSteps - 1) / kSteps;
    const int dtype = static_cast<int>(in_.x.dtype);
    const bool to_x = pass.x && out_.x.data != nullptr, leak = pass.sums && out_.rate != nullptr;

    Scratch scratch(10, layout.most_period(), chunks + 3 * kSteps + 2);
    Parameters parameters(layout, scratch);
    Lanes part{};
    part.threshold = neuron_.threshold;
    part.rest = neuron_.rest;
    part.alpha = neuron_.alpha;
    part.beta = neuron_.beta;
    part.rate = parameters.row(in_.rate, neuron_.rate);
    if (prelude_) {
        part.scale = parameters.row(in_.scale, 1.0f);
        part.shift = parameters.row(in_.shift, 0.0f);
        part.center = parameters.row(prelude_adjoint_.center, 0.0f);
        if (pass.parked == nullptr) {  // else dL/dy itself is wanted
            part.g_y = parameters.row(prelude_adjoint_.g_y, 1.0f);
            part.slope = parameters.row(prelude_adjoint_.slope, 0.0f);
            part.bias = parameters.row(prelude_adjoint_.bias, 0.0f);
        }
    }
    const bool wanted[kKinds] = {pass.sums && prelude_, pass.sums && prelude_, leak};
    float* sums[kKinds]{};
    for (int kind = 0; kind < kKinds; ++kind)
        if (wanted[kind]) std::fill_n(sums[kind] = scratch.slot_row(), layout.most_period(), 0.0f);

    // Potentials at the first of every kSteps time steps: from there the rest follows a second time.
    const Rows starts = scratch.piece_rows(chunks);
    const Rows x_buffer = scratch.piece_rows(kSteps), g_s_buffer = scratch.piece_rows(kSteps),
               g_x_buffer = scratch.piece_rows(kSteps);
    const bool from_rest = chunks == 1 && in_.v_init.data == nullptr;
    if (in_.v_init.data == nullptr && !from_rest) std::fill_n(starts.data, kMostLanes, neuron_.rest);
    // dL/dv, where a call does not both begin and end it.
    const bool carries = chunks > 1 || grad_.v.data != nullptr || out_.v_init.data != nullptr;
    float *g_v = carries ? scratch.piece_row() : nullptr, *total = to_x && summed_ ? scratch.piece_row() : nullptr;
    const auto advance = kernels_.advance[neuron_.charge][neuron_.reset][dtype];
    const auto adjoint = kernels_.adjoint[neuron_.surrogate][neuron_.charge][neuron_.reset][dtype];
    const auto finish = kernels_.finish[dtype];

    const auto propagate = [&](const Pieces& piece, const Pieces& next) {
        const Place x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), g_x = piece.at(out_.x);
        const Place g_s = piece.at(grad_spikes_), g_s_ahead = piece.ahead(next, grad_spikes_);
        const int64_t size = piece.size;
        const Lanes lanes = piece.lanes(part);

        if (in_.v_init.data != nullptr) read_state(piece.at(in_.v_init), neuron_.rest, size, starts.data);
        for (int64_t c = 1; c < chunks; ++c) {
            float* v = starts.data + c * starts.step;
            std::copy_n(v - starts.step, starts.step, v);
            advance(lanes, kSteps, read(x, x, (c - 1) * kSteps, kSteps, size, x_buffer), v);
        }

        if (carries) read_state(piece.at(grad_.v), 0.0f, size, g_v);
        if (total != nullptr) std::fill_n(total, kMostLanes, 0.0f);
        for (int64_t c = chunks - 1; c >= 0; --c) {
            const int64_t t = c * kSteps, now = std::min(kSteps, steps - t);
            Gradients g{};
            if (wanted[kScale]) {
                g.scale = sums[kScale];
                g.shift = sums[kShift];
            }
            if (leak) g.rate = sums[kRate];
            g.total = total;
            const Output out(to_x && total == nullptr ? g_x : Place{}, t, now, size, g_x_buffer, stream_);
            g.x = pass.parked == nullptr ? out.sink : Sink{pass.parked + t * padded(size), padded(size), false};
            adjoint(lanes, now, neuron_.detach_reset, read(x, x_ahead, t, now, size, x_buffer, pass.x),
                    read(g_s, g_s_ahead, t, now, size, g_s_buffer, pass.x),
                    from_rest ? nullptr : starts.data + c * starts.step, g_v, g);
            out.finish();
        }
        if (total != nullptr) {
            const Output out(g_x, 0, 1, size, g_x_buffer, false);
            finish(lanes, total, read(x, x, 0, 1, size, x_buffer), out.sink);
            out.finish();
        }
        if (pass.sums && carries) write_state(g_v, size, piece.at(out_.v_init));
        if (pass.parked != nullptr) pass.parked += steps * padded(size);
    };
    const auto fold = [&](const Part& done) {
        for (int kind = 0; kind < kKinds; ++kind)
            if (wanted[kind]) sums_.fold(b, done, kind, sums[kind]);
    };
    sums_.for_pieces(b, [&](const Part& begun) { parameters.fill(begun); }, propagate, fold);
    finish_streaming(stream_ && to_x);
}

void Backward::finish(int64_t b, const float* parked) {
    const Block& block = layout.blocks[b];
    const int dtype = static_cast<int>(in_.x.dtype);
    Scratch scratch(4, layout.most_period(), 2);
    Parameters parameters(layout, scratch);
    Lanes part{};
    part.scale = part.g_y = parameters.row(prelude_adjoint_.g_y, 0.0f);
    part.slope = parameters.row(prelude_adjoint_.slope, 0.0f);
    part.center = parameters.row(prelude_adjoint_.center, 0.0f);
    part.bias = parameters.row(prelude_adjoint_.bias, 0.0f);
    parameters.fill(layout.parts[block.part]);
    const Rows x_buffer = scratch.piece_rows(1), g_x_buffer = scratch.piece_rows(1);
    Pieces piece(layout, block);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        const Place x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), g_x = piece.at(out_.x);
        const Lanes lanes = piece.lanes(part);
        for (int64_t t = 0; t < in_.shape.t; ++t, parked += padded(piece.size)) {
            const Output out(g_x, t, 1, piece.size, g_x_buffer, stream_);
            kernels_.finish[dtype](lanes, parked, read(x, x_ahead, t, 1, piece.size, x_buffer), out.sink);
            out.finish();
        }
    }
    finish_streaming(stream_);
}

}  // namespace sca
