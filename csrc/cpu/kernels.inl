// Source of the kernels of kernels.h. Included by isa_*.cpp, each compiled for its own instruction set with SCA_ISA naming it.
// No function with external linkage but the one at the foot, and no std:: templates, so that nothing is shared between sets.

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels.h"

#define SCA_SIMD _Pragma("omp simd")

namespace sca {
inline namespace SCA_ISA {
namespace {

template <class Charge, class Reset, bool prelude, int steps>
void fire(const Lanes& lanes, const float* __restrict x, int64_t x_step, float* __restrict s, int64_t s_step, float* __restrict v,
          int32_t* __restrict count, float* __restrict l1) {
    const float threshold = lanes.threshold, rest = lanes.rest;
    const float *__restrict rate = lanes.rate, *__restrict scale = lanes.scale, *__restrict shift = lanes.shift;
    SCA_SIMD
    for (int64_t i = 0; i < lanes.size; ++i) {
        float potential = v[i], sum = 0.0f;
        int32_t fired = 0;
#pragma GCC unroll 4
        for (int k = 0; k < steps; ++k) {
            float y = x[k * x_step + i];
            if constexpr (prelude) y = y * scale[i] + shift[i];
            const float h = Charge::charge(potential, y, rest, rate[i]);
            potential = Reset::after(h, threshold, rest);
            s[k * s_step + i] = h >= threshold ? 1.0f : 0.0f;
            fired += h >= threshold ? 1 : 0;
            sum += absolute(potential - rest);
        }
        v[i] = potential;
        count[i] += fired;
        l1[i] += sum;
    }
}

template <class Charge, class Reset, bool prelude, int steps>
void charge(const Lanes& lanes, const float* __restrict x, int64_t x_step, float* __restrict h, int64_t h_step,
            float* __restrict v) {
    const float threshold = lanes.threshold, rest = lanes.rest;
    const float *__restrict rate = lanes.rate, *__restrict scale = lanes.scale, *__restrict shift = lanes.shift;
    SCA_SIMD
    for (int64_t i = 0; i < lanes.size; ++i) {
        float potential = v[i];
#pragma GCC unroll 4
        for (int k = 0; k < steps; ++k) {
            float y = x[k * x_step + i];
            if constexpr (prelude) y = y * scale[i] + shift[i];
            const float charged = Charge::charge(potential, y, rest, rate[i]);
            h[k * h_step + i] = charged;
            potential = Reset::after(charged, threshold, rest);
        }
        v[i] = potential;
    }
}

template <class Surrogate, class Reset, bool detach, int steps>
void adjoint(const Lanes& lanes, const float* __restrict h, int64_t h_step, const float* __restrict g_s, int64_t g_s_step,
             float* __restrict g_y, int64_t g_y_step, float* __restrict g_v) {
    const float threshold = lanes.threshold, rest = lanes.rest, alpha = lanes.alpha, beta = lanes.beta;
    const float *__restrict by_v = lanes.by_v, *__restrict by_x = lanes.by_x;
    SCA_SIMD
    for (int64_t i = 0; i < lanes.size; ++i) {
        float carried = g_v[i];
#pragma GCC unroll 4
        for (int k = steps - 1; k >= 0; --k) {
            const float charged = h[k * h_step + i];
            const float slope = Surrogate::slope(charged - threshold, alpha, beta);
            const float g_h =
                Reset::template grad_h<detach>(g_s[k * g_s_step + i], carried, charged, slope, threshold, rest);
            carried = g_h * by_v[i];
            g_y[k * g_y_step + i] = g_h * by_x[i];
        }
        g_v[i] = carried;
    }
}

template <class Charge, bool prelude>
void leak_adjoint(const Lanes& lanes, const float* __restrict x, const float* __restrict v_before, const float* __restrict by_x,
                  float* __restrict g, float* __restrict g_rate) {
    const float *__restrict scale = lanes.scale, *__restrict shift = lanes.shift;
    SCA_SIMD
    for (int64_t i = 0; i < lanes.size; ++i) {
        float y = x[i];
        if constexpr (prelude) y = y * scale[i] + shift[i];
        g_rate[i] += g[i] * Charge::by_leak(v_before[i], y, lanes.rest);
        g[i] *= by_x[i];
    }
}

template <class Charge>
void derivatives(const float* __restrict rate, float* __restrict by_v, float* __restrict by_x, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) {
        by_v[i] = Charge::by_v(rate[i]);
        by_x[i] = Charge::by_x(rate[i]);
    }
}

template <class Reset>
void reset(const Lanes& lanes, const float* __restrict h, float* __restrict v) {
    SCA_SIMD
    for (int64_t i = 0; i < lanes.size; ++i) v[i] = Reset::after(h[i], lanes.threshold, lanes.rest);
}

void widen(const uint16_t* __restrict from, float* __restrict to, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) to[i] = bits_as<float>(static_cast<uint32_t>(from[i]) << 16);
}

void narrow(const float* __restrict from, uint16_t* __restrict to, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) {
        const uint32_t bits = bits_as<uint32_t>(from[i]);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        const uint32_t quiet = (bits >> 16) | 0x40u;
        to[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
}

void stream(const float* from, float* to, int64_t size) {
    int64_t i = 0;
#if defined(__SSE2__)
    for (; i < size && (reinterpret_cast<uintptr_t>(to + i) & 15u); ++i) to[i] = from[i];
    for (; i + 4 <= size; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
#endif
    for (; i < size; ++i) to[i] = from[i];
}

void multiply(const float* __restrict by, float* __restrict row, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) row[i] *= by[i];
}

void add(const float* __restrict from, float* __restrict row, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) row[i] += from[i];
}

void moments(const float* __restrict x, double* __restrict sum, double* __restrict square, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) {
        const double z = x[i];
        sum[i] += z;
        square[i] += z * z;
    }
}

