#include "bitpack.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "isa.h"

namespace sca {
namespace {

constexpr int64_t kBytesPerThread = 1 << 12;

// The eight elements of every byte.
template <class Word>
std::array<std::array<Word, 8>, 256> bytes_unpacked(Word one) {
    std::array<std::array<Word, 8>, 256> table;
    for (int byte = 0; byte < 256; ++byte)
        for (int bit = 0; bit < 8; ++bit) table[byte][bit] = byte >> bit & 1 ? one : Word{0};
    return table;
}

template <class Word>
bool pack(const Word* from, int64_t numel, uint8_t* to, int threads, bool (*kernel)(const void*, uint8_t*, int64_t)) {
    const int64_t whole = numel / 8, shares = (whole + kBytesPerThread - 1) / kBytesPerThread;
    bool valid = true;
#pragma omp parallel for num_threads(threads) if (threads > 1 && shares > 1) reduction(&& : valid)
    for (int64_t i = 0; i < shares; ++i) {
        const int64_t first = i * kBytesPerThread;
        valid = valid && kernel(from + 8 * first, to + first, std::min(kBytesPerThread, whole - first));
    }
    if (numel % 8 != 0) {
        Word rest[8] = {};
        std::copy_n(from + 8 * whole, numel % 8, rest);
        valid = valid && kernel(rest, to + whole, 1);
    }
    return valid;
}

template <class Word, Word one>
void unpack(const uint8_t* from, int64_t numel, Word* to, int threads) {
    static const auto table = bytes_unpacked<Word>(one);
    const int64_t whole = numel / 8;
#pragma omp parallel for num_threads(threads) if (threads > 1 && whole > kBytesPerThread)
    for (int64_t i = 0; i < whole; ++i) std::memcpy(to + 8 * i, table[from[i]].data(), sizeof table[0]);
    if (numel % 8 != 0) std::copy_n(table[from[whole]].data(), numel % 8, to + 8 * whole);
}

}  // namespace

bool pack_bits(const void* from, DType dtype, int64_t numel, uint8_t* to, int threads) {
    if (dtype == DType::float32) return pack(static_cast<const uint32_t*>(from), numel, to, threads, kernels().pack[0]);
    return pack(static_cast<const uint16_t*>(from), numel, to, threads, kernels().pack[1]);
}

void unpack_bits(const uint8_t* from, DType dtype, int64_t numel, void* to, int threads) {
    if (dtype == DType::float32) return unpack<uint32_t, 0x3f800000u>(from, numel, static_cast<uint32_t*>(to), threads);
    return unpack<uint16_t, 0x3f80u>(from, numel, static_cast<uint16_t*>(to), threads);
}

}  // namespace sca
