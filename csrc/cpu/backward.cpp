#include "backward.h"

#include <cstring>

#include "isa.h"

namespace sca {
namespace {

constexpr float kZero = 0.0f;

View or_zero(const View& view, DType dtype) {
    return view.data != nullptr ? view : View{const_cast<float*>(&kZero), dtype, 0, 0, 0, 0};
}

}  // namespace

Backward::Backward(const Neuron& neuron, const Input& in, const BackwardInput& grad, const BackwardOutput& out,
                   PreludeAdjoint prelude)
    : layout(in.shape, {&in.x, &out.x, &grad.spikes, &in.v_init, &grad.v, &out.v_init}, kMostLanes),
      neuron_(neuron),
      in_(in),
      grad_(grad),
      out_(out),
      prelude_adjoint_(prelude),
      kernels_(kernels()),
      sums_(layout, kKinds),
      prelude_(in.scale != nullptr || in.shift != nullptr),
      summed_(out.x.t == 0 && in.shape.t > 1),
      keeps_(in.x.dtype == DType::float32 && !summed_ && layout.at(out.x, layout.parts.front(), 0).lane == 1),
      stream_(worth_streaming(in.shape, in.x.dtype)),
      grad_spikes_(or_zero(grad.spikes, in.x.dtype)) {}

void Backward::run(const Group& group, int threads) {
    parallel_for(group.first, group.last, threads, [&](int64_t b) { run(b, {true, true}); });
    sums_.combine(group);
}

void Backward::run_sums(const Group& group, int threads) {
    parallel_for(group.first, group.last, threads, [&](int64_t b) { run(b, {true, false}); });
    sums_.combine(group);
}

void Backward::run_x(const Group& group, int threads) {
    // From the last block down: its data is what the caches still hold.
    parallel_for(group.first, group.last, threads, [&](int64_t i) {
        const int64_t b = group.first + group.last - 1 - i;
        keeps_ ? finish_kept(b) : run(b, {false, true});
    });
}

void Backward::set_prelude_adjoint(const Part& part, Scratch& scratch, Lanes& tile) const {
    const auto lane_values = [&](const float* per_channel, float otherwise) {
        float* lanes = scratch.tile_row();
        spread(per_channel, otherwise, part, layout.most_rows(), lanes);
        return lanes;
    };
    tile.center = lane_values(prelude_adjoint_.center, 0.0f);
    tile.g_y = lane_values(prelude_adjoint_.g_y, 1.0f);
    tile.slope = lane_values(prelude_adjoint_.slope, 0.0f);
    tile.bias = lane_values(prelude_adjoint_.bias, 0.0f);
}

void Backward::finish_kept(int64_t b) {
    const Block& block = layout.blocks[b];
    const int64_t steps = in_.shape.t;
    Scratch scratch(4, layout.most_lanes(), kSteps, kMostLanes);
    Lanes tile{};
    set_prelude_adjoint(layout.parts[block.part], scratch, tile);
    const Rows x_buffer = scratch.piece_rows(kSteps);
    const auto prelude_adjoint = kernels_.prelude_adjoint[static_cast<int>(in_.x.dtype)];

    Pieces piece(layout, block, kMostLanes);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        const Place x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), g_x = piece.at(out_.x);
        const Lanes lanes = slice(tile, piece.begin, piece.size);
        for (int64_t t = 0; t < steps; t += kSteps) {
            const int64_t now = std::min(kSteps, steps - t);
            const Output out(g_x, t, now, piece.size, x_buffer, false);
            const Rows kept{static_cast<float*>(out.sink.data), out.sink.step};
            prelude_adjoint(lanes, now, kept, read(x, x_ahead, t, now, piece.size, x_buffer), out.sink);
        }
    }
}

