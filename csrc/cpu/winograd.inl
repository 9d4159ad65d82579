// Source of the kernels of winograd_kernels.h, included by kernels.inl under the same rules.

#include "simd.h"
#include "winograd_kernels.h"

namespace sca {
inline namespace SCA_ISA {
namespace winograd {
namespace {

using native::Floats, native::kLanes, native::load, native::NativeFloat, native::NativeInt, native::store;

// Panels that are multiplied at once, and rows: as many sums as the registers hold.
#if defined(__AVX512F__)
constexpr int kWide = 2, kTall = 8;
#elif defined(__AVX2__)
constexpr int kWide = 1, kTall = 4;
#else
constexpr int kWide = 1, kTall = 2;
#endif
static_assert(kRows % kTall == 0, "rows are whole products of so many");

// Nothing here stands in front of a threshold as it is: a fused multiply-add is welcome.
SCA_HOST_DEVICE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (NativeFloat)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v);
#elif defined(__FMA__)
    return (NativeFloat)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v);
#else
    return a * b + c;
#endif
}

// What the columns of half a panel are taken as: a whole vector would do twice the work.
constexpr int64_t kHalf = kPanel / 2;
#if defined(__AVX512F__)
struct Half {
    __m256 v;

    Half() = default;
    SCA_HOST_DEVICE Half(__m256 x) : v(x) {}
    SCA_HOST_DEVICE Half(float x) : v(_mm256_set1_ps(x)) {}
    friend SCA_HOST_DEVICE Half operator+(Half a, Half b) { return _mm256_add_ps(a.v, b.v); }
    friend SCA_HOST_DEVICE Half multiply_add(Half a, Half b, Half c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
};

// A panel and the half behind it, multiplied by the same rows: they are read once, not twice.
struct PanelAndHalf {
    Floats panel;
    Half half;

    PanelAndHalf() = default;
    SCA_HOST_DEVICE PanelAndHalf(Floats p, Half h) : panel(p), half(h) {}
    SCA_HOST_DEVICE PanelAndHalf(float x) : panel(x), half(x) {}
    friend SCA_HOST_DEVICE PanelAndHalf operator+(PanelAndHalf a, PanelAndHalf b) {
        return {a.panel + b.panel, a.half + b.half};
    }
    friend SCA_HOST_DEVICE PanelAndHalf multiply_add(PanelAndHalf a, PanelAndHalf b, PanelAndHalf c) {
        return {winograd::multiply_add(a.panel, b.panel, c.panel), multiply_add(a.half, b.half, c.half)};
    }
};
#else
using Half = Floats;
#endif

// Columns of a product: what is behind a panel lies so many floats further.
template <class V>
struct Columns {
    using Vector = V;
    static constexpr int kCount = sizeof(V) / sizeof(float);

    static SCA_HOST_DEVICE Vector load(const float* from, int64_t) { return native::load_native<Vector>(from); }
    static SCA_HOST_DEVICE void store(Vector x, float* to) { native::store_native(x, to); }
};
#if defined(__AVX512F__)
template <>
struct Columns<PanelAndHalf> {
    using Vector = PanelAndHalf;
    static constexpr int kCount = kPanel + kHalf;

    static SCA_HOST_DEVICE PanelAndHalf load(const float* from, int64_t panel) {
        return {native::load(from), native::load_native<Half>(from + panel)};
    }
    static SCA_HOST_DEVICE void store(PanelAndHalf x, float* to) {
        native::store(x.panel, to);
        native::store_native(x.half, to + kPanel);
    }
};
#endif

// A number as an argument that is known at compile time.
template <int value>
struct Number {
    static constexpr int kValue = value;
};

// The first `size` lanes; zero in the others.
SCA_HOST_DEVICE Floats load_some(const float* from, int64_t size) {
    if (size >= kLanes) return load(from);
#if defined(__AVX512F__)
    return (NativeFloat)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << size) - 1), from);
#else
    float lanes[kLanes] = {};
    if (size > 0) __builtin_memcpy(lanes, from, size * sizeof(float));
    return load(lanes);
#endif
}

SCA_HOST_DEVICE void store_some(Floats x, float* to, int64_t size) {
    if (size >= kLanes) return store(x, to);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << size) - 1), (__m512)x.v);
#else
    float lanes[kLanes];
    store(x, lanes);
    if (size > 0) __builtin_memcpy(to, lanes, size * sizeof(float));
#endif
}

