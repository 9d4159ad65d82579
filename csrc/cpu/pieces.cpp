#include "pieces.h"

#include <memory>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace sca {
namespace {

constexpr int64_t kStreamBytes = int64_t{8} << 20;
constexpr int64_t kThreadElements = 1 << 14;
// Terms that a float32 slot adds up at most before they go on in double.
constexpr int64_t kMostAdditions = 1024;

constexpr int64_t spaced(int64_t lanes) { return padded(lanes) + kLine; }
bool whole_lines(const LaneView& view, int64_t lanes) { return view.lane == 1 && lanes % kLine == 0; }
constexpr int64_t kPieceStep = spaced(kMostLanes);

template <class Word>
void gather_row(const char* from, int64_t stride, int64_t lanes, char* to) {
    const Word* source = reinterpret_cast<const Word*>(from);
    Word* row = reinterpret_cast<Word*>(to);
    for (int64_t l = 0; l < lanes; ++l) row[l] = source[l * stride];
    std::fill(row + lanes, row + padded(lanes), Word{0});
}

template <class Word>
void scatter_row(const char* from, int64_t stride, int64_t lanes, char* to) {
    for (int64_t l = 0; l < lanes; ++l)
        reinterpret_cast<Word*>(to)[l * stride] = reinterpret_cast<const Word*>(from)[l];
}

}  // namespace

Scratch::Scratch(int64_t slot_rows, int64_t slots, int64_t piece_rows) : slot_step_(spaced(slots)) {
    static thread_local std::unique_ptr<float[]> memory;
    static thread_local int64_t size = 0;
    const int64_t wanted = slot_rows * slot_step_ + piece_rows * kPieceStep + 16;
    if (size < wanted) {
        memory.reset(new float[wanted]);
        size = wanted;
    }
    next_ = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
}

Rows Scratch::piece_rows(int64_t count) { return take(count, kPieceStep); }

Rows Scratch::take(int64_t count, int64_t step) {
    const Rows rows{next_, step};
    next_ += count * step;
    return rows;
}

Pieces::Pieces(const Tiling& tiling, const Task& task)
    : tiling_(&tiling), task_(&task), tile_(task.first), span_(task.first_span) {
    measure();
}

void Pieces::measure() {
    if (!*this) return;
    lanes_ = span().lanes() * tiling_->rows(tile_);
    size = std::min(kMostLanes, lanes_ - begin_);
    if (size > kLine) size -= size % kLine;
}

Pieces& Pieces::operator++() {
    begin_ += size;
    if (begin_ >= lanes_) {
        begin_ = 0;
        if (++span_ == task_->last_span) {
            span_ = task_->first_span;
            ++tile_;
        }
    }
    measure();
    return *this;
}

LaneView Pieces::at(const View& view) const {
    LaneView found = tiling_->at(view, span(), tile_);
    if (found.data != nullptr) found.data += begin_ * found.lane * element_size(found.dtype);
    return found;
}

Lanes Pieces::lanes(const Lanes& span) const {
    Lanes lanes = span;
    lanes.size = size;
    lanes.period = tiling_->period(this->span());
    lanes.first = begin_ % lanes.period;
    return lanes;
}

Source read(const LaneView& from, const LaneView& ahead, int64_t first, int64_t steps, int64_t lanes,
            const Rows& buffer, bool last) {
    const int64_t size = element_size(from.dtype);
    const char* start = from.data + first * from.t * size;
    if (whole_lines(from, lanes)) return {start, from.t, (ahead.data - from.data) / size, last};
    char* to = reinterpret_cast<char*>(buffer.data);
    const int64_t row = buffer.step * static_cast<int64_t>(sizeof(float));
    for (int64_t i = 0; i < steps; ++i)
        (size == 4 ? gather_row<uint32_t> : gather_row<uint16_t>)(start + i * from.t * size, from.lane, lanes,
                                                                  to + i * row);
    return {to, row / size, 0, false};
}

