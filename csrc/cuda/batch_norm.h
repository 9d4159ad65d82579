// Statistics of training batch norm.
#pragma once

#include "walk.h"

namespace sca {

// Sums of x and x^2 in double, so that mean and variance, once rounded, are every backend's.
template <class T, bool planes, int V>
__global__ void __launch_bounds__(kThreads) moments(const MomentsParameters p) {
    constexpr int kAhead = 4;
    Place<planes, V> place(p.walk);
    double sum[place.kWidth] = {}, square[place.kWidth] = {};
    for (; place.valid(); place.next()) {
        const T* at = place.template in<const T>(p.x);
        for (int left = static_cast<int>(p.steps); left > 0; left -= kAhead, at += kAhead * p.x.t) {
            Vector<T, V> x[kAhead];
#pragma unroll
            for (int k = 0; k < kAhead; ++k)
                if (k < left) x[k] = load<T, V>(at + k * p.x.t);
#pragma unroll
            for (int k = 0; k < kAhead; ++k) {
                if (k >= left) break;
                double z[V], zz[V];
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    z[v] = static_cast<double>(widened(x[k].at[v]));
                    zz[v] = z[v] * z[v];
                }
                accumulate(sum, z);
                accumulate(square, zz);
            }
        }
    }
    place.put(p.partials, 0, sum);
    place.put(p.partials, 1, square);
}

}  // namespace sca