// Elements [at, at + size) of an activation, as many lanes.
SCA_HOST_DEVICE Floats element(const Map& from, int64_t at, int64_t size) {
    if (from.bits == nullptr) return load_some(from.floats + at, size);
    uint32_t word = 0;
    const int64_t byte = at / 8, left = from.bytes() - byte;
    if (left >= 4)
        __builtin_memcpy(&word, from.bits + byte, 4);
    else
        for (int64_t i = 0; i < left; ++i) word |= static_cast<uint32_t>(from.bits[byte + i]) << 8 * i;
    const uint32_t low = (word >> at % 8) & ((1u << (size < kLanes ? size : kLanes)) - 1);
#if defined(__AVX512F__)
    return (NativeFloat)_mm512_maskz_mov_ps(static_cast<__mmask16>(low), _mm512_set1_ps(1.0f));
#else
    NativeInt lanes = NativeInt{} + static_cast<int32_t>(low);
    for (int i = 0; i < kLanes; ++i) lanes[i] = lanes[i] >> i & 1;
    return __builtin_convertvector(lanes, NativeFloat);
#endif
}

// Where a tile lies.
struct Corner {
    int64_t image, row, column;

    Corner(const Map& map, int64_t tile)
        : image(tile / (map.tile_rows() * map.tile_columns())),
          row(tile / map.tile_columns() % map.tile_rows() * 2),
          column(tile % map.tile_columns() * 2) {}
};

// Tiles of one row of tiles from left to right: neighbours share two columns of B^T d. Of its rows, those in
// [begin, end) are computed, and go to planes from 0 on.
template <int begin, int end>
void patch_row(const Map& from, const Corner& corner, int64_t rows, int64_t columns, int64_t count, float* to,
               const Planes& planes) {
    const int64_t top = corner.row - rows, left = corner.column - columns, line = from.width * from.channels;
    bool inside[4];
    int64_t start[4];  // of each line of the patches
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        inside[i] = top + i >= 0 && top + i < from.height;
        start[i] = ((corner.image * from.height + top + i) * from.width + left) * from.channels;
    }
    for (int64_t c = 0; c < from.channels; c += kLanes) {
        const int64_t size = from.channels - c;
        struct Column {
            Floats sum[4];  // of B^T d
        };
        const auto column = [&](int64_t x) -> Column {
            if (left + x < 0 || left + x >= from.width) return {};
            Floats d[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const int64_t at = start[i] + x * from.channels + c;
                d[i] = inside[i] ? element(from, at, size) : Floats(0.0f);
                if (i >= 2 && from.floats != nullptr)
                    __builtin_prefetch(from.floats + at + 2 * line);  // of the next row of tiles
            }
            return {{d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]}};  // what is not read is not computed
        };
        Column first = column(0), second = column(1);
        for (int64_t t = 0; t < count; ++t) {
            const Column third = column(2 * t + 2), fourth = column(2 * t + 3);
            float* tile = to + t * planes.pitch + c;
#pragma GCC unroll 4
            for (int i = begin; i < end; ++i) {
                float* plane = tile + 4 * (i - begin) * planes.plane;
                store(first.sum[i] - third.sum[i], plane);
                store(second.sum[i] + third.sum[i], plane + planes.plane);
                store(third.sum[i] - second.sum[i], plane + 2 * planes.plane);
                store(second.sum[i] - fourth.sum[i], plane + 3 * planes.plane);
            }
            first = third;
            second = fourth;
        }
    }
}

template <int begin, int end>
void patches(const Map& from, const Map& tiled, int64_t rows, int64_t columns, int64_t first, int64_t count,
             const Planes& to) {
    for (int64_t t = 0, run; t < count; t += run) {
        const Corner corner(tiled, first + t);
        const int64_t left = tiled.tile_columns() - corner.column / 2;
        run = left < count - t ? left : count - t;
        patch_row<begin, end>(from, corner, rows, columns, run, to.data + t * to.pitch, to);
    }
}

template <int begin, int end>
void squares(const Map& from, int64_t first, int64_t count, const Planes& to) {
    const int64_t side = from.channels, line = from.width * side;
    for (int64_t t = 0; t < count; ++t) {
        const Corner corner(from, first + t);
        const float* start = from.floats + (corner.image * from.height + corner.row) * line + corner.column * side;
        const bool below = corner.row + 1 < from.height, right = corner.column + 1 < from.width;
        float* row = to.data + t * to.pitch;
        for (int64_t c = 0; c < from.channels; c += kLanes) {
            const auto at = [&](int64_t y, int64_t x) {
                const float* p = start + y * line + x * side + c;
                __builtin_prefetch(p + 2 * line);  // of the next row of tiles
                return load_some(p, from.channels - c);
            };
            const Floats zero = 0.0f, g00 = at(0, 0), g01 = right ? at(0, 1) : zero, g10 = below ? at(1, 0) : zero,
                         g11 = below && right ? at(1, 1) : zero;
            const Floats left[4] = {g00, g00 + g10, g00 - g10, -g10}, other[4] = {g01, g01 + g11, g01 - g11, -g11};
#pragma GCC unroll 4
            for (int i = begin; i < end; ++i) {
                float* plane = row + 4 * (i - begin) * to.plane + c;
                store(left[i], plane);
                store(left[i] + other[i], plane + to.plane);
                store(left[i] - other[i], plane + 2 * to.plane);
                store(-other[i], plane + 3 * to.plane);
            }
        }
    }
}

