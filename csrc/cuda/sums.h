// The second stage of every sum, and what is made of it, per channel.
#pragma once

#include "numbers.h"
#include "parameters.h"

namespace sca {

constexpr int kSumThreads = 512;
constexpr int kSumChannels = 4;  // side by side in a block: a memory sector of partials

// This thread's channel: the block's first kSumChannels threads have one each, after their sums.
class PartialSums {
  public:
    SCA_DEVICE explicit PartialSums(const SumsParameters& p)
        : p_(p),
          thread_(static_cast<int>(threadIdx.x)),
          channel_(static_cast<int64>(blockIdx.x) * kSumChannels + thread_ % kSumChannels) {}

    // Sum of one quantity over all splits and columns of the channel, in an order that sizes alone decide. All threads
    // take part; the block's first row has the result.
    SCA_DEVICE double operator()(int quantity) const {
        double* const memory = reinterpret_cast<double*>(shared_memory());
        double sum = 0.0;
        if (channel_ < p_.channels) {
            const int64 rows = p_.splits * p_.fold;
            for (int64 row = thread_ / kSumChannels; row < rows; row += kSumThreads / kSumChannels) {
                const int64 split = p_.fold == 1 ? row : row / p_.fold;
                const int64 column = channel_ * p_.fold + (row - split * p_.fold);
                sum += p_.partials[(quantity * p_.splits + split) * p_.channels * p_.fold + column];
            }
        }
        memory[thread_] = sum;
        for (int half = kSumThreads / 2; half >= kSumChannels; half /= 2) {
            __syncthreads();
            if (thread_ < half) memory[thread_] += memory[thread_ + half];
        }
        sum = memory[thread_];
        __syncthreads();
        return sum;
    }

    SCA_DEVICE bool writes() const { return thread_ < kSumChannels && channel_ < p_.channels; }
    SCA_DEVICE int64 channel() const { return channel_; }

  private:
    const SumsParameters& p_;
    const int thread_;
    const int64 channel_;
};

SCA_DEVICE void write(float* to, int64 channel, double value) {
    if (to != nullptr) to[channel] = static_cast<float>(value);
}

// After neuron_forward.
__global__ void __launch_bounds__(kSumThreads) activity_sums(const SumsParameters p) {
    const PartialSums sums(p);
    const double count = sums(0), l1 = sums(1);
    if (!sums.writes()) return;
    p.spike_count[sums.channel()] = static_cast<int64>(count);  // exact: integers below 2^53
    write(p.membrane_l1, sums.channel(), l1);
}

// After neuron_backward.
__global__ void __launch_bounds__(kSumThreads) gradient_sums(const SumsParameters p) {
    const PartialSums sums(p);
    const double shift = sums(0), scale = sums(1), rate = p.grad_rate == nullptr ? 0.0 : sums(2);
    if (!sums.writes()) return;
    write(p.grad_shift, sums.channel(), shift);
    write(p.grad_scale, sums.channel(), scale);
    write(p.grad_rate, sums.channel(), rate);
}

// The affine map that training batch norm is, from the rounded statistics, in double, rounded once.
class AffineNorm {
  public:
    SCA_DEVICE AffineNorm(const SumsParameters& p, int64 channel)
        : p_(p),
          channel_(channel),
          mean_(static_cast<double>(p.mean[channel])),
          rstd_(1.0 / sqrt(static_cast<double>(p.var[channel]) + p.eps)) {}

    SCA_DEVICE double rstd() const { return rstd_; }
    SCA_DEVICE double scale() const {
        return p_.weight == nullptr ? rstd_ : rstd_ * static_cast<double>(p_.weight[channel_]);
    }
    SCA_DEVICE double shift() const {
        const double moved = -mean_ * scale();
        return p_.bias == nullptr ? moved : moved + static_cast<double>(p_.bias[channel_]);
    }
    SCA_DEVICE void write_prelude() const {
        write(p_.scale, channel_, scale());
        write(p_.shift, channel_, shift());
    }

  private:
    const SumsParameters& p_;
    const int64 channel_;
    const double mean_, rstd_;
};

// After moments: mean, biased variance, and the prelude that follows.
__global__ void __launch_bounds__(kSumThreads) statistics(const SumsParameters p) {
    const PartialSums sums(p);
    const double mean = sums(0) / p.count, square = sums(1) / p.count, var = square - mean * mean;
    if (!sums.writes()) return;
    write(p.mean, sums.channel(), mean);
    write(p.var, sums.channel(), var < 0.0 ? 0.0 : var);
    AffineNorm(p, sums.channel()).write_prelude();
}

// In front of the backward pass: the prelude again.
__global__ void __launch_bounds__(kSumThreads) prelude(const SumsParameters p) {
    const PartialSums sums(p);
    if (sums.writes()) AffineNorm(p, sums.channel()).write_prelude();
}

// Between the two backward passes: gradients of weight, bias and rate, and what the gradient of x takes. Each
// presentation of x subtracts the mean of g, and the mean of g * (x - mean) times (x - mean) / (var + eps).
__global__ void __launch_bounds__(kSumThreads) coefficients(const SumsParameters p) {
    const PartialSums sums(p);
    const double g = sums(0), gx = sums(1), rate = p.grad_rate == nullptr ? 0.0 : sums(2);
    if (!sums.writes()) return;
    const AffineNorm norm(p, sums.channel());
    const double factor = -norm.scale() * p.presentations / p.count;
    write(p.slope, sums.channel(), factor * norm.rstd() * norm.rstd() * gx);
    write(p.offset, sums.channel(), factor * g);
    write(p.grad_scale, sums.channel(), gx * norm.rstd());
    write(p.grad_shift, sums.channel(), g);
    write(p.grad_rate, sums.channel(), rate);
}

}  // namespace sca

// row(parameters, expression), as in kernels.h.
#define SCA_ALL_OVER_CHANNELS(row)                                                  \
    row(SumsParameters, sca::activity_sums) row(SumsParameters, sca::gradient_sums) \
        row(SumsParameters, sca::statistics) row(SumsParameters, sca::prelude) row(SumsParameters, sca::coefficients)
