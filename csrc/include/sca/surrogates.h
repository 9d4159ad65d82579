// Surrogate derivatives at u = h - threshold; names and formulas of SpikingJelly 2.0. alpha is the slope, beta a second
// parameter of the few that have one. Branch-free, finite for every finite u, NaN for NaN.
#pragma once

#include "macros.h"

namespace sca {
inline namespace SCA_ISA {

// exp(x) for x <= 0 within 2 ulp; below -87 it stays at exp(-87). Our own, since a call into libm would not vectorise:
// argument reduction by ln 2 in two parts, then the polynomial of Cephes' expf (Moshier).
template <class F>
SCA_HOST_DEVICE F exponential(F x) {
    x = select(x < -87.0f, F(-87.0f), x);
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
    const F shifted = x * 1.44269504088896341f + shifter;
    const F n = shifted - shifter;
    const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return scale_by_power(p * (r * r) + r + 1.0f, shifted);
}

// log(x) for normal x >= 1, after Cephes' logf; NaN for NaN, which has an exponent like any other.
template <class F>
SCA_HOST_DEVICE F logarithm(F x) {
    F e = select(x >= 0.0f, exponent_of(x), x), m = mantissa_of(x);
    const auto low = m < 0.707106781186547524f;
    e = select(low, e - 1.0f, e);
    m = select(low, m + m, m) - 1.0f;
    F p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const F z = m * m;
    return m + (p * m * z - e * 2.12194440e-4f - z * 0.5f) + e * 0.693359375f;
}

// Written with q = exp(-|alpha u|) <= 1, so that it can't overflow: s (1 - s) = q / (1 + q)^2.
struct Sigmoid {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F q = exponential(-absolute(u * alpha));
        return q * alpha / ((q + 1.0f) * (q + 1.0f));
    }
};

struct Atan {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F z = u * (1.57079632679489662f * alpha);
        return 0.5f * alpha / (z * z + 1.0f);
    }
};

struct PiecewiseQuadratic {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F a = absolute(u);
        return select(a > 1.0f / alpha, F(0.0f), alpha - a * (alpha * alpha));
    }
};

struct Rectangular {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        return select(absolute(u) >= 0.5f / alpha, F(0.0f), (u - u) + alpha);  // u - u: 0, or NaN
    }
};

struct SoftSign {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F d = absolute(u) + 1.0f / alpha;
        return 1.0f / (d * d * (2.0f * alpha));
    }
};

struct SuperSpike {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F d = absolute(u) + 1.0f;
        return alpha / (d * d);
    }
};

struct Erf {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F z = u * alpha;
        return exponential(-(z * z)) * (0.564189583547756287f * alpha);
    }
};

struct PiecewiseExponential {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        return exponential(-absolute(u * alpha)) * (0.5f * alpha);
    }
};

struct Triangle {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F a = absolute(u);
        return select(a > 1.0f, F(0.0f), alpha - a * alpha);
    }
};

struct FastSigmoid {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        const F d = absolute(u) * alpha + 1.0f;
        return 1.0f / (d * d);
    }
};

struct LeakyKRelu {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float beta) {
        return select(u >= 0.0f, F(alpha), select(u < 0.0f, F(beta), u));
    }
};

struct S2NN {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float beta) {
        return select(u < 0.0f, Sigmoid::slope(u, alpha, beta), beta / (absolute(u) + 1.0f));
    }
};

struct QPseudoSpike {
    template <class F>
    static SCA_HOST_DEVICE F slope(F u, float alpha, float) {
        return exponential(logarithm(absolute(u) * (2.0f / (alpha - 1.0f)) + 1.0f) * -alpha);
    }
};

}  // namespace SCA_ISA
}  // namespace sca

// A new surrogate is a struct above and a row here, row(index, struct), of the name that its row in
// sca_kernels/surrogates.py has for it.
#define SCA_SURROGATES(row)                                                                                         \
    row(0, Sigmoid) row(1, Atan) row(2, PiecewiseQuadratic) row(3, Rectangular) row(4, SoftSign) row(5, SuperSpike) \
        row(6, Erf) row(7, LeakyKRelu) row(8, S2NN) row(9, QPseudoSpike) row(10, PiecewiseExponential)              \
            row(11, Triangle) row(12, FastSigmoid)
