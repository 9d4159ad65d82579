// How threads walk over the tiles of an activation [T, N, C, S], V elements at a time; sca_kernels/gpu/plan.py has the
// plan.
//
// A block stays in one stripe and takes consecutive tiles of it; a thread has one row of each tile and V of its
// columns, with all their time steps:
//
//   planes        contiguous maps. A stripe is a channel, a row a sample, a column a position.
//   interleaved   channels_last, [T, N, C], and contiguous maps of few positions, whose C * S elements count as
//                 columns. A stripe is as wide as a tile, whose columns a thread keeps; a row is (n, s), or n.
//
// Tiles, and rows and columns within one, are counted in 32 bits; rows and columns of the tensor, and every offset, in
// 64.
#pragma once

#include "numbers.h"
#include "parameters.h"

namespace sca {

constexpr int kThreads = 128;

template <bool planes, int V>
class Place {
  public:
    static constexpr int kWidth = planes ? 1 : V;  // columns of a thread whose sums are its own

    // Of this thread; or of another, for what a tile begins with.
    SCA_DEVICE explicit Place(const TileParameters& tiles) : Place(tiles, static_cast<int>(threadIdx.x)) {}
    SCA_DEVICE Place(const TileParameters& tiles, int thread)
        : tiles_(tiles), row_in_tile_(thread >> tiles.lane_bits), lane_(thread & (lanes() - 1)) {
        const unsigned block = static_cast<unsigned>(blockIdx.x), stripes = static_cast<unsigned>(tiles.stripes);
        const unsigned split = block / stripes, tile = split * static_cast<unsigned>(tiles.tiles);
        split_ = static_cast<int>(split);
        stripe_ = static_cast<int>(block - split * stripes);
        unsigned row_tile = tile, column_tile = static_cast<unsigned>(stripe_);
        if (planes) {
            const unsigned column_tiles = static_cast<unsigned>(tiles.column_tiles);
            row_tile = tile / column_tiles;
            column_tile = tile - row_tile * column_tiles;
        }
        row_ = static_cast<int64>(row_tile) * tiles.tile_rows + row_in_tile_;
        column_ = static_cast<int64>(column_tile) * tiles.tile_columns + lane_ * V;
        outer_ = row_;
        inner_ = 0;
        if (!planes && tiles.inner > 1) {
            outer_ = row_ / tiles.inner;
            inner_ = row_ - outer_ * tiles.inner;
        }
    }

    SCA_DEVICE int stripe() const { return stripe_; }
    SCA_DEVICE int split() const { return split_; }
    SCA_DEVICE int lane() const { return lane_; }
    SCA_DEVICE int lanes() const { return 1 << tiles_.lane_bits; }
    // Whether this is the first of the threads that have the same columns; in planes, of all.
    SCA_DEVICE bool leads() const { return row_in_tile_ == 0 && (!planes || lane_ == 0); }

    // Whether the tensor has these elements.
    SCA_DEVICE bool valid() const { return row_ < tiles_.rows && column_ < tiles_.columns; }
    // How many elements the tensor has in this tile, of a column (planes: of the channel), the same for all threads.
    SCA_DEVICE int elements() const {
        const int rows = clamped(tiles_.rows - (row_ - row_in_tile_), tiles_.tile_rows);
        return planes ? rows * clamped(tiles_.columns - (column_ - lane_ * V), tiles_.tile_columns) : rows;
    }

    // To the same place of the next tile.
    SCA_DEVICE void next() {
        if (planes) {
            column_ += tiles_.tile_columns;
            if (column_ - lane_ * V < tiles_.columns) return;
            column_ = lane_ * V;
            row_ += tiles_.tile_rows;
            outer_ = row_;
        } else {
            row_ += tiles_.tile_rows;
            outer_ += tiles_.outer_step;
            inner_ += tiles_.inner_step;
            if (inner_ >= tiles_.inner) {
                inner_ -= tiles_.inner;
                ++outer_;
            }
        }
    }

    SCA_DEVICE int64 offset(const Strided& z) const {
        return outer_ * z.outer + inner_ * z.inner + stripe_ * z.stripe + column_;
    }
    template <class T>
    SCA_DEVICE const T* in(const Strided& z) const {
        return static_cast<const T*>(z.data) + offset(z);
    }
    // In a dense tensor in the layout of x; and how far apart its steps are.
    SCA_DEVICE int64 dense() const {
        return (planes ? row_ * tiles_.stripes + stripe_ : row_) * tiles_.columns + column_;
    }
    SCA_DEVICE int64 step() const { return tiles_.rows * tiles_.columns * (planes ? tiles_.stripes : 1); }

