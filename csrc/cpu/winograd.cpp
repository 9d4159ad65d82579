#include "winograd.h"

#include <algorithm>
#include <memory>

#include "isa.h"
#include "tiles.h"

namespace sca {
namespace {

// Tiles of one block of outputs: few enough for their planes to stay in a core's cache, and enough to make the filters,
// which don't where they are many, worth their way.
constexpr int64_t block_tiles(int64_t channels) { return std::max<int64_t>(48, channels / 64 * 12); }
// Floats of the tiles between two sums of the filters' gradient, all planes of both factors: a cache that cores share.
constexpr int64_t kChunkFloats = 1 << 19;
// Of these, as many are added up in registers: their columns stay in a core's first cache, and few numbers of unlike size
// meet.
constexpr int64_t kSummed = 128;
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
    const int64_t plane = plane_size(panels(columns) * depth * kPanel), pieces = (depth + kGathered - 1) / kGathered;
    Buffer planes(kPlanes * plane);
    parallel_for(0, panels(columns) * pieces, threads, [&](int64_t piece) {
        const int64_t column = piece / pieces * kPanel, first = piece % pieces * kGathered;
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
    const int64_t tiles = to.tiles(), row = pitch(from.channels), most = block_tiles(from.channels);
    if (tiles == 0) return;
    const int64_t rounds = (tiles + threads * most - 1) / (threads * most);
    const int64_t count = rounded_up((tiles + threads * rounds - 1) / (threads * rounds), kRows);
    const WinogradKernels& kernel = kernels().winograd;
    parallel_for(0, (tiles + count - 1) / count, threads, [&](int64_t block) {
        const int64_t first = block * count, now = std::min(count, tiles - first);
        const int64_t plane = plane_size(count * row);
        const Planes patches{thread_memory(kPlanes * (plane + plane_size(count * 2 * kPanel))), plane, row};
        kernel.patches(from, to, rows, columns, first, now, patches);
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
    const int64_t tile = kPlanes * (pitch(c.in) + pitch(c.out)), piece = 2 * kRows;
    const int64_t count = rounded_up(kChunkFloats / tile, kSummed);
    const Planes patches{nullptr, plane_size(count * pitch(c.in)), pitch(c.in)};
    const Planes squares{nullptr, plane_size(count * pitch(c.out)), pitch(c.out)};
    const int64_t sum_size = plane_size(rows * width);
    const Buffer sums(kPlanes * sum_size), chunk(kPlanes * (patches.plane + squares.plane));
    float *in = chunk.data(), *out = in + kPlanes * patches.plane;
    const WinogradKernels& kernel = kernels().winograd;
    if (tiles == 0) std::fill_n(sums.data(), kPlanes * sum_size, 0.0f);
    for (int64_t first = 0; first < tiles; first += count) {
        const int64_t now = std::min(count, tiles - first);
        parallel_for(0, (now + piece - 1) / piece, threads, [&](int64_t i) {
            const int64_t begin = i * piece, size = std::min(piece, now - begin);
            kernel.patches(from, to, c.pad_rows, c.pad_columns, first + begin, size,
                           {in + begin * patches.pitch, patches.plane, patches.pitch});
            kernel.squares(to, first + begin, size, {out + begin * squares.pitch, squares.plane, squares.pitch});
        });
        parallel_for(0, kPlanes, threads, [&](int64_t p) {
            float* sum = sums.data() + p * sum_size;
            if (first == 0) std::fill_n(sum, rows * width, 0.0f);
            for (int64_t t = 0; t < now; t += kSummed)
                kernel.products(out + p * squares.plane + t * squares.pitch, squares.pitch,
                                in + p * patches.plane + t * patches.pitch, patches.pitch, std::min(kSummed, now - t),
                                rows, width / kPanel, sum);
        });
    }
    parallel_for(0, c.out, threads, [&](int64_t o) {
        float* row = c.in_innermost && width == c.in ? g_filters + o * 9 * width : thread_memory(9 * width);
        kernel.gradients(sums.data() + o * width, sum_size, width / kPanel, row);
        if (row == g_filters + o * 9 * width) return;
        float* to = g_filters + o * 9 * c.in;
        for (int64_t k = 0; k < 9; ++k)
            for (int64_t i = 0; i < c.in; ++i) to[c.in_innermost ? k * c.in + i : i * 9 + k] = row[k * width + i];
    });
}

}  // namespace sca
