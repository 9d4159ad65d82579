#include "winograd.h"

#include <algorithm>
#include <memory>

#include "isa.h"
#include "pieces.h"

namespace sca {
namespace {

// Tiles of one task: few enough for their planes to stay in a core's cache, and enough to make the filters,
// which don't where they are many, worth their way.
constexpr int64_t task_tiles(int64_t channels) { return std::max<int64_t>(48, channels / 64 * 12); }
// Tiles that are added up in registers for the filters' gradient: their columns stay in a core's first cache, and few
// numbers of unlike size meet.
constexpr int64_t kSummed = 64;
// The sums of the filters' gradient are kept in slices, each of its own tiles, so that threads share nothing: so many
// and so many floats at most, each of so many batches of kSummed tiles at least. Where these are few, a thread takes a
// share of the planes.
constexpr int64_t kSlices = 8, kSliceFloats = 1 << 23, kSliceBatches = 8;
// Filters that are gathered before they are transformed.
constexpr int64_t kGathered = 32;

constexpr int64_t rounded_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }
// A panel more than they fill, so that equal channels of neighbouring tiles don't compete for a cache set.
constexpr int64_t pitch(int64_t channels) { return rounded_up(channels, kPanel) + kPanel; }
constexpr int64_t panels(int64_t channels) { return rounded_up(channels, kPanel) / kPanel; }

// Uninitialised floats from a multiple of 64 bytes on.
class Buffer {
  public:
    explicit Buffer(int64_t size) : memory_(new float[size + kPanel]) {}
    float* data() const {
        return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64);
    }

  private:
    std::unique_ptr<float[]> memory_;
};

// At least `size` floats that this thread keeps between calls.
float* thread_memory(int64_t size) {
    static thread_local std::unique_ptr<Buffer> memory;
    static thread_local int64_t held = 0;
    if (held < size) {
        memory = std::make_unique<Buffer>(size);
        held = size;
    }
    return memory->data();
}

// Transformed filters [16][panels of columns][depth][kPanel] of a product over `depth` channels: input channels, or,
// where the filters are turned, output channels.
Buffer transformed(const Convolution& c, const float* filters, bool turned, int threads) {
    const int64_t depth = turned ? c.out : c.in, columns = turned ? c.in : c.out;
    const int64_t position = c.in_innermost ? c.in : 1, channel = c.in_innermost ? 1 : 9;
    const int64_t plane = plane_size(panels(columns) * depth * kPanel), sections = (depth + kGathered - 1) / kGathered;
    Buffer planes(kPlanes * plane);
    parallel_for(0, panels(columns) * sections, threads, [&](int64_t task) {
        const int64_t column = task / sections * kPanel, first = task % sections * kGathered;
        const int64_t count = std::min(kGathered, depth - first), width = std::min(kPanel, columns - column);
        const int64_t out = turned ? first : column, outs = turned ? count : width;
        const int64_t in = turned ? column : first, ins = turned ? width : count;
        const int64_t out_step = turned ? kPanel : 1, in_step = turned ? 1 : kPanel;
        float gathered[9 * kGathered * kPanel];
        if (width < kPanel) std::fill_n(gathered, 9 * count * kPanel, 0.0f);
        for (int64_t o = 0; o < outs; ++o)
            for (int64_t k = 0; k < 9; ++k) {
                const float* from = filters + (out + o) * c.in * 9 + k * position + in * channel;
                float* to = gathered + k * count * kPanel + o * out_step;
                for (int64_t i = 0; i < ins; ++i) to[i * in_step] = from[i * channel];
                for (int64_t i = 0; i < ins; i += kPanel) __builtin_prefetch(from + (ins + i) * channel);
            }
        kernels().winograd.filters(gathered, count, turned, planes.data() + column * depth + first * kPanel, plane);
    });
    return planes;
}

