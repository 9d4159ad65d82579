// The parts of winograd.h that are compiled once per instruction set, from winograd.inl.
//
// A tile is a 2x2 square of a map, with the 4x4 patch around it that it is computed from. What stands for tiles or
// filters between two steps has 16 planes, one for each element of a transformed patch.
#pragma once

#include <cstdint>

namespace sca {

constexpr int64_t kPlanes = 16;
// Planes come in so many shares, the rows of a transformed patch, that can be computed one by one.
constexpr int64_t kShares = 4;
// Channels that lie together where they are the columns of a product.
constexpr int64_t kPanel = 16;
// Rows of a product are taken by as many, or by a divisor of it.
constexpr int64_t kRows = 8;

// Floats from one plane of so many to the next: planes whose equal elements lie a power of two apart would compete for
// the same few cache sets.
constexpr int64_t plane_size(int64_t floats) { return (floats + 1023) / 1024 * 1024 + 5 * 16; }

// Activations [images, height, width, channels], from memory as floats or as bits.
struct Map {
    const float* floats;
    const uint8_t* bits;
    int64_t images, height, width, channels;

    int64_t tile_rows() const { return (height + 1) / 2; }
    int64_t tile_columns() const { return (width + 1) / 2; }
    int64_t tiles() const { return images * tile_rows() * tile_columns(); }
    int64_t bytes() const { return (images * height * width * channels + 7) / 8; }  // of bits
};

// Transformed tiles: plane p of tile t at p * plane + t * pitch, channels next to each other.
struct Planes {
    float* data;
    int64_t plane, pitch;
};

struct WinogradKernels {
    // Tiles [first, first + count) of the grid that covers `tiled`: patches of `from`, whose top left corner lies
    // (rows, columns) above and left of the tile's -> B^T d B: all planes, or 4 (share - 1) to 4 share.
    void (*patches[kShares + 1])(const Map& from, const Map& tiled, int64_t rows, int64_t columns, int64_t first,
                                 int64_t count, const Planes& to);
    // Tiles [first, first + count) of a map -> A g A^T, the planes likewise.
    void (*squares[kShares + 1])(const Map& from, int64_t first, int64_t count, const Planes& to);
    // Tiles [first, first + count) of `to`, from patches and filters (see filters()); bias may be null. `scratch` holds
    // kPlanes planes of 2 * kPanel floats for each of count tiles, rounded up to kRows.
    void (*outputs)(const Planes& patches, int64_t depth, const float* filters, const float* bias, const Map& to,
                    float* data, int64_t first, int64_t count, float* scratch);
    // One plane: to[rows, channels, in whole panels] += squares^T patches, over `count` tiles. `to` has a multiple of
    // kRows rows; what lies behind the rows and the channels may be written or not.
    void (*products)(const float* squares, int64_t squares_pitch, const float* patches, int64_t patches_pitch,
                     int64_t count, int64_t rows, int64_t channels, float* to);
    // Filters [9][count][kPanel], kPanel of them side by side -> planes [count][kPanel], `plane` floats apart; turned:
    // by half a turn.
    void (*filters)(const float* from, int64_t count, bool turned, float* to, int64_t plane);
    // Sums of so many slices of planes [panels * kPanel], `plane` and `slice` floats apart -> G^T (.) G as
    // [9][panels * kPanel].
    void (*gradients)(const float* from, int64_t plane, int64_t slices, int64_t slice, int64_t panels, float* to);
};

}  // namespace sca