// `tall` rows of a b over `depth`, to c or added to it: a[r, i] at r * a_row + i * a_step, b[i] a vector of panels.
template <class Vector, int width, int tall, bool added>
SCA_HOST_DEVICE void multiply(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_panel,
                              int64_t b_step, int64_t depth, float* c, int64_t c_row) {
    using Of = Columns<Vector>;
    constexpr int lanes = Of::kCount, vectors = width / lanes;
    Vector sums[tall][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < tall; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            sums[r][v] = 0.0f;
            if (added) __builtin_prefetch(c + r * c_row + v * lanes, 1);
        }
    for (int64_t i = 0; i < depth; ++i) {
        Vector columns[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            columns[v] = Of::load(b + v * lanes / kPanel * b_panel + v * lanes % kPanel, b_panel);
#pragma GCC unroll 8
        for (int r = 0; r < tall; ++r) {
            const Vector row = a[r * a_row];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[r][v] = multiply_add(row, columns[v], sums[r][v]);
        }
        a += a_step;
        b += b_step;
    }
#pragma GCC unroll 8
    for (int r = 0; r < tall; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            float* to = c + r * c_row + v * lanes;
            Of::store(added ? Of::load(to, kPanel) + sums[r][v] : sums[r][v], to);
        }
}

// Runs run(columns, width, panel) for all columns of a product over so many channels: a few panels at once, a half
// where no more is filled.
template <class Run>
SCA_HOST_DEVICE void over_columns(int64_t channels, const Run& run) {
    const int64_t whole = (channels + kHalf - 1) / kPanel;
    const bool half = whole * kPanel < channels;
    int64_t p = 0;
    for (; p + kWide <= whole; p += kWide) run(Columns<Floats>(), Number<kWide * kPanel>(), p);
#if defined(__AVX512F__)
    if (p < whole && half) return run(Columns<PanelAndHalf>(), Number<kPanel + kHalf>(), p);
#endif
    if (p < whole) run(Columns<Floats>(), Number<kPanel>(), p);
    if (half) run(Columns<Half>(), Number<kHalf>(), whole);
}

template <class Vector, int width>
void output_columns(const Planes& patches, int64_t depth, const float* filters, int64_t plane, const float* bias,
                    const Map& to, float* data, int64_t first, int64_t count, int64_t channel, float* scratch) {
    const int64_t rows = (count + kRows - 1) / kRows * kRows, plane_step = plane_size(rows * width);
    for (int64_t p = 0; p < kPlanes; ++p)
        for (int64_t r = 0; r < rows; r += kTall)
            multiply<Vector, width, kTall, false>(patches.data + p * patches.plane + r * patches.pitch, patches.pitch,
                                                  1, filters + p * plane, depth * kPanel, kPanel, depth,
                                                  scratch + p * plane_step + r * width, width);
    for (int64_t t = 0; t < count; ++t) {
        const Corner corner(to, first + t);
        float* start = data + ((corner.image * to.height + corner.row) * to.width + corner.column) * to.channels;
        const bool below = corner.row + 1 < to.height, right = corner.column + 1 < to.width;
#pragma GCC unroll 4
        for (int64_t c = 0; c < width; c += kLanes) {
            const float* m = scratch + t * width + c;
            const int64_t size = to.channels - channel - c;
            const Floats shift = bias == nullptr ? Floats(0.0f) : load_some(bias + channel + c, size);
            Floats top[4], bottom[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Floats m0 = load(m + j * plane_step), m1 = load(m + (4 + j) * plane_step),
                             m2 = load(m + (8 + j) * plane_step), m3 = load(m + (12 + j) * plane_step);
                top[j] = m0 + m1 + m2;
                bottom[j] = m1 - m2 - m3;
            }
            float* y = start + channel + c;
            const int64_t down = to.width * to.channels;
            store_some(top[0] + top[1] + top[2] + shift, y, size);
            if (right) store_some(top[1] - top[2] - top[3] + shift, y + to.channels, size);
            if (below) store_some(bottom[0] + bottom[1] + bottom[2] + shift, y + down, size);
            if (below && right) store_some(bottom[1] - bottom[2] - bottom[3] + shift, y + down + to.channels, size);
        }
    }
}

void outputs(const Planes& patches, int64_t depth, const float* filters, const float* bias, const Map& to, float* data,
             int64_t first, int64_t count, float* scratch) {
    const int64_t panels = (to.channels + kPanel - 1) / kPanel, panel = depth * kPanel,
                  plane = plane_size(panels * panel);
    over_columns(to.channels, [&](auto vector, auto width, int64_t p) {
        output_columns<typename decltype(vector)::Vector, width.kValue>(
            patches, depth, filters + p * panel, plane, bias, to, data, first, count, p * kPanel, scratch);
    });
}

template <class Vector, int width>
void product_columns(const float* squares, int64_t squares_pitch, const float* patches, int64_t patches_pitch,
                     int64_t count, int64_t rows, float* to, int64_t to_row) {
    const auto run = [&](auto tall, int64_t r) {
        multiply<Vector, width, tall.kValue, true>(squares + r, 1, squares_pitch, patches, kPanel, patches_pitch, count,
                                                   to + r * to_row, to_row);
    };
    int64_t r = 0;
    for (; r + kTall / 2 < rows; r += kTall) run(Number<kTall>(), r);
    if (r < rows) run(Number<kTall / 2>(), r);
}

void products(const float* squares, int64_t squares_pitch, const float* patches, int64_t patches_pitch, int64_t count,
              int64_t rows, int64_t channels, float* to) {
    const int64_t panels = (channels + kPanel - 1) / kPanel;
    over_columns(channels, [&](auto vector, auto width, int64_t p) {
        product_columns<typename decltype(vector)::Vector, width.kValue>(
            squares, squares_pitch, patches + p * kPanel, patches_pitch, count, rows, to + p * kPanel, panels * kPanel);
    });
}

void filters(const float* from, int64_t count, bool turned, float* to, int64_t plane) {
    const int64_t position = count * kPanel;
    for (int64_t i = 0; i < position; i += kLanes) {
        Floats half[4][3];  // G g
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
            Floats g[3];
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k) g[k] = load(from + (turned ? 8 - 3 * k - j : 3 * k + j) * position + i);
            const Floats outer = (g[0] + g[2]) * 0.5f, inner = g[1] * 0.5f;
            half[0][j] = g[0];
            half[1][j] = outer + inner;
            half[2][j] = outer - inner;
            half[3][j] = g[2];
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const Floats outer = (half[k][0] + half[k][2]) * 0.5f, inner = half[k][1] * 0.5f;
            store(half[k][0], to + (4 * k + 0) * plane + i);
            store(outer + inner, to + (4 * k + 1) * plane + i);
            store(outer - inner, to + (4 * k + 2) * plane + i);
            store(half[k][2], to + (4 * k + 3) * plane + i);
        }
    }
}

