// Surrogate derivatives at u = h - threshold; names and formulas of SpikingJelly 2.0. alpha is the slope, beta a second
// parameter of the few that have one. Branch-free, finite for every finite u.
#pragma once

#include "macros.h"

namespace sca {
inline namespace SCA_ISA {

SCA_HOST_DEVICE float absolute(float x) { return bits_as<float>(bits_as<unsigned>(x) & 0x7fffffffu); }

// exp(x) within 2 ulp for -87 <= x <= 88, saturating outside. Our own, since a call into libm would not vectorise: argument
// reduction by ln 2 in two parts, then the polynomial of Cephes' expf (Moshier).
SCA_HOST_DEVICE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
    const float n = (x * 1.44269504088896341f + shifter) - shifter;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * bits_as<float>((static_cast<int>(n) + 127) << 23);
}

// log(x) for normal x >= 1, after Cephes' logf.
SCA_HOST_DEVICE float logarithm(float x) {
    const int bits = bits_as<int>(x);
    float e = static_cast<float>((bits >> 23) - 126);
    float m = bits_as<float>((bits & 0x007fffff) | 0x3f000000);  // in [1/2, 1)
    const bool low = m < 0.707106781186547524f;
    e = low ? e - 1.0f : e;
    m = (low ? m + m : m) - 1.0f;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const float z = m * m;
    return m + (p * m * z - e * 2.12194440e-4f - 0.5f * z) + e * 0.693359375f;
}

// Written with exp(-|alpha u|) <= 1, so that it can't overflow: s (1 - s) = q / (1 + q)^2.
struct Sigmoid {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) {
        const float q = exponential(-absolute(alpha * u));
        return alpha * q / ((1.0f + q) * (1.0f + q));
    }
};

struct Atan {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) {
        const float z = 1.57079632679489662f * alpha * u;
        return 0.5f * alpha / (1.0f + z * z);
    }
};

struct PiecewiseQuadratic {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) {
        const float a = absolute(u);
        return a > 1.0f / alpha ? 0.0f : alpha - alpha * alpha * a;
    }
};

struct Rectangular {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) { return absolute(u) < 0.5f / alpha ? alpha : 0.0f; }
};

struct SoftSign {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) {
        const float d = 1.0f / alpha + absolute(u);
        return 1.0f / (2.0f * alpha * d * d);
    }
};

struct SuperSpike {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) {
        const float d = 1.0f + absolute(u);
        return alpha / (d * d);
    }
};

struct Erf {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) {
        const float z = alpha * u;
        return 0.564189583547756287f * alpha * exponential(-(z * z));
    }
};

struct LeakyKRelu {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float beta) { return u >= 0.0f ? alpha : beta; }
};

struct S2NN {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float beta) {
        return u < 0.0f ? Sigmoid::slope(u, alpha, beta) : beta / (absolute(u) + 1.0f);
    }
};

struct QPseudoSpike {
    static SCA_HOST_DEVICE float slope(float u, float alpha, float) {
        return exponential(-alpha * logarithm(1.0f + 2.0f / (alpha - 1.0f) * absolute(u)));
    }
};

}  // namespace SCA_ISA
}  // namespace sca

// A new surrogate is one struct above and one row here: row(index, struct, name).
#define SCA_SURROGATES(row)                           \
    row(0, Sigmoid, "sigmoid")                        \
    row(1, Atan, "atan")                              \
    row(2, PiecewiseQuadratic, "piecewise_quadratic") \
    row(3, Rectangular, "rectangular")                \
    row(4, SoftSign, "soft_sign")                     \
    row(5, SuperSpike, "super_spike")                 \
    row(6, Erf, "erf")                                \
    row(7, LeakyKRelu, "leaky_k_relu")                \
    row(8, S2NN, "s2nn")                              \
    row(9, QPseudoSpike, "q_pseudo_spike")
