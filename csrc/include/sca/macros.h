// What the headers of this folder need from the compiler. No torch headers here: they serve the host and the device alike.
#pragma once

#if defined(__CUDACC__)
#define SCA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SCA_HOST_DEVICE inline __attribute__((always_inline))
#endif

// The CPU part is compiled once per instruction set. This inline namespace keeps the linker from merging equal functions of
// different sets, which would run AVX-512 code on a machine without it.
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

}  // namespace SCA_ISA
}  // namespace sca
