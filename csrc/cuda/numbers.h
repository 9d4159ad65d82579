// Elements of tensors, and vectors of them. Arithmetic is in float32.
#pragma once

#include "../include/sca/macros.h"

#define SCA_DEVICE __device__ __forceinline__

namespace sca {

struct bfloat16 {
    unsigned short bits;
};
struct float16 {
    unsigned short bits;
};
struct alignas(16) Sixteen {
    unsigned words[4];
};

// A test can run the kernels on a host by replacing what no host has.
#ifndef SCA_EMULATED
SCA_DEVICE float widened(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
SCA_DEVICE void round_to(float16& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

SCA_DEVICE void store_sixteen(void* p, const Sixteen& x) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(p), "r"(x.words[0]), "r"(x.words[1]), "r"(x.words[2]), "r"(x.words[3])
                 : "memory");
}

SCA_DEVICE unsigned char* shared_memory() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<unsigned char*>(memory);
}
#endif

SCA_DEVICE float widened(float x) { return x; }
SCA_DEVICE float widened(bfloat16 x) { return bits_as<float>(static_cast<unsigned>(x.bits) << 16); }

SCA_DEVICE void round_to(float& to, float x) { to = x; }
SCA_DEVICE void round_to(bfloat16& to, float x) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    const unsigned bits = bits_as<unsigned>(x);
    const unsigned nearest = bits + 0x7fffu + (bits >> 16 & 1u);
    to.bits = static_cast<unsigned short>((x != x ? 0x7fffffffu : nearest) >> 16);
#endif
}

template <class T>
struct One;
template <>
struct One<float> {
    static SCA_DEVICE float value() { return 1.0f; }
};
template <>
struct One<bfloat16> {
    static SCA_DEVICE bfloat16 value() { return {0x3f80}; }
};
template <>
struct One<float16> {
    static SCA_DEVICE float16 value() { return {0x3c00}; }
};

// Moved by one access of up to 16 bytes.
template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
    T at[V];
};

template <class T, int V>
SCA_DEVICE Vector<T, V> load(const T* p) {
    return *reinterpret_cast<const Vector<T, V>*>(p);
}
template <class T, int V>
SCA_DEVICE void store(T* p, const Vector<T, V>& x) {
    *reinterpret_cast<Vector<T, V>*>(p) = x;
}
// To global memory; the compiler would take some stores of 16 bytes apart.
template <class T, int V>
SCA_DEVICE void store_global(T* p, const Vector<T, V>& x) {
    if constexpr (sizeof(x) == 16)
        store_sixteen(p, bits_as<Sixteen>(x));
    else
        store(p, x);
}

}  // namespace sca
