// A native vector of floats as one number, for the files that are compiled per instruction set.
//
// Sums are per lane, so that the width changes no result.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace sca {
inline namespace SCA_ISA {

#if defined(__AVX512F__)
constexpr int kNativeBytes = 64;
#elif defined(__AVX2__)
constexpr int kNativeBytes = 32;
#else
constexpr int kNativeBytes = 16;
#endif
constexpr int64_t kLanes = kNativeBytes / sizeof(float);
static_assert(kLine % kLanes == 0, "a line is whole vectors");

typedef float NativeFloat __attribute__((vector_size(kNativeBytes)));
typedef int32_t NativeInt __attribute__((vector_size(kNativeBytes)));
typedef uint16_t NativeHalf __attribute__((vector_size(kNativeBytes / 2)));
typedef double NativeDouble __attribute__((vector_size(kNativeBytes)));

struct Ints {
    NativeInt v;

    friend SCA_HOST_DEVICE Ints operator+(Ints a, Ints b) { return {a.v + b.v}; }
};

struct Floats {
    NativeFloat v;

    Floats() = default;
    SCA_HOST_DEVICE Floats(NativeFloat x) : v(x) {}
    SCA_HOST_DEVICE Floats(float x) : v(x - NativeFloat{}) {}

    SCA_HOST_DEVICE Floats operator-() const { return -v; }
    friend SCA_HOST_DEVICE Floats operator+(Floats a, Floats b) { return a.v + b.v; }
    friend SCA_HOST_DEVICE Floats operator-(Floats a, Floats b) { return a.v - b.v; }
    friend SCA_HOST_DEVICE Floats operator*(Floats a, Floats b) { return a.v * b.v; }
    friend SCA_HOST_DEVICE Floats operator/(Floats a, Floats b) { return a.v / b.v; }
    // True is -1, lane by lane.
    friend SCA_HOST_DEVICE Ints operator>=(Floats a, Floats b) { return {a.v >= b.v}; }
    friend SCA_HOST_DEVICE Ints operator>(Floats a, Floats b) { return {a.v > b.v}; }
    friend SCA_HOST_DEVICE Ints operator<(Floats a, Floats b) { return {a.v < b.v}; }
};

struct Doubles {
    NativeDouble low, high;

    friend SCA_HOST_DEVICE Doubles operator+(Doubles a, Doubles b) { return {a.low + b.low, a.high + b.high}; }
    friend SCA_HOST_DEVICE Doubles operator*(Doubles a, Doubles b) { return {a.low * b.low, a.high * b.high}; }
};

// One more where the condition holds.
SCA_HOST_DEVICE Ints count_up(Ints count, Ints condition) { return {condition.v ? count.v + 1 : count.v}; }

SCA_HOST_DEVICE Floats select(Ints condition, Floats yes, Floats no) { return condition.v ? yes.v : no.v; }

SCA_HOST_DEVICE Floats absolute(Floats x) { return (NativeFloat)((NativeInt)x.v & 0x7fffffff); }

SCA_HOST_DEVICE Floats scale_by_power(Floats x, Floats shifted) {
    return x.v * (NativeFloat)(((NativeInt)shifted.v << 23) + 0x3f800000);
}

SCA_HOST_DEVICE Floats mantissa_of(Floats x) { return (NativeFloat)(((NativeInt)x.v & 0x007fffff) | 0x3f000000); }

SCA_HOST_DEVICE Floats exponent_of(Floats x) {
    return __builtin_convertvector(((NativeInt)x.v >> 23) - 126, NativeFloat);
}

struct bfloat16 {
    uint16_t bits;
};

template <class V>
SCA_HOST_DEVICE V load_native(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

SCA_HOST_DEVICE Floats load(const float* from) { return load_native<NativeFloat>(from); }

SCA_HOST_DEVICE Ints load(const int32_t* from) { return load_native<Ints>(from); }

SCA_HOST_DEVICE Doubles load(const double* from) { return load_native<Doubles>(from); }

SCA_HOST_DEVICE Floats load(const bfloat16* from) {
    return (NativeFloat)(__builtin_convertvector(load_native<NativeHalf>(from), NativeInt) << 16);
}

SCA_HOST_DEVICE Doubles widened(Floats x) {
    typedef float Half __attribute__((vector_size(kNativeBytes / 2)));
    struct {
        Half low, high;
    } half;
    __builtin_memcpy(&half, &x, sizeof x);
    return {__builtin_convertvector(half.low, NativeDouble), __builtin_convertvector(half.high, NativeDouble)};
}

template <class V>
SCA_HOST_DEVICE void store_native(V x, void* to) {
    __builtin_memcpy(to, &x, sizeof x);
}

SCA_HOST_DEVICE void store(Floats x, float* to) { store_native(x, to); }

SCA_HOST_DEVICE void store(Ints x, int32_t* to) { store_native(x, to); }

SCA_HOST_DEVICE void store(Doubles x, double* to) { store_native(x, to); }

// To nearest even; NaN stays NaN.
SCA_HOST_DEVICE void store(Floats x, bfloat16* to) {
    const NativeInt bits = (NativeInt)x.v;
    const NativeInt rounded = bits + (((bits >> 16) & 1) + 0x7fff);
    const NativeInt kept = (x.v == x.v ? rounded : bits | 0x400000) >> 16;
    store_native(__builtin_convertvector(kept, NativeHalf), to);
}

// Past the caches; `to` is a multiple of the vector's size.
SCA_HOST_DEVICE void stream(Floats x, float* to) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)x.v);
#elif defined(__AVX2__)
    _mm256_stream_ps(to, (__m256)x.v);
#elif defined(__SSE2__)
    _mm_stream_ps(to, (__m128)x.v);
#else
    store(x, to);
#endif
}

SCA_HOST_DEVICE void stream(Floats x, bfloat16* to) { store(x, to); }

// Adds to the first `size` lanes.
template <class V, class T>
SCA_HOST_DEVICE void accumulate(V x, T* to, int64_t size) {
    const V sum = load(to) + x;
    if (size >= kLanes) return store(sum, to);
    T lanes[kLanes];
    store(sum, lanes);
    __builtin_memcpy(to, lanes, (size > 0 ? size : 0) * sizeof(T));
}

}  // namespace SCA_ISA
}  // namespace sca
