#include "forward.h"

#include "isa.h"

namespace sca {
namespace {

enum Sum { kCount, kL1, kKinds };

}  // namespace

ForwardPass::ForwardPass(const NeuronConfig& neuron, const Input& in, const ForwardOutput& out, Order order)
    : tiling(in.shape, {&in.x, &out.spikes, &in.v_init, &out.v, &out.h}, kMostLanes, order),
      neuron_(neuron),
      in_(in),
      out_(out),
      kernels_(kernels()),
      sums_(tiling, kKinds),
      stream_(worth_streaming(in.shape, in.x.dtype)) {}

void ForwardPass::run(const Stripe& stripe, int threads) {
    // From the last task down: behind a pass over x, its end is what the caches still hold.
    parallel_for(stripe.first, stripe.last, threads, [&](int64_t b) { run(stripe.first + stripe.last - 1 - b); });
    sums_.combine(stripe);
    for (int64_t c = stripe.channel; c < stripe.channel + stripe.channels; ++c) {
        out_.count[c] = static_cast<int64_t>(sums_.of(kCount, c));
        out_.l1[c] = static_cast<float>(sums_.of(kL1, c));
    }
}

void ForwardPass::run(int64_t b) {
    const int64_t steps = in_.shape.t;
    const bool prelude = in_.scale != nullptr || in_.shift != nullptr;

    Scratch scratch(8, tiling.most_period(), 3 * kSteps + 1);
    Parameters parameters(tiling, scratch);
    Lanes lanes_of_span{};
    lanes_of_span.rest = neuron_.rest;
    lanes_of_span.fires_at = neuron_.fires_at;
    lanes_of_span.by = neuron_.by;
    const bool general = in_.threshold != nullptr || out_.h.data != nullptr;
    if (general) {
        lanes_of_span.fire_at = parameters.row(in_.fires_at, neuron_.fires_at);
        lanes_of_span.bys = parameters.row(in_.by(neuron_), neuron_.by);
    }
    lanes_of_span.rate = parameters.row(in_.rate, neuron_.rate);
    lanes_of_span.gate = parameters.row(out_.mask);
    if (prelude) {
        lanes_of_span.scale = parameters.row(in_.scale, 1.0f);
        lanes_of_span.shift = parameters.row(in_.shift, 0.0f);
    }
    float* l1 = scratch.slot_row();
    int32_t* count = reinterpret_cast<int32_t*>(scratch.slot_row());
    std::fill_n(l1, tiling.most_period(), 0.0f);
    std::fill_n(count, tiling.most_period(), 0);
    const Rows x_buffer = scratch.piece_rows(kSteps), s_buffer = scratch.piece_rows(kSteps),
               h_buffer = scratch.piece_rows(kSteps);
    // Potentials, where a call does not both begin and end them.
    const bool carries = steps > kSteps || in_.v_init.data != nullptr || out_.v.data != nullptr;
    float* v = carries ? scratch.piece_row() : nullptr;
    const auto fire = kernels_.fire[general][neuron_.charge][neuron_.reset][static_cast<int>(in_.x.dtype)];

    const auto integrate = [&](const Pieces& piece, const Pieces& next) {
        const LaneView x = piece.at(in_.x), x_ahead = piece.ahead(next, in_.x), s = piece.at(out_.spikes),
                       h = piece.at(out_.h);
        const Lanes lanes = piece.lanes(lanes_of_span);
        if (carries) read_state(piece.at(in_.v_init), neuron_.rest, piece.size, v);
        for (int64_t t = 0; t < steps; t += kSteps) {
            const int64_t now = std::min(kSteps, steps - t);
            const Output spikes(s, t, now, piece.size, s_buffer, stream_);
            const Output potentials(h, t, now, piece.size, h_buffer, stream_);
            fire(lanes, now, read(x, x_ahead, t, now, piece.size, x_buffer), spikes.sink, potentials.sink, v, count, l1);
            spikes.finish();
            potentials.finish();
        }
        if (carries) write_state(v, piece.size, piece.at(out_.v));
    };
    const auto drain = [&](const Span& done) {
        sums_.drain(b, done, kCount, count);
        sums_.drain(b, done, kL1, l1);
    };
    sums_.for_pieces(b, [&](const Span& begun) { parameters.fill(begun); }, integrate, drain);
    finish_streaming(stream_);
}

}  // namespace sca
