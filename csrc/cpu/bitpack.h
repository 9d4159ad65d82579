// Spikes as bits: bit i of byte j is element 8 j + i, the last byte filled up with zeros.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace sca {

// False where an element is neither 0 nor 1.
bool pack_bits(const void* from, DType dtype, int64_t numel, uint8_t* to, int threads);
void unpack_bits(const uint8_t* from, DType dtype, int64_t numel, void* to, int threads);

}  // namespace sca
