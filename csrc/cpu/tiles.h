// What the forward and the backward pass share: walking through the tiles of a layout, memory in and out of kernels,
// sums per channel, threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "layout.h"

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

// Rows of floats for one block, out of memory that its thread keeps between calls. Slot rows hold a period of slots,
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

// Steps through the pieces of a block: at most kMostLanes lanes [begin, begin + size) of one part of a tile after the
// other, whole lines except for what is left of it.
class Pieces {
  public:
    Pieces(const Layout& layout, const Block& block);
    explicit operator bool() const { return tile_ < block_->last; }
    Pieces& operator++();
    const Part& part() const { return layout_->parts[part_]; }
    Place at(const View& view) const;
    // Where `next` lies in a view; here if there is none.
    Place ahead(const Pieces& next, const View& view) const { return next ? next.at(view) : at(view); }
    // The lanes of the piece, with the parameters of its part.
    Lanes lanes(const Lanes& part) const;

    int64_t size = 0;

  private:
    void measure();
    const Layout* layout_;
    const Block* block_;
    int64_t tile_, begin_ = 0, lanes_ = 0;
    int part_;
};

// ---- memory
// ----------------------------------------------------------------------------------------------------------

// Time steps [first, first + steps) of a place for the kernels: where they are if they are whole lines of memory, else
// gathered into `buffer` and padded with zeros. `ahead` is a place of the same tensor that will be wanted soon.
Source read(const Place& from, const Place& ahead, int64_t first, int64_t steps, int64_t lanes, const Rows& buffer,
            bool last = false);

// Where kernels write time steps [first, first + steps): the place itself, or a buffer that finish() scatters; nowhere
// if the place is null.
class Output {
  public:
    Output(const Place& to, int64_t first, int64_t steps, int64_t lanes, const Rows& buffer, bool stream);
    void finish() const;
    Sink sink;

  private:
    Place to_;
    int64_t steps_, lanes_;
};

// A state (float32), or a constant for lack of one, padded.
void read_state(const Place& from, float otherwise, int64_t lanes, float* to);
void write_state(const float* from, int64_t lanes, const Place& to);

// Outputs above a size are written past the caches: they would not stay there, and reading the lines that are about to
// be overwritten costs a third of the traffic.
bool worth_streaming(const Shape& shape, DType dtype);
// To be called by the thread that wrote them.
void finish_streaming(bool streamed);

// ---- channels
// --------------------------------------------------------------------------------------------------------

// Per-channel parameters, as rows of slots that are filled part by part.
class Parameters {
  public:
    Parameters(const Layout& layout, Scratch& scratch) : layout_(&layout), scratch_(&scratch) {}
    // A row for [C] numbers; `otherwise` where there are none.
    const float* row(const float* per_channel, float otherwise) { return add({per_channel, nullptr, otherwise}); }
    const float* row(const uint8_t* mask) { return add({nullptr, mask, 1.0f}); }
    // Gives each slot its channel's values.
    void fill(const Part& part) const;

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
    const Layout* layout_;
    Scratch* scratch_;
    Row rows_[8]{};
    int count_ = 0;
};

// Sums per block and channel, combined in the order of blocks: the same whatever the number of threads.
class Sums {
  public:
    Sums(const Layout& layout, int kinds);
    // Adds the slots of one of a block's parts, in an order that depends on the layout alone, and clears them.
    template <class T>
    void fold(int64_t block, const Part& part, int kind, T* slots);
    // Runs work(piece, next) for all pieces of a block, after enter(part) where a part begins; fold(part) is to fold
    // all slots, before the next part and before they have added up too much.
    template <class Enter, class Work, class Fold>
    void for_pieces(int64_t block, const Enter& enter, const Work& work, const Fold& fold) const;
    void combine(const Group& group);
    double total(int kind, int64_t channel) const { return total_[kind * layout_->shape.c + channel]; }

  private:
    // Pieces of a part after which float32 slots lose what they add.
    int64_t pieces_per_fold(const Part& part) const;
    double* partial(int64_t block, int kind) { return partial_.data() + (block * kinds_ + kind) * most_channels_; }
    const Layout* layout_;
    int kinds_;
    int64_t most_channels_ = 0;
    std::vector<double> partial_, total_;
};

template <class T>
void Sums::fold(int64_t block, const Part& part, int kind, T* slots) {
    const int64_t period = layout_->period(part), length = part.channels == 1 ? period : part.length;
    double* sums = partial(block, kind) + (part.channel - layout_->channels(layout_->blocks[block]).first);
    const T* run = slots;
    for (int64_t rows = part.channels == 1 ? 1 : period / part.lanes(); rows > 0; --rows) {
        if (length == 1) {  // channels last: a thousand runs of one lane
            for (int64_t c = 0; c < part.channels; ++c) sums[c] += *run++;
            continue;
        }
        for (int64_t c = 0; c < part.channels; ++c, run += length) {
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

template <class Enter, class Work, class Fold>
void Sums::for_pieces(int64_t block, const Enter& enter, const Work& work, const Fold& fold) const {
    const Part* part = nullptr;
    int64_t often = 0, unfolded = 0;
    Pieces piece(*layout_, layout_->blocks[block]);
    for (Pieces next = piece; piece; piece = next) {
        ++next;
        if (part != &piece.part()) {
            part = &piece.part();
            enter(*part);
            often = pieces_per_fold(*part);
        }
        work(piece, next);
        if (++unfolded < often && next && &next.part() == part) continue;
        fold(*part);
        unfolded = 0;
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

// Runs work(group, threads) for all groups: side by side where there are enough of them (a channel's data then stays in
// one core's cache between two passes), else one after the other, each on all threads.
template <class Work>
void for_groups(const Layout& layout, int threads, const Work& work) {
    const int64_t groups = static_cast<int64_t>(layout.groups.size());
    const bool side_by_side = groups >= 4 * threads;
    parallel_for(0, groups, side_by_side ? threads : 1,
                 [&](int64_t g) { work(layout.groups[g], side_by_side ? 1 : threads); });
}

}  // namespace sca