// to = the convolution of `from`, padded by so many rows and columns, with transformed filters.
void convolve(const Map& from, int64_t rows, int64_t columns, const Buffer& filters, const float* bias, const Map& to,
              float* data, int threads) {
    const int64_t tiles = to.tiles(), row = pitch(from.channels), most = task_tiles(from.channels);
    if (tiles == 0) return;
    const int64_t rounds = (tiles + threads * most - 1) / (threads * most);
    const int64_t count = rounded_up((tiles + threads * rounds - 1) / (threads * rounds), kRows);
    const WinogradKernels& kernel = kernels().winograd;
    parallel_for(0, (tiles + count - 1) / count, threads, [&](int64_t task) {
        const int64_t first = task * count, now = std::min(count, tiles - first);
        const int64_t plane = plane_size(count * row);
        const Planes patches{thread_memory(kPlanes * (plane + plane_size(count * 2 * kPanel))), plane, row};
        kernel.patches[0](from, to, rows, columns, first, now, patches);
        kernel.outputs(patches, from.channels, filters.data(), bias, to, data, first, now,
                       patches.data + kPlanes * patches.plane);
    });
}

Map input(const Convolution& c, const float* floats, const uint8_t* bits) {
    return {floats, bits, c.images, c.height, c.width, c.in};
}

Map output(const Convolution& c, const float* floats) {
    return {floats, nullptr, c.images, c.out_height(), c.out_width(), c.out};
}

}  // namespace

void winograd_forward(const Convolution& c, const float* x, const float* filters, const float* bias, float* y,
                      int threads) {
    convolve(input(c, x, nullptr), c.pad_rows, c.pad_columns, transformed(c, filters, false, threads), bias,
             output(c, y), y, threads);
}

void winograd_backward_input(const Convolution& c, const float* g_y, const float* filters, float* g_x, int threads) {
    convolve(output(c, g_y), 2 - c.pad_rows, 2 - c.pad_columns, transformed(c, filters, true, threads), nullptr,
             input(c, g_x, nullptr), g_x, threads);
}

void winograd_backward_filters(const Convolution& c, const float* g_y, const float* x, const uint8_t* bits,
                               float* g_filters, int threads) {
    const Map from = input(c, x, bits), to = output(c, g_y);
    const int64_t rows = rounded_up(c.out, kRows), width = panels(c.in) * kPanel, tiles = to.tiles();
    const int64_t plane = plane_size(rows * width), slice = kPlanes * plane, batches = (tiles + kSummed - 1) / kSummed;
    const int64_t slices = std::clamp<int64_t>(std::min(kSliceFloats / slice, batches / kSliceBatches), 1, kSlices);
    const int64_t shares = slices < kShares ? kShares : 1, share = kPlanes / shares;
    const Buffer sums(slices * slice);
    const WinogradKernels& kernel = kernels().winograd;
    parallel_for(0, slices * shares, threads, [&](int64_t task) {
        const int64_t slice_index = task / shares, own = task % shares, kind = shares == 1 ? 0 : own + 1;
        float* sum = sums.data() + slice_index * slice + own * share * plane;
        std::fill_n(sum, share * plane, 0.0f);
        Planes patches{nullptr, plane_size(kSummed * pitch(c.in)), pitch(c.in)};
        Planes squares{nullptr, plane_size(kSummed * pitch(c.out)), pitch(c.out)};
        patches.data = thread_memory(share * (patches.plane + squares.plane));
        squares.data = patches.data + share * patches.plane;
        for (int64_t batch = slice_index * batches / slices; batch < (slice_index + 1) * batches / slices; ++batch) {
            const int64_t first = batch * kSummed, count = std::min(kSummed, tiles - first);
            kernel.patches[kind](from, to, c.pad_rows, c.pad_columns, first, count, patches);
            kernel.squares[kind](to, first, count, squares);
            for (int64_t p = 0; p < share; ++p)
                kernel.products(squares.data + p * squares.plane, squares.pitch, patches.data + p * patches.plane,
                                patches.pitch, count, c.out, c.in, sum + p * plane);
        }
    });
    const bool in_place = c.in_innermost && width == c.in;
    parallel_for(0, c.out, threads, [&](int64_t o) {
        float* const to = g_filters + o * 9 * c.in;
        float* const row = in_place ? to : thread_memory(9 * width);
        kernel.gradients(sums.data() + o * width, plane, slices, slice, width / kPanel, row);
        if (in_place) return;
        for (int64_t k = 0; k < 9; ++k)
            for (int64_t i = 0; i < c.in; ++i) to[c.in_innermost ? k * c.in + i : i * 9 + k] = row[k * width + i];
    });
}

}  // namespace sca
