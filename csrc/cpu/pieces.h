// What the forward and the backward pass share: going through the tiles of a tiling, memory in and out of kernels,
// sums per channel, threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "tiling.h"

namespace sca {

// Lanes of a tile at most. Kernels fetch the next piece while they compute one; shorter runs than this are over before
// it arrives.
constexpr int64_t kMostLanes = 1024;

// ---- scratch
// ---------------------------------------------------------------------------------------------------------

// `step` floats apart.
struct Rows {
    float* data;
    int64_t step;
};

// Rows of floats for one task, out of memory that its thread keeps between calls. Slot rows hold a period of slots,
// piece rows a piece. Rows are spaced so that equal lanes of two of them don't compete for a cache set.
class Scratch {
  public:
    Scratch(int64_t slot_rows, int64_t slots, int64_t piece_rows);
    float* slot_row() { return take(1, slot_step_).data; }
    double* slot_doubles() { return reinterpret_cast<double*>(take(2, slot_step_).data); }
    float* piece_row() { return piece_rows(1).data; }
    Rows piece_rows(int64_t count);

  private:
    Rows take(int64_t count, int64_t step);
    int64_t slot_step_;
    float* next_;
};

// ---- pieces
// ----------------------------------------------------------------------------------------------------------

// Steps through the pieces of a task: at most kMostLanes lanes [begin, begin + size) of one span of a tile after the
// other, whole lines except for what is left of it.
class Pieces {
  public:
    Pieces(const Tiling& tiling, const Task& task);
    explicit operator bool() const { return tile_ < task_->last; }
    Pieces& operator++();
    const Span& span() const { return tiling_->spans[span_]; }
    LaneView at(const View& view) const;
    // Where `next` lies in a view; here if there is none.
    LaneView ahead(const Pieces& next, const View& view) const { return next ? next.at(view) : at(view); }
    // The lanes of the piece, with the parameters of its span.
    Lanes lanes(const Lanes& span) const;

    int64_t size = 0;

  private:
    void measure();
    const Tiling* tiling_;
    const Task* task_;
    int64_t tile_, begin_ = 0, lanes_ = 0;
    int span_;
};

// ---- memory
// ----------------------------------------------------------------------------------------------------------

// Time steps [first, first + steps) of a place for the kernels: where they are if they are whole lines of memory, else
// gathered into `buffer` and padded with zeros. `ahead` is a place of the same tensor that will be wanted soon.
Source read(const LaneView& from, const LaneView& ahead, int64_t first, int64_t steps, int64_t lanes,
            const Rows& buffer, bool last = false);

// Where kernels write time steps [first, first + steps): the place itself, or a buffer that finish() scatters; nowhere
// if the place is null.
class Output {
  public:
    Output(const LaneView& to, int64_t first, int64_t steps, int64_t lanes, const Rows& buffer, bool stream);
    void finish() const;
    Sink sink;

  private:
    LaneView to_;
    int64_t steps_, lanes_;
};

// A state (float32), or a constant for lack of one, padded.
void read_state(const LaneView& from, float otherwise, int64_t lanes, float* to);
void write_state(const float* from, int64_t lanes, const LaneView& to);

// Outputs above a size are written past the caches: they would not stay there, and reading the lines that are about to
// be overwritten costs a third of the traffic.
bool worth_streaming(const Shape& shape, DType dtype);
// To be called by the thread that wrote them.
void finish_streaming(bool streamed);

// ---- channels
// --------------------------------------------------------------------------------------------------------

// Per-channel parameters, as rows of slots that are filled span by span.
class Parameters {
  public:
    Parameters(const Tiling& tiling, Scratch& scratch) : tiling_(&tiling), scratch_(&scratch) {}
    // A row for [C] numbers; `otherwise` where there are none.
    const float* row(const float* per_channel, float otherwise) { return add({per_channel, nullptr, otherwise}); }
    const float* row(const uint8_t* mask) { return add({nullptr, mask, 1.0f}); }
    // Gives each slot its channel's values.
    void fill(const Span& span) const;

