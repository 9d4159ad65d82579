// Training batch norm: statistics, and what follows from them per channel (twin of
// sca_kernels/reference/batch_norm.py).
#pragma once

#include "sums.h"

namespace sca {

// The affine map that batch norm is, from rounded statistics, in double, to be rounded once.
struct AffineMap {
    double rstd, scale, shift;

    // `at`: of the channel in weight and bias.
    SCA_DEVICE AffineMap(float mean, float var, const AffineParameters& affine, int64 at)
        : rstd(1.0 / sqrt(static_cast<double>(var) + affine.eps)),
          scale(affine.weight == nullptr ? rstd : rstd * static_cast<double>(affine.weight[at])),
          shift(-static_cast<double>(mean) * scale) {
        if (affine.bias != nullptr) shift += static_cast<double>(affine.bias[at]);
    }
};

// Sums of x and x^2, and mean, variance, scale and shift that follow.
//
// Most devices have one unit for double per 64 for float32, so sums are float32: of d = x - origin and of d^2, about an
// origin of the block's own, the mean of the first few elements of a column (planes: of its channel), so that nothing
// cancels when the mean is large against the deviation. A thread adds up kMostTerms steps at most, and a block its
// threads' before a column's two sums are widened and the origin is put back; among blocks nothing is lost.
//
// What that leaves: d is rounded once, to half a unit of its own last place, and so is each addition. All of it is
// relative to the deviation from the origin, not from the mean, which is why more than one element makes it. Emulated,
// also with an outlier of 50 deviations among these, the mean ended within 1.4e-7 of the larger of itself and the
// deviation, the variance within 7e-7 of itself.
template <class T, bool planes, int V>
__global__ void __launch_bounds__(kThreads, 6) moments(const MomentsParameters p) {
    constexpr int kAhead = 4, kMostTerms = 64;
    using At = Place<planes, V>;
    At place(p.tiles);
    const ColumnSums<planes, V> columns(place);
    const BlockSums<2> sums(p.tiles, p.partials, place);
    float* const origins = reinterpret_cast<float*>(shared_memory() + 2 * columns.kBytes);  // by column

    float origin[At::kWidth] = {};
    const At first(p.tiles, planes ? 0 : place.lane());
    if (first.valid()) {
        const int steps = static_cast<int>(p.steps < kAhead ? p.steps : kAhead);
        for (int k = 0; k < steps; ++k) {
            float z[V];
            const auto x = load<T, V>(first.template in<T>(p.x) + k * p.x.t);
#pragma unroll
            for (int v = 0; v < V; ++v) z[v] = widened(x.at[v]);
            accumulate(origin, z);
        }
        for (int w = 0; w < At::kWidth; ++w) origin[w] /= static_cast<float>(steps * (planes ? V : 1));
    }
    if (place.leads())
        for (int w = 0; w < At::kWidth; ++w) origins[place.lane() * V + w] = origin[w];

    double totals[2] = {};
    const int tiles = static_cast<int>(p.tiles.tiles);
    for (int64 begin = 0; begin < p.steps; begin += kMostTerms) {  // once, unless there are more steps than that
        const int steps = static_cast<int>(p.steps - begin < kMostTerms ? p.steps - begin : kMostTerms);
        float sum[At::kWidth] = {}, square[At::kWidth] = {};
        int elements = 0;
        for (int tile = 0; tile < tiles; ++tile) {
            elements += place.elements();
            const T* at = place.template in<T>(p.x) + begin * p.x.t;
            for (int left = place.valid() ? steps : 0; left > 0; left -= kAhead, at += kAhead * p.x.t) {
                Vector<T, V> x[kAhead];
#pragma unroll
                for (int k = 0; k < kAhead; ++k)
                    if (k < left) x[k] = load<T, V>(at + k * p.x.t);
#pragma unroll
                for (int k = 0; k < kAhead; ++k) {
                    if (k >= left) break;
                    float d[V];
#pragma unroll
                    for (int v = 0; v < V; ++v) d[v] = widened(x[k].at[v]) - origin[planes ? 0 : v];
                    accumulate(sum, d);
                    accumulate(square, d, d);
                }
            }
            if (tiles > 1) place.next();  // more steps than kMostTerms come with a single tile
        }
        columns.put(sum, square);
        const double n = static_cast<double>(elements) * steps;
        sums.own_columns([&](int column) {
            const double d = columns.template get<float>(0, column), dd = columns.template get<float>(1, column);
            const double o = origins[column];
            totals[0] += n * o + d;
            totals[1] += dd + o * (2.0 * d + n * o);
        });
    }
    sums.put(totals, [&](int64 channel, const double(&found)[2]) {
        const int64 channels = p.tiles.channels;
        if (p.moments != nullptr) {
            p.moments[channel] = found[0];
            p.moments[channels + channel] = found[1];
        }
        if (p.norm == nullptr) return;
        const double exact = found[0] / p.count, spread = found[1] / p.count - exact * exact;
        const float mean = static_cast<float>(exact), var = static_cast<float>(spread < 0.0 ? 0.0 : spread);
        const AffineMap map(mean, var, p.affine, listed(p.affine.channels, channel));
        p.norm[channel] = mean;
        p.norm[channels + channel] = var;
        p.norm[2 * channels + channel] = static_cast<float>(map.scale);
        p.norm[3 * channels + channel] = static_cast<float>(map.shift);
    });
}

}  // namespace sca
