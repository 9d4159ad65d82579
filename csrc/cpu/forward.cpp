#include "forward.h"

#include "isa.h"

namespace sca {
namespace {

enum Sum { kCount, kL1, kKinds };

}  // namespace

Forward::Forward(const Neuron& neuron, const Input& in, const ForwardOutput& out)
    : layout(in.shape, {&in.x, &out.spikes, &in.v_init, &out.v}, kMostLanes),
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
    const Block& block = layout.blocks[b];
    const Part& part = layout.parts[block.part];
    const int64_t steps = in_.shape.t;
    const bool prelude = in_.scale != nullptr || in_.shift != nullptr;

    Scratch scratch(6, layout.most_period(), 2 * kSteps + 1);
    const auto lane_values = [&](auto per_channel, float otherwise) {
        float* slots = scratch.slot_row();
        spread(per_channel, otherwise, layout, part, slots);
        return slots;
    };
    Lanes tile{};
    tile.threshold = neuron_.threshold;
    tile.rest = neuron_.rest;
    tile.rate = lane_values(in_.rate, neuron_.rate);
    tile.gate = lane_values(out_.mask, 1.0f);
    if (prelude) {
        tile.scale = lane_values(in_.scale, 1.0f);
        tile.shift = lane_values(in_.shift, 0.0f);
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

    const auto fold = [&] {
        sums_.fold(b, kCount, count);
        sums_.fold(b, kL1, l1);
    };
    const int64_t often = sums_.pieces_per_fold(part);
    int64_t unfolded = 0;
    Pieces piece(layout, block);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        const Place x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), s = piece.at(out_.spikes);
        const Lanes lanes = piece.lanes(tile);
        if (carries) read_state(piece.at(in_.v_init), neuron_.rest, piece.size, v);
        for (int64_t t = 0; t < steps; t += kSteps) {
            const int64_t now = std::min(kSteps, steps - t);
            const Output spikes(s, t, now, piece.size, s_buffer, stream_);
            fire(lanes, now, read(x, x_ahead, t, now, piece.size, x_buffer), spikes.sink, v, count, l1);
            spikes.finish();
        }
        if (carries) write_state(v, piece.size, piece.at(out_.v));
        if (++unfolded == often) {
            fold();
            unfolded = 0;
        }
    }
    fold();
    finish_streaming(stream_);
}

}  // namespace sca
