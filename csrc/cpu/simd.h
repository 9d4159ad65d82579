// Sixteen floats, a cache line, as one number: as many native vectors as the instruction set needs for that.
//
// One width for all sets, so that the order of sums is the same everywhere. For the files that are compiled per set.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "sca/macros.h"

namespace sca {
inline namespace SCA_ISA {

constexpr int64_t kLine = 16;

#if defined(__AVX512F__)
constexpr int kNativeBytes = 64;
#elif defined(__AVX2__)
constexpr int kNativeBytes = 32;
#else
constexpr int kNativeBytes = 16;
#endif
constexpr int kParts = kLine * 4 / kNativeBytes;

typedef float NativeFloat __attribute__((vector_size(kNativeBytes)));
typedef int32_t NativeInt __attribute__((vector_size(kNativeBytes)));
typedef uint16_t NativeHalf __attribute__((vector_size(kNativeBytes / 2)));
typedef double NativeDouble __attribute__((vector_size(kNativeBytes)));

#define SCA_EACH_PART _Pragma("GCC unroll 4") for (int j = 0; j < kParts; ++j)

struct Ints {
    NativeInt part[kParts];
};

struct Floats {
    NativeFloat part[kParts];

    Floats() = default;
    SCA_HOST_DEVICE Floats(float x) { SCA_EACH_PART part[j] = x - NativeFloat{}; }

    SCA_HOST_DEVICE Floats operator-() const {
        Floats r;
        SCA_EACH_PART r.part[j] = -part[j];
        return r;
    }
#define SCA_OPERATOR(op)                                            \
    friend SCA_HOST_DEVICE Floats operator op(Floats a, Floats b) { \
        SCA_EACH_PART a.part[j] = a.part[j] op b.part[j];           \
        return a;                                                   \
    }
    SCA_OPERATOR(+)
    SCA_OPERATOR(-) SCA_OPERATOR(*) SCA_OPERATOR(/)
#undef SCA_OPERATOR
// True is -1, lane by lane.
#define SCA_OPERATOR(op)                                          \
    friend SCA_HOST_DEVICE Ints operator op(Floats a, Floats b) { \
        Ints r;                                                   \
        SCA_EACH_PART r.part[j] = a.part[j] op b.part[j];         \
        return r;                                                 \
    }
        SCA_OPERATOR(>=) SCA_OPERATOR(>) SCA_OPERATOR(<)
#undef SCA_OPERATOR
};

struct Doubles {
    NativeDouble part[2 * kParts];

#define SCA_OPERATOR(op)                                                                                 \
    friend SCA_HOST_DEVICE Doubles operator op(Doubles a, Doubles b) {                                   \
        _Pragma("GCC unroll 8") for (int j = 0; j < 2 * kParts; ++j) a.part[j] = a.part[j] op b.part[j]; \
        return a;                                                                                        \
    }
    SCA_OPERATOR(+) SCA_OPERATOR(*)
#undef SCA_OPERATOR
};

// One more where the condition holds.
SCA_HOST_DEVICE Ints count_up(Ints count, Ints condition) {
    SCA_EACH_PART count.part[j] = condition.part[j] ? count.part[j] + 1 : count.part[j];
    return count;
}

SCA_HOST_DEVICE Floats select(Ints condition, Floats yes, Floats no) {
    SCA_EACH_PART yes.part[j] = condition.part[j] ? yes.part[j] : no.part[j];
    return yes;
}

SCA_HOST_DEVICE Floats absolute(Floats x) {
    SCA_EACH_PART x.part[j] = (NativeFloat)((NativeInt)x.part[j] & 0x7fffffff);
    return x;
}

SCA_HOST_DEVICE Floats scale_by_power(Floats x, Floats shifted) {
    SCA_EACH_PART x.part[j] *= (NativeFloat)(((NativeInt)shifted.part[j] << 23) + 0x3f800000);
    return x;
}

SCA_HOST_DEVICE Floats mantissa_of(Floats x) {
    SCA_EACH_PART x.part[j] = (NativeFloat)(((NativeInt)x.part[j] & 0x007fffff) | 0x3f000000);
    return x;
}

SCA_HOST_DEVICE Floats exponent_of(Floats x) {
    SCA_EACH_PART x.part[j] = __builtin_convertvector(((NativeInt)x.part[j] >> 23) - 126, NativeFloat);
    return x;
}

// ---- memory
// ----------------------------------------------------------------------------------------------------------

struct bfloat16 {
    uint16_t bits;
};

template <class V>
SCA_HOST_DEVICE V load_native(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

SCA_HOST_DEVICE Floats load(const float* from) {
    Floats x;
    SCA_EACH_PART x.part[j] = load_native<NativeFloat>(from + j * (kLine / kParts));
    return x;
}

SCA_HOST_DEVICE Ints load(const int32_t* from) {
    Ints x;
    SCA_EACH_PART x.part[j] = load_native<NativeInt>(from + j * (kLine / kParts));
    return x;
}

SCA_HOST_DEVICE Floats load(const bfloat16* from) {
    Floats x;
    SCA_EACH_PART x.part[j] =
        (NativeFloat)(__builtin_convertvector(load_native<NativeHalf>(from + j * (kLine / kParts)), NativeInt) << 16);
    return x;
}

SCA_HOST_DEVICE Doubles load(const double* from) {
    Doubles x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

SCA_HOST_DEVICE void store(Doubles x, double* to) { __builtin_memcpy(to, &x, sizeof x); }

// As double, half a native vector at a time.
SCA_HOST_DEVICE Doubles load_wide(const float* from) {
    typedef float Half __attribute__((vector_size(kNativeBytes / 2)));
    Doubles x;
    _Pragma("GCC unroll 8") for (int j = 0; j < 2 * kParts; ++j) x.part[j] =
        __builtin_convertvector(load_native<Half>(from + j * (kLine / kParts / 2)), NativeDouble);
    return x;
}

SCA_HOST_DEVICE void store(Floats x, float* to) {
    SCA_EACH_PART __builtin_memcpy(to + j * (kLine / kParts), &x.part[j], kNativeBytes);
}

SCA_HOST_DEVICE void store(Ints x, int32_t* to) {
    SCA_EACH_PART __builtin_memcpy(to + j * (kLine / kParts), &x.part[j], kNativeBytes);
}

// To nearest even; NaN stays NaN.
SCA_HOST_DEVICE void store(Floats x, bfloat16* to) {
    SCA_EACH_PART {
        const NativeInt bits = (NativeInt)x.part[j];
        const NativeInt rounded = bits + (((bits >> 16) & 1) + 0x7fff);
        const NativeInt kept = (x.part[j] == x.part[j] ? rounded : bits | 0x400000) >> 16;
        const NativeHalf half = __builtin_convertvector(kept, NativeHalf);
        __builtin_memcpy(to + j * (kLine / kParts), &half, sizeof half);
    }
}

// Past the caches; `to` is a multiple of 64.
SCA_HOST_DEVICE void stream(Floats x, float* to) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)x.part[0]);
#elif defined(__AVX2__)
    SCA_EACH_PART _mm256_stream_ps(to + 8 * j, (__m256)x.part[j]);
#elif defined(__SSE2__)
    SCA_EACH_PART _mm_stream_ps(to + 4 * j, (__m128)x.part[j]);
#else
    store(x, to);
#endif
}

SCA_HOST_DEVICE void stream(Floats x, bfloat16* to) { store(x, to); }

// The first `size` elements of a line, the rest zero.
template <class T>
SCA_HOST_DEVICE auto load(const T* from, int64_t size) {
    T line[kLine] = {};
    __builtin_memcpy(line, from, size * sizeof(T));
    return load(line);
}

SCA_HOST_DEVICE Doubles load_wide(const bfloat16* from) {
    float line[kLine];
    store(load(from), line);
    return load_wide(line);
}

template <class T>
SCA_HOST_DEVICE Doubles load_wide(const T* from, int64_t size) {
    T line[kLine] = {};
    __builtin_memcpy(line, from, size * sizeof(T));
    return load_wide(line);
}

template <class V, class T>
SCA_HOST_DEVICE void store(V x, T* to, int64_t size) {
    T line[kLine];
    store(x, line);
    __builtin_memcpy(to, line, size * sizeof(T));
}

}  // namespace SCA_ISA
}  // namespace sca
