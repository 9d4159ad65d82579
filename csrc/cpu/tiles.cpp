#include "tiles.h"

#include <memory>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace sca {
namespace {

constexpr int64_t kStreamBytes = int64_t{8} << 20;
constexpr int64_t kThreadElements = 1 << 14;

constexpr int64_t spaced(int64_t lanes) { return padded(lanes) + kLine; }
bool whole_lines(const Place& place, int64_t lanes) { return place.lane == 1 && lanes % kLine == 0; }
constexpr int64_t kPieceStep = spaced(kMostLanes);

template <class Word>
void gather(const char* from, int64_t stride, int64_t lanes, char* to) {
    const Word* source = reinterpret_cast<const Word*>(from);
    Word* row = reinterpret_cast<Word*>(to);
    for (int64_t l = 0; l < lanes; ++l) row[l] = source[l * stride];
    std::fill(row + lanes, row + padded(lanes), Word{0});
}

template <class Word>
void scatter(const char* from, int64_t stride, int64_t lanes, char* to) {
    for (int64_t l = 0; l < lanes; ++l)
        reinterpret_cast<Word*>(to)[l * stride] = reinterpret_cast<const Word*>(from)[l];
}

}  // namespace

Scratch::Scratch(int64_t tile_rows, int64_t tile_lanes, int64_t piece_rows) : tile_step_(spaced(tile_lanes)) {
    static thread_local std::unique_ptr<float[]> memory;
    static thread_local int64_t size = 0;
    const int64_t wanted = tile_rows * tile_step_ + piece_rows * kPieceStep + 16;
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

Pieces::Pieces(const Layout& layout, const Block& block) : layout_(&layout), block_(&block), tile_(block.first) {
    measure();
}

void Pieces::measure() {
    if (!*this) return;
    lanes_ = layout_->parts[block_->part].lanes() * layout_->rows(tile_);
    size = std::min(kMostLanes, lanes_ - begin);
    if (size > kLine) size -= size % kLine;
}

Pieces& Pieces::operator++() {
    begin += size;
    if (begin >= lanes_) {
        begin = 0;
        ++tile_;
    }
    measure();
    return *this;
}

Place Pieces::at(const View& view) const {
    Place place = layout_->at(view, layout_->parts[block_->part], tile_);
    if (place.data != nullptr) place.data += begin * place.lane * element_size(place.dtype);
    return place;
}

Lanes slice(const Lanes& tile, int64_t begin, int64_t size) {
    const auto from = [begin](const float* lanes) { return lanes == nullptr ? nullptr : lanes + begin; };
    Lanes piece = tile;
    piece.size = size;
    for (const float** lanes :
         {&piece.rate, &piece.scale, &piece.shift, &piece.gate, &piece.center, &piece.g_y, &piece.slope, &piece.bias})
        *lanes = from(*lanes);
    return piece;
}

Source read(const Place& from, const Place& ahead, int64_t first, int64_t steps, int64_t lanes, const Rows& buffer) {
    const int64_t size = element_size(from.dtype);
    const char* start = from.data + first * from.t * size;
    if (whole_lines(from, lanes)) return {start, from.t, (ahead.data - from.data) / size};
    char* to = reinterpret_cast<char*>(buffer.data);
    const int64_t row = buffer.step * static_cast<int64_t>(sizeof(float));
    for (int64_t i = 0; i < steps; ++i)
        (size == 4 ? gather<uint32_t> : gather<uint16_t>)(start + i * from.t * size, from.lane, lanes, to + i * row);
    return {to, row / size, 0};
}

Output::Output(const Place& to, int64_t first, int64_t steps, int64_t lanes, const Rows& buffer, bool stream)
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
        (size == 4 ? scatter<uint32_t> : scatter<uint16_t>)(from + i * sink.step * size, to_.lane, lanes_,
                                                            to_.data + i * to_.t * size);
}

void read_state(const Place& from, float otherwise, int64_t lanes, float* to) {
    if (from.data == nullptr)
        std::fill_n(to, padded(lanes), otherwise);
    else
        gather<uint32_t>(from.data, from.lane, lanes, reinterpret_cast<char*>(to));
}

void write_state(const float* from, int64_t lanes, const Place& to) {
    if (to.data != nullptr) scatter<uint32_t>(reinterpret_cast<const char*>(from), to.lane, lanes, to.data);
}

bool worth_streaming(const Shape& shape, DType dtype) {
    return shape.t * shape.n * shape.c * shape.s * element_size(dtype) > kStreamBytes;
}

void finish_streaming([[maybe_unused]] bool streamed) {
#if defined(__SSE2__)
    if (streamed) _mm_sfence();
#endif
}

Sums::Sums(const Layout& layout, int kinds) : layout_(&layout), kinds_(kinds) {
    for (const Part& part : layout.parts) most_channels_ = std::max(most_channels_, part.channels);
    partial_.resize(layout.blocks.size() * kinds * most_channels_);
    total_.resize(kinds * layout.shape.c);
}

void Sums::combine(const Group& group) {
    for (int kind = 0; kind < kinds_; ++kind) {
        double* total = total_.data() + kind * layout_->shape.c + group.channel;
        std::fill_n(total, group.channels, 0.0);
        for (int64_t block = group.first; block < group.last; ++block)
            for (int64_t c = 0; c < group.channels; ++c) total[c] += partial(block, kind)[c];
    }
}

int useful_threads(const Shape& shape, int threads) {
    return shape.t * shape.n * shape.c * shape.s < kThreadElements ? 1 : std::max(1, threads);
}

}  // namespace sca