Output::Output(const LaneView& to, int64_t first, int64_t steps, int64_t lanes, const Rows& buffer, bool stream)
    : sink{nullptr, 0, false}, to_(to), steps_(steps), lanes_(lanes) {
    if (to.data == nullptr) return;
    const int64_t size = element_size(to.dtype);
    to_.data += first * to.t * size;
    const bool aligned = (reinterpret_cast<uintptr_t>(to_.data) | static_cast<uintptr_t>(to.t * size)) % 64 == 0;
    if (whole_lines(to, lanes))
        sink = {to_.data, to.t, stream && aligned && to.dtype == DType::float32};
    else
        sink = {buffer.data, buffer.step * static_cast<int64_t>(sizeof(float)) / size, false};
}

void Output::finish() const {
    if (to_.data == nullptr || whole_lines(to_, lanes_)) return;
    const int64_t size = element_size(to_.dtype);
    const char* from = static_cast<const char*>(sink.data);
    for (int64_t i = 0; i < steps_; ++i)
        (size == 4 ? scatter_row<uint32_t> : scatter_row<uint16_t>)(from + i * sink.step * size, to_.lane, lanes_,
                                                                    to_.data + i * to_.t * size);
}

void read_state(const LaneView& from, float otherwise, int64_t lanes, float* to) {
    if (from.data == nullptr)
        std::fill_n(to, padded(lanes), otherwise);
    else
        gather_row<uint32_t>(from.data, from.lane, lanes, reinterpret_cast<char*>(to));
}

void write_state(const float* from, int64_t lanes, const LaneView& to) {
    if (to.data != nullptr) scatter_row<uint32_t>(reinterpret_cast<const char*>(from), to.lane, lanes, to.data);
}

bool worth_streaming(const Shape& shape, DType dtype) {
    return shape.t * shape.n * shape.c * shape.s * element_size(dtype) > kStreamBytes;
}

void finish_streaming([[maybe_unused]] bool streamed) {
#if defined(__SSE2__)
    if (streamed) _mm_sfence();
#endif
}

const float* Parameters::add(Row row) {
    row.slots = scratch_->slot_row();
    rows_[count_++] = row;
    return row.slots;
}

void Parameters::fill(const Span& span) const {
    const int64_t period = tiling_->period(span), lanes = span.lanes();
    for (const Row* row = rows_; row < rows_ + count_; ++row) {
        if (span.channels == 1) {
            std::fill_n(row->slots, period, row->of(span.channel));
            continue;
        }
        for (int64_t c = 0; c < span.channels; ++c)
            std::fill_n(row->slots + c * span.length, span.length, row->of(span.channel + c));
        for (int64_t l = lanes; l < period; ++l) row->slots[l] = row->slots[l - lanes];
    }
}

Sums::Sums(const Tiling& tiling, int kinds) : tiling_(&tiling), kinds_(kinds) {
    for (const Task& task : tiling.tasks) most_channels_ = std::max(most_channels_, tiling.channels(task).second);
    partial_.resize(tiling.tasks.size() * kinds * most_channels_);
    combined_.resize(kinds * tiling.shape.c);
}

int64_t Sums::pieces_per_drain(const Span& span) const {
    const int64_t lanes = std::min(kMostLanes, span.lanes() * tiling_->most_rows());
    const int64_t additions = (lanes + tiling_->period(span) - 1) / tiling_->period(span) * tiling_->shape.t;
    return std::max<int64_t>(1, kMostAdditions / additions);
}

void Sums::combine(const Stripe& stripe) {
    for (int kind = 0; kind < kinds_; ++kind) {
        double* sums = combined_.data() + kind * tiling_->shape.c + stripe.channel;
        std::fill_n(sums, stripe.channels, 0.0);
        for (int64_t task = stripe.first; task < stripe.last; ++task) {
            const auto [first, channels] = tiling_->channels(tiling_->tasks[task]);
            for (int64_t c = 0; c < channels; ++c) sums[first - stripe.channel + c] += partial(task, kind)[c];
        }
    }
}

int useful_threads(const Shape& shape, int threads) {
    return shape.t * shape.n * shape.c * shape.s < kThreadElements ? 1 : std::max(1, threads);
}

}  // namespace sca