void prelude_sums(const float* __restrict g, const float* __restrict x, const float* __restrict center,
                  float* __restrict g_scale, float* __restrict g_shift, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) {
        g_scale[i] += g[i] * (x[i] - center[i]);
        g_shift[i] += g[i];
    }
}

void prelude_adjoint(const float* __restrict x, const float* __restrict center, const float* __restrict a,
                     const float* __restrict b, const float* __restrict d, float* __restrict g, int64_t size) {
    SCA_SIMD
    for (int64_t i = 0; i < size; ++i) g[i] = a[i] * g[i] + (b[i] * (x[i] - center[i]) + d[i]);
}

// `one` is the bit pattern of 1. Elements become bytes of 0 or 1 first; the product then moves bit 0 of byte i to bit i of
// the uppermost byte.
template <class Word, Word one>
bool pack(const Word* __restrict from, uint8_t* __restrict to, int64_t bytes) {
    constexpr int64_t kBlock = 64;
    Word other = 0;
    for (int64_t begin = 0; begin < bytes; begin += kBlock) {
        const int64_t size = bytes - begin < kBlock ? bytes - begin : kBlock;
        uint8_t flags[8 * kBlock];
        const Word* block = from + 8 * begin;
#pragma omp simd reduction(| : other)
        for (int64_t i = 0; i < 8 * size; ++i) {
            const Word positive = block[i] & static_cast<Word>(~(Word{1} << (8 * sizeof(Word) - 1)));
            flags[i] = positive != 0 ? 1 : 0;
            other |= positive != 0 ? static_cast<Word>(block[i] ^ one) : Word{0};
        }
        for (int64_t j = 0; j < size; ++j) {
            uint64_t eight;
            __builtin_memcpy(&eight, flags + 8 * j, 8);
            to[begin + j] = static_cast<uint8_t>((eight * 0x0102040810204080u) >> 56);
        }
    }
    return other == 0;
}

template <class Charge>
void add_charge(Kernels& k, int c) {
    k.derivatives[c] = derivatives<Charge>;
    k.leak_adjoint[c][0] = leak_adjoint<Charge, false>;
    k.leak_adjoint[c][1] = leak_adjoint<Charge, true>;
#define SCA_ROW(r, Reset)                                            \
    k.fire[c][r][0][0] = fire<Charge, Reset, false, 1>;              \
    k.fire[c][r][0][1] = fire<Charge, Reset, false, kSteps>;         \
    k.fire[c][r][1][0] = fire<Charge, Reset, true, 1>;               \
    k.fire[c][r][1][1] = fire<Charge, Reset, true, kSteps>;          \
    k.charge[c][r][0][0] = charge<Charge, Reset, false, 1>;          \
    k.charge[c][r][0][1] = charge<Charge, Reset, false, kSteps>;     \
    k.charge[c][r][1][0] = charge<Charge, Reset, true, 1>;           \
    k.charge[c][r][1][1] = charge<Charge, Reset, true, kSteps>;
    SCA_RESETS(SCA_ROW)
#undef SCA_ROW
}

template <class Surrogate>
void add_surrogate(Kernels& k, int s) {
#define SCA_ROW(r, Reset)                                            \
    k.adjoint[s][r][0][0] = adjoint<Surrogate, Reset, false, 1>;     \
    k.adjoint[s][r][0][1] = adjoint<Surrogate, Reset, false, kSteps>; \
    k.adjoint[s][r][1][0] = adjoint<Surrogate, Reset, true, 1>;      \
    k.adjoint[s][r][1][1] = adjoint<Surrogate, Reset, true, kSteps>;
    SCA_RESETS(SCA_ROW)
#undef SCA_ROW
}

}  // namespace

Kernels kernels(const char* name) {
    Kernels k{};
    k.name = name;
#define SCA_ROW(index, Charge) add_charge<Charge>(k, index);
    SCA_CHARGES(SCA_ROW)
#undef SCA_ROW
#define SCA_ROW(index, Surrogate, name) add_surrogate<Surrogate>(k, index);
    SCA_SURROGATES(SCA_ROW)
#undef SCA_ROW
#define SCA_ROW(index, Reset) k.reset[index] = reset<Reset>;
    SCA_RESETS(SCA_ROW)
#undef SCA_ROW
    k.widen = widen;
    k.narrow = narrow;
    k.stream = stream;
    k.multiply = multiply;
    k.add = add;
    k.moments = moments;
    k.prelude_sums = prelude_sums;
    k.prelude_adjoint = prelude_adjoint;
    k.pack_float = pack<uint32_t, 0x3f800000u>;
    k.pack_half = pack<uint16_t, 0x3f80u>;
    return k;
}

}  // namespace SCA_ISA
}  // namespace sca