  private:
    struct Row {
        const float* numbers;
        const uint8_t* mask;
        float otherwise;
        float* slots;
        float of(int64_t channel) const {
            return numbers != nullptr ? numbers[channel] : mask != nullptr ? mask[channel] : otherwise;
        }
    };
    const float* add(Row row);
    const Tiling* tiling_;
    Scratch* scratch_;
    Row rows_[12]{};
    int count_ = 0;
};

// Sums per task and channel, combined in the order of tasks: the same whatever the number of threads.
class Sums {
  public:
    Sums(const Tiling& tiling, int kinds);
    // Adds the slots of one of a task's spans, in an order that depends on the tiling alone, and clears them.
    template <class T>
    void drain(int64_t task, const Span& span, int kind, T* slots);
    // Runs work(piece, next) for all pieces of a task, after enter(span) where a span begins; drain(span) is to drain
    // all slots, before the next span and before they have added up too much.
    template <class Enter, class Work, class Drain>
    void for_pieces(int64_t task, const Enter& enter, const Work& work, const Drain& drain) const;
    void combine(const Stripe& stripe);
    double of(int kind, int64_t channel) const { return combined_[kind * tiling_->shape.c + channel]; }

  private:
    // Pieces of a span after which float32 slots lose what they add.
    int64_t pieces_per_drain(const Span& span) const;
    double* partial(int64_t task, int kind) { return partial_.data() + (task * kinds_ + kind) * most_channels_; }
    const Tiling* tiling_;
    int kinds_;
    int64_t most_channels_ = 0;
    std::vector<double> partial_, combined_;
};

template <class T>
void Sums::drain(int64_t task, const Span& span, int kind, T* slots) {
    const int64_t period = tiling_->period(span), length = span.channels == 1 ? period : span.length;
    double* sums = partial(task, kind) + (span.channel - tiling_->channels(tiling_->tasks[task]).first);
    const T* run = slots;
    for (int64_t rows = span.channels == 1 ? 1 : period / span.lanes(); rows > 0; --rows) {
        if (length == 1) {  // channels last: a thousand runs of one lane
            for (int64_t c = 0; c < span.channels; ++c) sums[c] += *run++;
            continue;
        }
        for (int64_t c = 0; c < span.channels; ++c, run += length) {
            double eight[8] = {};
            int64_t l = 0;
            for (; l + 8 <= length; l += 8)
                for (int j = 0; j < 8; ++j) eight[j] += run[l + j];
            for (; l < length; ++l) eight[0] += run[l];
            sums[c] +=
                ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]));
        }
    }
    std::fill_n(slots, period, T{0});
}

template <class Enter, class Work, class Drain>
void Sums::for_pieces(int64_t task, const Enter& enter, const Work& work, const Drain& drain) const {
    const Span* span = nullptr;
    int64_t often = 0, undrained = 0;
    Pieces piece(*tiling_, tiling_->tasks[task]);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        if (span != &piece.span()) {
            span = &piece.span();
            enter(*span);
            often = pieces_per_drain(*span);
        }
        work(piece, next);
        if (++undrained < often && next && &next.span() == span) continue;
        drain(*span);
        undrained = 0;
    }
}

// ---- threads
// ---------------------------------------------------------------------------------------------------------

// Threads that pay for a problem of this size.
int useful_threads(const Shape& shape, int threads);

template <class Work>
void parallel_for(int64_t first, int64_t last, int threads, const Work& work) {
    // Not `if (threads > 1)`: a region of one thread would make the regions within it nested ones, for which libgomp
    // starts new threads each time, while those of its pool still spin on the cores.
    if (threads <= 1) {
        for (int64_t i = first; i < last; ++i) work(i);
        return;
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = first; i < last; ++i) work(i);
}

// Runs work(stripe, threads) for all stripes: side by side where there are enough of them (a channel's data then stays
// in one core's cache between two passes), else one after the other, each on all threads.
template <class Work>
void for_stripes(const Tiling& tiling, int threads, const Work& work) {
    const int64_t stripes = static_cast<int64_t>(tiling.stripes.size());
    const bool side_by_side = stripes >= 4 * threads;
    parallel_for(0, stripes, side_by_side ? threads : 1,
                 [&](int64_t g) { work(tiling.stripes[g], side_by_side ? 1 : threads); });
}

}  // namespace sca
