// What the headers of this folder need from the compiler. No torch headers here: they serve the host and the device
// alike.
//
// Equations are templates over F, the type of a number: float on a device, a cache line of floats (cpu/simd.h) on the
// host. What differs between the two is a handful of primitives, here for float.
#pragma once

#if defined(__CUDACC__)
#define SCA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SCA_HOST_DEVICE inline __attribute__((always_inline))
#endif

// The CPU part is compiled once per instruction set. This inline namespace keeps the linker from merging equal
// functions of different sets, which would run AVX-512 code on a machine without it.
#ifndef SCA_ISA
#define SCA_ISA portable
#endif

namespace sca {
inline namespace SCA_ISA {

template <class To, class From>
SCA_HOST_DEVICE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

SCA_HOST_DEVICE float select(bool condition, float yes, float no) { return condition ? yes : no; }

SCA_HOST_DEVICE float absolute(float x) { return bits_as<float>(bits_as<unsigned>(x) & 0x7fffffffu); }

// x 2^n, where the low bits of `shifted` hold the integer n and x is in [1/2, 2].
SCA_HOST_DEVICE float scale_by_power(float x, float shifted) {
    return x * bits_as<float>((bits_as<unsigned>(shifted) << 23) + 0x3f800000u);
}

// x = mantissa 2^exponent, mantissa in [1/2, 1), for normal x > 0.
SCA_HOST_DEVICE float mantissa_of(float x) {
    return bits_as<float>((bits_as<unsigned>(x) & 0x007fffffu) | 0x3f000000u);
}
SCA_HOST_DEVICE float exponent_of(float x) {
    return static_cast<float>(static_cast<int>(bits_as<unsigned>(x) >> 23) - 126);
}

}  // namespace SCA_ISA
}  // namespace sca