    // Channel of a column of this thread; at least tiles.channels where there is none.
    SCA_DEVICE int64 channel(int w) const {
        if (planes) return stripe_;
        const int64 column = column_ + w;
        if (column >= tiles_.columns) return tiles_.channels;
        // Columns of a sample of folded maps are few.
        return tiles_.fold == 1 ? column : static_cast<unsigned>(column) / static_cast<unsigned>(tiles_.fold);
    }
    // Entries of a vector [C] at this thread's columns: one number in planes, V where interleaved.
    template <class N>
    SCA_DEVICE void of_channel(float (&to)[kWidth], const N* vector, float absent) const {
        for (int w = 0; w < kWidth; ++w) {
            const int64 own = channel(w);
            to[w] = vector != nullptr && own < tiles_.channels ? static_cast<float>(vector[own]) : absent;
        }
    }

  private:
    static SCA_DEVICE int clamped(int64 size, int64 most) {
        return static_cast<int>(size < 0 ? 0 : size < most ? size : most);
    }

    const TileParameters& tiles_;
    const int row_in_tile_, lane_;
    int stripe_, split_;
    int64 row_, column_, outer_, inner_;  // the row also in two digits
};

// Adds a step's V values to a thread's sums.
template <int W, int V, class N>
SCA_DEVICE void accumulate(N (&sums)[W], const N (&values)[V]) {
    if constexpr (W == V) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[v] += values[v];
    } else {
        N sum = values[0];
#pragma unroll
        for (int v = 1; v < V; ++v) sum += values[v];
        sums[0] += sum;
    }
}
// Their products, fused: no threshold follows.
template <int W, int V>
SCA_DEVICE void accumulate(float (&sums)[W], const float (&a)[V], const float (&b)[V]) {
    if constexpr (W == V) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[v] = fmaf(a[v], b[v], sums[v]);
    } else {
        float sum = a[0] * b[0];
#pragma unroll
        for (int v = 1; v < V; ++v) sum = fmaf(a[v], b[v], sum);
        sums[0] += sum;
    }
}

// V floats by accesses of up to 16 bytes, which lie `apart` elements from each other.
template <int V>
SCA_DEVICE void load_floats(float (&to)[V], const float* p, int64 apart) {
    constexpr int kAccess = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V / kAccess; ++i) {
        const auto access = load<float, kAccess>(p + i * apart);
#pragma unroll
        for (int j = 0; j < kAccess; ++j) to[i * kAccess + j] = access.at[j];
    }
}
template <int V>
SCA_DEVICE void store_floats(float* p, int64 apart, const float (&from)[V]) {
    constexpr int kAccess = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V / kAccess; ++i) {
        Vector<float, kAccess> access;
#pragma unroll
        for (int j = 0; j < kAccess; ++j) access.at[j] = from[i * kAccess + j];
        store(p + i * apart, access);
    }
}

// V floats of a state in global memory.
template <int V>
SCA_DEVICE void store_state(float* p, const float (&from)[V]) {
    constexpr int kAccess = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += kAccess) {
        Vector<float, kAccess> access;
#pragma unroll
        for (int j = 0; j < kAccess; ++j) access.at[j] = from[i + j];
        store_global(p + i, access);
    }
}

// Per-channel numbers of a block: in planes one per thread, where interleaved V, kept in shared memory to spare
// registers.
template <bool planes, int V>
class PerChannel;

template <int V>
class PerChannel<true, V> {
  public:
    static SCA_DEVICE int bytes(const Place<true, V>&) { return 0; }
    SCA_DEVICE PerChannel(const Place<true, V>&, int) {}
    SCA_DEVICE void put(const float (&from)[1]) { value_ = from[0]; }
    SCA_DEVICE void get(float (&to)[V]) const {
#pragma unroll
        for (int v = 0; v < V; ++v) to[v] = value_;
    }

  private:
    float value_;
};

template <int V>
class PerChannel<false, V> {
    static constexpr int kAccess = V < 4 ? V : 4;

  public:
    static SCA_DEVICE int bytes(const Place<false, V>& place) { return place.lanes() * V * 4; }
    SCA_DEVICE PerChannel(const Place<false, V>& place, int slot)
        : p_(reinterpret_cast<float*>(shared_memory() + slot * bytes(place)) + place.lane() * kAccess),
          apart_(place.lanes() * kAccess) {}
    // All rows of a block have the same numbers; the first writes them. A barrier follows the last put.
    SCA_DEVICE void put(const float (&from)[V]) {
        if (static_cast<int>(threadIdx.x) * kAccess < apart_) store_floats(p_, apart_, from);
    }
    SCA_DEVICE void get(float (&to)[V]) const { load_floats(to, p_, apart_); }

  private:
    float* p_;
    const int apart_;
};

}  // namespace sca
