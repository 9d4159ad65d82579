// A native vector of floats, or two, as one number, for the files that are compiled per instruction set.
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

struct bfloat16 {
    uint16_t bits;
};

namespace native {

#if defined(__AVX512F__)
constexpr int kNativeBytes = 64;
#elif defined(__AVX2__)
constexpr int kNativeBytes = 32;
#else
constexpr int kNativeBytes = 16;
#endif
constexpr int64_t kLanes = kNativeBytes / sizeof(float);

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

// sum + z * z, where z was a float: its square has 48 bits, exact in double, so a fused operation rounds as two do.
SCA_HOST_DEVICE Doubles plus_square(Doubles sum, Doubles z) {
#if defined(__AVX512F__)
    return {(NativeDouble)_mm512_fmadd_pd((__m512d)z.low, (__m512d)z.low, (__m512d)sum.low),
            (NativeDouble)_mm512_fmadd_pd((__m512d)z.high, (__m512d)z.high, (__m512d)sum.high)};
#else
    return sum + z * z;
#endif
}

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

template <class V>
SCA_HOST_DEVICE V load_native(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

SCA_HOST_DEVICE Floats load(const float* from) { return load_native<NativeFloat>(from); }

SCA_HOST_DEVICE Ints load(const int32_t* from) { return load_native<Ints>(from); }

SCA_HOST_DEVICE Doubles load(const double* from) {
    return {load_native<NativeDouble>(from), load_native<NativeDouble>(from + kLanes / 2)};
}

SCA_HOST_DEVICE Floats load(const bfloat16* from) {
    return (NativeFloat)(__builtin_convertvector(load_native<NativeHalf>(from), NativeInt) << 16);
}

// By intrinsics where there are some: compilers take generic halves of a vector through memory.
SCA_HOST_DEVICE Doubles widened(Floats x) {
#if defined(__AVX512F__)
    const __m512 v = (__m512)x.v;
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    return {(NativeDouble)_mm512_cvtps_pd(_mm512_castps512_ps256(v)), (NativeDouble)_mm512_cvtps_pd(high)};
#elif defined(__AVX2__)
    const __m256 v = (__m256)x.v;
    return {(NativeDouble)_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
            (NativeDouble)_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
#else
    typedef float Half __attribute__((vector_size(kNativeBytes / 2)));
    struct {
        Half low, high;
    } half;
    __builtin_memcpy(&half, &x, sizeof x);
    return {__builtin_convertvector(half.low, NativeDouble), __builtin_convertvector(half.high, NativeDouble)};
#endif
}

template <class V>
SCA_HOST_DEVICE void store_native(V x, void* to) {
    __builtin_memcpy(to, &x, sizeof x);
}

SCA_HOST_DEVICE void store(Floats x, float* to) { store_native(x, to); }

SCA_HOST_DEVICE void store(Ints x, int32_t* to) { store_native(x, to); }

SCA_HOST_DEVICE void store(Doubles x, double* to) {
    store_native(x.low, to);
    store_native(x.high, to + kLanes / 2);
}

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

}  // namespace native

#if defined(__AVX512F__)

// Two vectors as one number. The steps of a lane wait for each other, those of two vectors don't: a backward pass takes
// a fifth less. Sets with 16 registers have no room for it.
template <class V>
struct Pair {
    V low, high;

    Pair() = default;
    SCA_HOST_DEVICE Pair(V l, V h) : low(l), high(h) {}
    SCA_HOST_DEVICE Pair(float x) : low(x), high(x) {}

    SCA_HOST_DEVICE Pair operator-() const { return {-low, -high}; }
    friend SCA_HOST_DEVICE Pair operator+(Pair a, Pair b) { return {a.low + b.low, a.high + b.high}; }
    friend SCA_HOST_DEVICE Pair operator-(Pair a, Pair b) { return {a.low - b.low, a.high - b.high}; }
    friend SCA_HOST_DEVICE Pair operator*(Pair a, Pair b) { return {a.low * b.low, a.high * b.high}; }
    friend SCA_HOST_DEVICE Pair operator/(Pair a, Pair b) { return {a.low / b.low, a.high / b.high}; }
    friend SCA_HOST_DEVICE auto operator>=(Pair a, Pair b) {
        return Pair<native::Ints>(a.low >= b.low, a.high >= b.high);
    }
    friend SCA_HOST_DEVICE auto operator>(Pair a, Pair b) { return Pair<native::Ints>(a.low > b.low, a.high > b.high); }
    friend SCA_HOST_DEVICE auto operator<(Pair a, Pair b) { return Pair<native::Ints>(a.low < b.low, a.high < b.high); }
};

using Floats = Pair<native::Floats>;
using Ints = Pair<native::Ints>;
using Doubles = Pair<native::Doubles>;
constexpr int64_t kLanes = 2 * native::kLanes;

SCA_HOST_DEVICE Doubles plus_square(Doubles sum, Doubles z) {
    return {plus_square(sum.low, z.low), plus_square(sum.high, z.high)};
}

SCA_HOST_DEVICE Ints count_up(Ints count, Ints condition) {
    return {count_up(count.low, condition.low), count_up(count.high, condition.high)};
}

SCA_HOST_DEVICE Floats select(Ints condition, Floats yes, Floats no) {
    return {select(condition.low, yes.low, no.low), select(condition.high, yes.high, no.high)};
}

SCA_HOST_DEVICE Floats absolute(Floats x) { return {absolute(x.low), absolute(x.high)}; }

SCA_HOST_DEVICE Floats scale_by_power(Floats x, Floats shifted) {
    return {scale_by_power(x.low, shifted.low), scale_by_power(x.high, shifted.high)};
}

SCA_HOST_DEVICE Floats mantissa_of(Floats x) { return {mantissa_of(x.low), mantissa_of(x.high)}; }

SCA_HOST_DEVICE Floats exponent_of(Floats x) { return {exponent_of(x.low), exponent_of(x.high)}; }

SCA_HOST_DEVICE Doubles widened(Floats x) { return {widened(x.low), widened(x.high)}; }

template <class T>
SCA_HOST_DEVICE auto load(const T* from) {
    const auto low = native::load(from);
    return Pair(low, native::load(from + native::kLanes));
}

template <class V, class T>
SCA_HOST_DEVICE void store(Pair<V> x, T* to) {
    native::store(x.low, to);
    native::store(x.high, to + native::kLanes);
}

template <class T>
SCA_HOST_DEVICE void stream(Floats x, T* to) {
    native::stream(x.low, to);
    native::stream(x.high, to + native::kLanes);
}

#else

using namespace native;

#endif

static_assert(kLine % kLanes == 0, "a line is whole vectors");

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
