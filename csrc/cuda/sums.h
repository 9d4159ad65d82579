// How per-channel sums leave a block, and who adds them up; sca_kernels/gpu/plan.py has the plan.
//
// A block's sums are float32 (counts: integers), of one order of additions that sizes alone decide; from one number per
// column on, all is double. Every block writes its own once, to partials, and arrives at a counter; the last to arrive
// adds them up in their order, so that it doesn't matter who that is.
#pragma once

#include "walk.h"

namespace sca {

constexpr int kWarp = 32;

// What a block's threads hold for the same columns, added up: get() has the sums once put() has returned, until shared
// memory is used for something else.
template <bool planes, int V>
class ColumnSums {
    static constexpr int kWidth = Place<planes, V>::kWidth;

  public:
    static constexpr int kBytes = kWidth * kThreads * 4;  // of shared memory, per quantity

    SCA_DEVICE explicit ColumnSums(const Place<planes, V>& place)
        : thread_(static_cast<int>(threadIdx.x)), lanes_(planes ? 1 : place.lanes()) {}

    // One array per quantity. All threads take part.
    template <class... N>
    SCA_DEVICE void put(const N (&... sums)[kWidth]) const {
        __syncthreads();  // what lies there is no longer needed
        int quantity = 0;
        (put_one(quantity++, sums), ...);
        __syncthreads();
    }

    template <class N>
    SCA_DEVICE N get(int quantity, int column) const {
        const N* const memory = of<N>(quantity) + (planes ? 0 : column % V * kThreads);
        const int apart = lanes_ < kWarp ? kWarp : lanes_;
        int at = planes ? 0 : column / V;
        N sum = memory[at];
        while ((at += apart) < kThreads) sum += memory[at];
        return sum;
    }

  private:
    template <class N>
    static SCA_DEVICE N* of(int quantity) {
        return reinterpret_cast<N*>(shared_memory()) + quantity * kWidth * kThreads;
    }

    // A warp's rows by shuffles, to memory; get() adds up the warps.
    template <class N>
    SCA_DEVICE void put_one(int quantity, const N (&sums)[kWidth]) const {
        N sum[kWidth];
#pragma unroll
        for (int w = 0; w < kWidth; ++w) sum[w] = sums[w];
#pragma unroll
        for (int apart = kWarp / 2; apart > 0; apart /= 2) {
            if (apart < lanes_) break;
#pragma unroll
            for (int w = 0; w < kWidth; ++w) sum[w] += __shfl_xor_sync(0xffffffffu, sum[w], apart);
        }
#pragma unroll
        for (int w = 0; w < kWidth; ++w) of<N>(quantity)[w * kThreads + thread_] = sum[w];
    }

    const int thread_, lanes_;
};

// Sums over the threads whose numbers are equal modulo `width`; the first `width` threads have them.
template <int Q>
SCA_DEVICE void add_across(double (&sums)[Q], int width) {
    double* const memory = reinterpret_cast<double*>(shared_memory());
    const int thread = static_cast<int>(threadIdx.x);
    __syncthreads();
#pragma unroll
    for (int q = 0; q < Q; ++q) memory[q * kThreads + thread] = sums[q];
    for (int half = kThreads / 2; half >= width; half /= 2) {
        __syncthreads();
        if (thread >= half) continue;
#pragma unroll
        for (int q = 0; q < Q; ++q) memory[q * kThreads + thread] += memory[q * kThreads + thread + half];
    }
#pragma unroll
    for (int q = 0; q < Q; ++q) sums[q] = memory[q * kThreads + thread];
}

// A block's Q sums per slot, of which only the first `quantities` may be there, on their way through partials.
template <int Q>
class BlockSums {
    static constexpr int kSide = 32;  // channels side by side where they are folded

  public:
    template <bool planes, int V>
    SCA_DEVICE BlockSums(const TileParameters& tiles, const Partials& partials, const Place<planes, V>& place,
                         int quantities = Q)
        : tiles_(tiles),
          partials_(partials),
          quantities_(quantities),
          thread_(static_cast<int>(threadIdx.x)),
          stripe_(place.stripe()),
          split_(place.split()),
          splits_(static_cast<int>(tiles.splits)),
          group_(static_cast<int>(tiles.group)),
          groups_(splits_ <= group_ ? 1 : (splits_ + group_ - 1) / group_) {}

    // Those columns of this thread's slot, thread modulo slots, that are its own to add up.
    template <class Body>
    SCA_DEVICE void own_columns(const Body& body) const {
        const int slot = thread_ & (slots() - 1);
        int begin = slot, end = slot + 1;
        if (tiles_.fold > 1) {
            const int fold = static_cast<int>(tiles_.fold), width = static_cast<int>(tiles_.tile_columns);
            const int stripe_begin = stripe_ * width;
            const int channel_begin = (stripe_begin / fold + slot) * fold - stripe_begin;
            begin = channel_begin < 0 ? 0 : channel_begin;
            end = channel_begin + fold < width ? channel_begin + fold : width;
        }
        for (int column = begin + (thread_ >> tiles_.slot_bits); column < end; column += kThreads >> tiles_.slot_bits)
            body(column);
    }

