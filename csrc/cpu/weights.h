// Active sub-blocks of convolution weights, in one pass over the memory they touch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sca {

// A dense weight [out, in, positions]; with `in_innermost` it lies in memory as [out, positions, in] (channels_last).
struct Weight {
    int64_t out, in, positions;
    bool in_innermost;
    int64_t element_size;  // in bytes: 2 or 4
};

// Sorted indices of active channels; null stands for all of them.
struct Active {
    const int64_t* out;
    int64_t num_out;
    const int64_t* in;
    int64_t num_in;
};

// block = weight[active.out][:, active.in], dense, in the weight's layout.
void gather_block(const void* weight, const Weight& shape, const Active& active, void* block, int threads);

// weight[active.out][:, active.in] = block, and zero elsewhere: every element is written.
void scatter_block(const void* block, const Weight& shape, const Active& active, void* weight, int threads);

// The same, and nothing elsewhere; the indices need no order.
void put_block(const void* block, const Weight& shape, const Active& active, void* weight, int threads);

}  // namespace sca
