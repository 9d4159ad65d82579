#include "weights.h"

#include <algorithm>
#include <cstring>

namespace sca {
namespace {

// Below this many elements, starting threads costs more than it saves.
constexpr int64_t kThreadElements = 1 << 14;

// Calls copy(full, packed) for each active element of one row, with its index in the full and in the packed row.
template <class Copy>
void for_each_active(const Weight& w, const Active& a, const Copy& copy) {
    if (w.in_innermost) {
        for (int64_t p = 0; p < w.positions; ++p)
            for (int64_t i = 0; i < a.num_in; ++i) copy(p * w.in + a.in[i], p * a.num_in + i);
    } else {
        for (int64_t i = 0; i < a.num_in; ++i)
            for (int64_t p = 0; p < w.positions; ++p) copy(a.in[i] * w.positions + p, i * w.positions + p);
    }
}

template <class Word>
void put_row(const Word* from, const Weight& w, const Active& a, Word* to) {
    if (a.in == nullptr)
        std::memcpy(to, from, w.in * w.positions * sizeof(Word));
    else
        for_each_active(w, a, [&](int64_t full, int64_t packed) { to[full] = from[packed]; });
}

template <class Word>
void gather(const Word* weight, const Weight& w, const Active& a, Word* block, int threads) {
    const int64_t row = w.in * w.positions, packed_row = a.num_in * w.positions;
#pragma omp parallel for num_threads(threads) if (threads > 1 && a.num_out * packed_row > kThreadElements)
    for (int64_t o = 0; o < a.num_out; ++o) {
        const Word* from = weight + (a.out == nullptr ? o : a.out[o]) * row;
        Word* to = block + o * packed_row;
        if (a.in == nullptr)
            std::memcpy(to, from, row * sizeof(Word));
        else
            for_each_active(w, a, [&](int64_t full, int64_t packed) { to[packed] = from[full]; });
    }
}

template <class Word>
void scatter(const Word* block, const Weight& w, const Active& a, Word* weight, int threads) {
    const int64_t row = w.in * w.positions, packed_row = a.num_in * w.positions;
#pragma omp parallel for num_threads(threads) if (threads > 1 && w.out * row > kThreadElements)
    for (int64_t o = 0; o < w.out; ++o) {
        Word* to = weight + o * row;
        const int64_t* found = a.out == nullptr ? nullptr : std::lower_bound(a.out, a.out + a.num_out, o);
        if (a.out != nullptr && (found == a.out + a.num_out || *found != o)) {
            std::memset(to, 0, row * sizeof(Word));
            continue;
        }
        // A row stays in the first-level cache between the two writes.
        if (a.in != nullptr) std::memset(to, 0, row * sizeof(Word));
        put_row(block + (a.out == nullptr ? o : found - a.out) * packed_row, w, a, to);
    }
}

template <class Word>
void put(const Word* block, const Weight& w, const Active& a, Word* weight, int threads) {
    const int64_t row = w.in * w.positions, packed_row = a.num_in * w.positions;
#pragma omp parallel for num_threads(threads) if (threads > 1 && a.num_out * packed_row > kThreadElements)
    for (int64_t o = 0; o < a.num_out; ++o)
        put_row(block + o * packed_row, w, a, weight + (a.out == nullptr ? o : a.out[o]) * row);
}

}  // namespace

void gather_block(const void* weight, const Weight& shape, const Active& active, void* block, int threads) {
    if (shape.element_size == 4)
        gather(static_cast<const uint32_t*>(weight), shape, active, static_cast<uint32_t*>(block), threads);
    else
        gather(static_cast<const uint16_t*>(weight), shape, active, static_cast<uint16_t*>(block), threads);
}

void scatter_block(const void* block, const Weight& shape, const Active& active, void* weight, int threads) {
    if (shape.element_size == 4)
        scatter(static_cast<const uint32_t*>(block), shape, active, static_cast<uint32_t*>(weight), threads);
    else
        scatter(static_cast<const uint16_t*>(block), shape, active, static_cast<uint16_t*>(weight), threads);
}

void put_block(const void* block, const Weight& shape, const Active& active, void* weight, int threads) {
    if (shape.element_size == 4)
        put(static_cast<const uint32_t*>(block), shape, active, static_cast<uint32_t*>(weight), threads);
    else
        put(static_cast<const uint16_t*>(block), shape, active, static_cast<uint16_t*>(weight), threads);
}

}  // namespace sca