    // Writes what own_columns() came to, and hands on channels and their sums over all blocks, finish(channel, sums),
    // where this block is the last. All threads take part.
    template <class Finish>
    SCA_DEVICE void put(double (&sums)[Q], const Finish& finish) const {
        if (tiles_.fold > 1) add_across(sums, slots());
        write(sums, split_);
        if (groups_ > 1) {
            const int own = split_ / group_, first = own * group_;
            const int end = first + group_ < splits_ ? first + group_ : splits_;
            if (!is_last(of_stripe(1 + own), end - first)) return;
            clear(sums);
            add_rows(sums, first, end, slots(), static_cast<int64>(stripe_) * slots() + (thread_ & (slots() - 1)));
            add_across(sums, slots());
            write(sums, splits_ + own);
        }
        const int arriving = groups_ > 1 ? groups_ : splits_;
        const int first = groups_ > 1 ? splits_ : 0;
        if (tiles_.fold == 1) {
            if (!is_last(of_stripe(0), arriving)) return;
            const int64 at = static_cast<int64>(stripe_) * slots() + (thread_ & (slots() - 1));
            clear(sums);
            add_rows(sums, first, first + arriving, slots(), at);
            add_across(sums, slots());
            if (thread_ < slots() && at < tiles_.channels) finish(at, sums);
            return;
        }
        const int stripes = static_cast<int>(tiles_.stripes);
        if (!is_last(partials_.counters + tiles_.stripes * (groups_ + 1), arriving * stripes)) return;
        const int fold = static_cast<int>(tiles_.fold), width = static_cast<int>(tiles_.tile_columns);
        for (int channel = thread_ % kSide; channel - thread_ % kSide < tiles_.channels; channel += kSide) {
            clear(sums);
            if (channel < tiles_.channels) {
                // All stripes that its columns lie in.
                const int end = ((channel + 1) * fold - 1) / width + 1;
                for (int stripe = channel * fold / width; stripe < end; ++stripe) {
                    const int slot = channel - stripe * width / fold;
                    add_rows(sums, first, first + arriving, kSide, static_cast<int64>(stripe) * slots() + slot);
                }
            }
            add_across(sums, kSide);
            if (thread_ < kSide && channel < tiles_.channels) finish(channel, sums);
        }
    }

  private:
    SCA_DEVICE int slots() const { return 1 << tiles_.slot_bits; }
    SCA_DEVICE int64 row_size() const { return tiles_.stripes << tiles_.slot_bits; }
    SCA_DEVICE int64 partial_rows() const { return splits_ + (groups_ > 1 ? groups_ : 0); }
    SCA_DEVICE int* of_stripe(int counter) const {
        return partials_.counters + static_cast<int64>(stripe_) * (groups_ + 1) + counter;
    }
    static SCA_DEVICE void clear(double (&sums)[Q]) {
#pragma unroll
        for (int q = 0; q < Q; ++q) sums[q] = 0.0;
    }

    SCA_DEVICE void write(const double (&sums)[Q], int row) const {
        if (thread_ >= slots()) return;
        double* const to = partials_.sums + row * row_size() + static_cast<int64>(stripe_) * slots() + thread_;
#pragma unroll
        for (int q = 0; q < Q; ++q)
            if (q < quantities_) to[q * partial_rows() * row_size()] = sums[q];
    }

    // Adds this thread's share of some rows of partials, where `width` threads have a place each. Past the L1 cache,
    // which does not see what other multiprocessors have written.
    SCA_DEVICE void add_rows(double (&sums)[Q], int first, int end, int width, int64 place) const {
        const double* const from = partials_.sums + place;
#pragma unroll 4
        for (int row = first + thread_ / width; row < end; row += kThreads / width)
#pragma unroll
            for (int q = 0; q < Q; ++q)
                if (q < quantities_) sums[q] += __ldcg(from + (q * partial_rows() + row) * row_size());
    }

    // Whether this block is the last of so many to arrive; what the others have written is then there to see. The
    // counter is left as it was found, for the next launch.
    SCA_DEVICE bool is_last(int* counter, int expected) const {
        int* const last = reinterpret_cast<int*>(shared_memory());
        __threadfence();
        __syncthreads();
        if (thread_ == 0) {
            *last = atomicAdd(counter, 1) == expected - 1 ? 1 : 0;
            if (*last != 0) *counter = 0;
        }
        __syncthreads();
        if (*last == 0) return false;
        __threadfence();
        return true;
    }

    const TileParameters& tiles_;
    const Partials& partials_;
    const int quantities_, thread_, stripe_, split_, splits_, group_, groups_;
};

// Where a channel stands in a vector that may be longer, and then is read by a list.
SCA_DEVICE int64 listed(const int64* channels, int64 channel) {
    return channels == nullptr ? channel : channels[channel];
}

}  // namespace sca
