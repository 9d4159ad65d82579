// Spikes as bits: bit i of byte j is element 8 j + i, the last byte filled up with zeros.
#pragma once

#include "walk.h"

namespace sca {

constexpr int kBytesPerThread = 4;  // as far apart as a block is wide

// Eight elements, by accesses of 16 bytes where V says that they are aligned.
template <class T, int V>
SCA_DEVICE void load_eight(T (&to)[8], const T* from, int64 left) {
#pragma unroll
    for (int i = 0; i < 8; i += V) {
        Vector<T, V> access = {};
        if (V == 1 ? i < left : left >= 8) access = load<T, V>(from + i);
        if (V > 1 && left < 8)
            for (int v = 0; v < V; ++v)
                if (i + v < left) access.at[v] = from[i + v];
#pragma unroll
        for (int v = 0; v < V; ++v) to[i + v] = access.at[v];
    }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) pack_bits(const BitpackParameters p) {
    const T* const spikes = static_cast<const T*>(p.spikes);
    const int64 first = static_cast<int64>(blockIdx.x) * (kThreads * kBytesPerThread) + static_cast<int64>(threadIdx.x);
    T eight[kBytesPerThread][8];
#pragma unroll
    for (int k = 0; k < kBytesPerThread; ++k) {
        const int64 element = 8 * (first + k * kThreads);
        load_eight<T, V>(eight[k], spikes + element, p.numel - element);
    }
    bool valid = true;
#pragma unroll
    for (int k = 0; k < kBytesPerThread; ++k) {
        const int64 byte = first + k * kThreads;
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float s = widened(eight[k][i]);
            bits |= (s == 1.0f ? 1u : 0u) << i;
            valid = valid && (s == 0.0f || s == 1.0f);  // false for NaN, too
        }
        if (8 * byte < p.numel) p.packed[byte] = static_cast<unsigned char>(bits);
    }
    if (!valid) *p.valid = 0;
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) unpack_bits(const BitpackParameters p) {
    T* const spikes = static_cast<T*>(p.spikes);
    const int64 first = static_cast<int64>(blockIdx.x) * (kThreads * kBytesPerThread) + static_cast<int64>(threadIdx.x);
#pragma unroll
    for (int k = 0; k < kBytesPerThread; ++k) {
        const int64 byte = first + k * kThreads, left = p.numel - 8 * byte;
        if (left <= 0) return;
        const unsigned bits = p.packed[byte];
#pragma unroll
        for (int i = 0; i < 8; i += V) {
            Vector<T, V> access;
#pragma unroll
            for (int v = 0; v < V; ++v) access.at[v] = (bits >> (i + v) & 1u) != 0 ? One<T>::value() : T{};
            if (left >= 8 || (V == 1 && i < left))
                store_global(spikes + 8 * byte + i, access);
            else
                for (int v = 0; v < V; ++v)
                    if (i + v < left) spikes[8 * byte + i + v] = access.at[v];
        }
    }
}

}  // namespace sca
