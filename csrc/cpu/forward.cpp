#include "forward.h"

#include "isa.h"

namespace sca {
namespace {

enum Sum { kCount, kL1, kKinds };

}  // namespace

Forward::Forward(const Neuron& neuron, const Input& in, const ForwardOutput& out, Order order)
    : layout(in.shape, {&in.x, &out.spikes, &in.v_init, &out.v}, kMostLanes, order),
      neuron_(neuron),
      in_(in),
      out_(out),
      kernels_(kernels()),
      sums_(layout, kKinds),
      stream_(worth_streaming(in.shape, in.x.dtype)) {}

void Forward::run(const Group& group, int threads) {
    // From the last block down: behind a pass over x, its end is what the caches still hold.
    parallel_for(group.first, group.last, threads, [&](int64_t b) { run(group.first + group.last - 1 - b); });
    sums_.combine(group);
    for (int64_t c = group.channel; c < group.channel + group.channels; ++c) {
        out_.count[c] = static_cast<int64_t>(sums_.total(kCount, c));
        out_.l1[c] = static_cast<float>(sums_.total(kL1, c));
    }
}

void Forward::run(int64_t b) {
    const int64_t steps = in_.shape.t;
    const bool prelude = in_.scale != nullptr || in_.shift != nullptr;

    Scratch scratch(6, layout.most_period(), 2 * kSteps + 1);
    Parameters parameters(layout, scratch);
    Lanes part{};
    part.threshold = neuron_.threshold;
    part.rest = neuron_.rest;
    part.rate = parameters.row(in_.rate, neuron_.rate);
    part.gate = parameters.row(out_.mask);
    if (prelude) {
        part.scale = parameters.row(in_.scale, 1.0f);
        part.shift = parameters.row(in_.shift, 0.0f);
    }
    float* l1 = scratch.slot_row();
    int32_t* count = reinterpret_cast<int32_t*>(scratch.slot_row());
    std::fill_n(l1, layout.most_period(), 0.0f);
    std::fill_n(count, layout.most_period(), 0);
    const Rows x_buffer = scratch.piece_rows(kSteps), s_buffer = scratch.piece_rows(kSteps);
    // Potentials, where a call does not both begin and end them.
    const bool carries = steps > kSteps || in_.v_init.data != nullptr || out_.v.data != nullptr;
    float* v = carries ? scratch.piece_row() : nullptr;
    const auto fire = kernels_.fire[neuron_.charge][neuron_.reset][static_cast<int>(in_.x.dtype)];

    const auto integrate = [&](const Pieces& piece, const Pieces& next) {
        const Place x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), s = piece.at(out_.spikes);
        const Lanes lanes = piece.lanes(part);
        if (carries) read_state(piece.at(in_.v_init), neuron_.rest, piece.size, v);
        for (int64_t t = 0; t < steps; t += kSteps) {
            const int64_t now = std::min(kSteps, steps - t);
            const Output spikes(s, t, now, piece.size, s_buffer, stream_);
            fire(lanes, now, read(x, x_ahead, t, now, piece.size, x_buffer), spikes.sink, v, count, l1);
            spikes.finish();
        }
        if (carries) write_state(v, piece.size, piece.at(out_.v));
    };
    const auto fold = [&](const Part& done) {
        sums_.fold(b, done, kCount, count);
        sums_.fold(b, done, kL1, l1);
    };
    sums_.for_pieces(b, [&](const Part& begun) { parameters.fill(begun); }, integrate, fold);
    finish_streaming(stream_);
}

}  // namespace sca