void gradients(const float* from, int64_t plane, int64_t slices, int64_t slice, int64_t panels, float* to) {
    const int64_t width = panels * kPanel;
    for (int64_t i = 0; i < width; i += kLanes) {
        Floats half[3][4];  // G^T m
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            Floats m[4];
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) m[k] = load(from + (4 * k + j) * plane + i);
            for (int64_t s = 1; s < slices; ++s)
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) m[k] = m[k] + load(from + s * slice + (4 * k + j) * plane + i);
            const Floats sum = (m[1] + m[2]) * 0.5f;
            half[0][j] = m[0] + sum;
            half[1][j] = (m[1] - m[2]) * 0.5f;
            half[2][j] = m[3] + sum;
        }
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) {
            const Floats sum = (half[k][1] + half[k][2]) * 0.5f;
            store(half[k][0] + sum, to + (3 * k + 0) * width + i);
            store((half[k][1] - half[k][2]) * 0.5f, to + (3 * k + 1) * width + i);
            store(half[k][3] + sum, to + (3 * k + 2) * width + i);
        }
    }
}

constexpr WinogradKernels kKernels{
    {patches<0, 4>, patches<0, 1>, patches<1, 2>, patches<2, 3>, patches<3, 4>},
    {squares<0, 4>, squares<0, 1>, squares<1, 2>, squares<2, 3>, squares<3, 4>},
    outputs,
    products,
    filters,
    gradients,
};

}  // namespace
}  // namespace winograd
}  // namespace SCA_ISA
}  // namespace sca