void Backward::run(int64_t b, Pass pass) {
    const Block& block = layout.blocks[b];
    const Part& part = layout.parts[block.part];
    const int64_t rows = layout.most_rows(), most_lanes = layout.most_lanes(), steps = in_.shape.t,
                  width = piece_lanes(steps);
    const int dtype = static_cast<int>(in_.x.dtype);
    const bool leak = pass.sums && out_.rate != nullptr, to_x = pass.x && out_.x.data != nullptr;
    const bool keep = pass.sums && !pass.x && keeps_;

    Scratch scratch(13, most_lanes, steps + 4 * kSteps + 4, width);
    const auto lane_values = [&](const float* per_channel, float otherwise) {
        float* lanes = scratch.tile_row();
        spread(per_channel, otherwise, part, rows, lanes);
        return lanes;
    };
    Lanes tile{};
    tile.threshold = neuron_.threshold;
    tile.rest = neuron_.rest;
    tile.alpha = neuron_.alpha;
    tile.beta = neuron_.beta;
    tile.rate = lane_values(in_.rate, neuron_.rate);
    float *by_v = scratch.tile_row(), *by_x = scratch.tile_row();
    kernels_.derivatives[neuron_.charge](tile.rate, by_v, by_x, most_lanes);
    tile.by_v = by_v;
    // With a learned leak the kernel hands back dL/dh, which leak_adjoint turns into dL/dy.
    tile.by_x = leak ? lane_values(nullptr, 1.0f) : by_x;
    if (prelude_) {
        tile.scale = lane_values(in_.scale, 1.0f);
        tile.shift = lane_values(in_.shift, 0.0f);
        set_prelude_adjoint(part, scratch, tile);
    }
    float* sums[kKinds];
    for (float*& lanes : sums) lanes = lane_values(nullptr, 0.0f);

    const Rows h = scratch.piece_rows(steps), x_buffer = scratch.piece_rows(kSteps),
               g_s_buffer = scratch.piece_rows(kSteps);
    const Rows g_y_buffer = scratch.piece_rows(kSteps), g_x_buffer = scratch.piece_rows(kSteps);
    float *v = scratch.piece_row(), *v_start = scratch.piece_row(), *g_v = scratch.piece_row(),
          *total = scratch.piece_row();
    const auto charge = kernels_.charge[neuron_.charge][neuron_.reset][prelude_][dtype];
    const auto adjoint = kernels_.adjoint[neuron_.surrogate][neuron_.reset][neuron_.detach_reset][dtype];
    const auto leak_adjoint = kernels_.leak_adjoint[neuron_.charge][prelude_][dtype];

    Pieces piece(layout, block, width);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        const Place x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), g_x = piece.at(out_.x);
        const Place g_s = piece.at(grad_spikes_), g_s_ahead = piece.ahead(next, grad_spikes_);
        const int64_t size = piece.size, begin = piece.begin;
        const Lanes lanes = slice(tile, begin, size);

        read_state(piece.at(in_.v_init), neuron_.rest, size, v);
        std::memcpy(v_start, v, size * sizeof(float));
        for (int64_t t = 0; t < steps; t += kSteps) {
            const int64_t now = std::min(kSteps, steps - t);
            charge(lanes, now, read(x, x_ahead, t, now, size, x_buffer), {h.data + t * h.step, h.step}, v);
        }

        read_state(piece.at(grad_.v), 0.0f, size, g_v);
        std::fill_n(total, size, 0.0f);
        const bool direct =
            keep || (to_x && g_x.dtype == DType::float32 && g_x.lane == 1 && !prelude_ && !leak && !summed_);
        for (int64_t t = (steps - 1) / kSteps * kSteps; t >= 0; t -= kSteps) {
            const int64_t now = std::min(kSteps, steps - t);
            const Output out(g_x, t, now, size, g_x_buffer, stream_ && !keep);
            const Rows g_y = direct ? Rows{static_cast<float*>(out.sink.data), out.sink.step} : g_y_buffer;
            const Sink to = direct ? out.sink : Sink{g_y.data, g_y.step, false};
            adjoint(lanes, now, {h.data + t * h.step, h.step}, read(g_s, g_s_ahead, t, now, size, g_s_buffer), to, g_v);
            if (direct && !keep) continue;

            const Source xs = prelude_ || leak ? read(x, x, t, now, size, x_buffer) : Source{};
            for (int64_t k = 0; leak && k < now; ++k) {
                const float* before = v_start;
                if (t + k > 0) {
                    kernels_.reset[neuron_.reset](lanes, h.data + (t + k - 1) * h.step, v);
                    before = v;
                }
                const char* x_row = static_cast<const char*>(xs.data) + k * xs.step * element_size(in_.x.dtype);
                leak_adjoint(lanes, x_row, before, by_x + begin, g_y.data + k * g_y.step, sums[kRate] + begin);
            }
            if (pass.sums && prelude_)
                kernels_.prelude_sums[dtype](lanes, now, g_y, xs, sums[kScale] + begin, sums[kShift] + begin);
            if (!to_x) continue;
            if (summed_)
                kernels_.add(size, now, g_y, total);
            else if (prelude_)
                kernels_.prelude_adjoint[dtype](lanes, now, g_y, xs, out.sink);
            else
                kernels_.put[dtype](size, now, g_y, out.sink);
            out.finish();
        }
        if (to_x && summed_) {
            const Output out(g_x, 0, 1, size, g_x_buffer, false);
            if (prelude_)
                kernels_.prelude_adjoint[dtype](lanes, 1, {total, 0}, read(x, x, 0, 1, size, x_buffer), out.sink);
            else
                kernels_.put[dtype](size, 1, {total, 0}, out.sink);
            out.finish();
        }
        if (pass.sums) write_state(g_v, size, piece.at(out_.v_init));
    }
    if (pass.sums)
        for (int kind = 0; kind < kKinds; ++kind) sums_.fold(b, kind, sums[kind]);
    finish_streaming(stream_ && to_x);
}

}  // namespace sca
