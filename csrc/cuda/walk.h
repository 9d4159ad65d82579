// How threads walk over an activation [T, N, C, S], V elements at a time, and how their sums leave a block.
//
// Blocks share a stripe, one split each. In a stripe, a place is where a thread stands with all its time steps:
//
//   planes        contiguous maps. A stripe is a channel, a place V positions of one plane: outer = n,
//                 inner = position / V.
//   interleaved   channels_last, [T, N, C], and contiguous maps of few positions, whose C * S elements count as
//                 columns. A stripe is `lanes` vectors of columns, a thread stays in V of them, a place is a row:
//                 outer = n, inner = s.
//
// Sums are double [quantity, split, column] (planes: column = channel), each written once, by one thread, from an order
// of additions that sizes alone decide.
#pragma once

#include "numbers.h"
#include "parameters.h"

namespace sca {

constexpr int kThreads = 128;

template <bool planes, int V>
class Place {
  public:
    static constexpr int kWidth = planes ? 1 : V;  // columns of a thread

    SCA_DEVICE explicit Place(const Walk& walk) : walk_(walk) {
        const int64 block = static_cast<int64>(blockIdx.x), thread = static_cast<int64>(threadIdx.x);
        const int64 stripe = block % walk.stripes, split = block / walk.stripes;
        column_ = planes ? stripe : (stripe * walk.lanes + thread % walk.lanes) * V;
        place_ = split * walk.items * walk.rows + thread / walk.lanes;
        const int64 end = (split + 1) * walk.items * walk.rows;
        end_ = column_ >= walk.columns ? 0 : end < walk.places ? end : walk.places;
        outer_ = place_ / walk.inner;
        inner_ = place_ % walk.inner;
    }

    SCA_DEVICE bool valid() const { return place_ < end_; }
    SCA_DEVICE void next() {
        place_ += walk_.rows;
        outer_ += walk_.outer_step;
        inner_ += walk_.inner_step;
        if (inner_ >= walk_.inner) {
            inner_ -= walk_.inner;
            ++outer_;
        }
    }

    template <class T>
    SCA_DEVICE T* in(const Strided& z) const {
        return static_cast<T*>(z.data) + outer_ * z.outer + inner_ * z.inner + column_ * z.stripe;
    }

    // Entries of a vector [C] at this thread's columns: one number in planes, V where interleaved.
    SCA_DEVICE void of_channel(float (&to)[kWidth], const float* vector, float absent) const {
        for (int v = 0; v < kWidth; ++v) {
            const int64 column = column_ + v;
            const bool exists = vector != nullptr && column < walk_.columns;
            to[v] = exists ? vector[walk_.fold == 1 ? column : column / walk_.fold] : absent;
        }
    }
    SCA_DEVICE int64 lane() const { return static_cast<int64>(threadIdx.x) % walk_.lanes; }
    SCA_DEVICE int64 lanes() const { return walk_.lanes; }

    // Adds up what the threads of a block hold for the same columns. All threads take part.
    template <class N>
    SCA_DEVICE void put(double* partials, int quantity, const N (&sums)[kWidth]) const {
        double* const memory = reinterpret_cast<double*>(shared_memory());
        const int thread = static_cast<int>(threadIdx.x), lanes = static_cast<int>(walk_.lanes);
        __syncthreads();  // what lies there is no longer needed
        for (int w = 0; w < kWidth; ++w) memory[w * kThreads + thread] = static_cast<double>(sums[w]);
        for (int half = kThreads / 2; half >= lanes; half /= 2) {
            __syncthreads();
            if (thread < half)
                for (int w = 0; w < kWidth; ++w) memory[w * kThreads + thread] += memory[w * kThreads + thread + half];
        }
        if (thread >= lanes || column_ >= walk_.columns) return;
        const int64 split = static_cast<int64>(blockIdx.x) / walk_.stripes;
        for (int w = 0; w < kWidth; ++w)
            partials[(quantity * walk_.splits + split) * walk_.columns + column_ + w] = memory[w * kThreads + thread];
    }

  private:
    const Walk& walk_;
    int64 column_, place_, end_, outer_, inner_;
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
    static SCA_DEVICE int64 bytes(const Place<true, V>&) { return 0; }
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
    static SCA_DEVICE int64 bytes(const Place<false, V>& place) { return place.lanes() * V * sizeof(float); }
    SCA_DEVICE PerChannel(const Place<false, V>& place, int slot)
        : p_(reinterpret_cast<float*>(shared_memory() + slot * bytes(place)) + place.lane() * kAccess),
          apart_(static_cast<int>(place.lanes()) * kAccess) {}
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
