// The second stage of every sum, and what is made of it, per channel.
#pragma once

#include "numbers.h"
#include "parameters.h"

namespace sca {

constexpr int kTotalThreads = 512;
constexpr int kTotalChannels = 4;  // side by side in a block: a memory sector of partials

// This thread's channel: the block's first kTotalChannels threads have one each, after their sums.
class Total {
  public:
    SCA_DEVICE explicit Total(const Channels& p)
        : p_(p),
          thread_(static_cast<int>(threadIdx.x)),
          channel_(static_cast<int64>(blockIdx.x) * kTotalChannels + thread_ % kTotalChannels) {}

    // Sum of one quantity over all chunks and columns of the channel, in an order that sizes alone decide. All threads
    // take part; the block's first row has the result.
    SCA_DEVICE double operator()(int quantity) const {
        double* const memory = reinterpret_cast<double*>(shared_memory());
        double sum = 0.0;
        if (channel_ < p_.channels) {
            const int64 rows = p_.chunks * p_.fold;
            for (int64 row = thread_ / kTotalChannels; row < rows; row += kTotalThreads / kTotalChannels) {
                const int64 chunk = p_.fold == 1 ? row : row / p_.fold;
                const int64 column = channel_ * p_.fold + (row - chunk * p_.fold);
                sum += p_.partials[(quantity * p_.chunks + chunk) * p_.channels * p_.fold + column];
            }
        }
        memory[thread_] = sum;
        for (int half = kTotalThreads / 2; half >= kTotalChannels; half /= 2) {
            __syncthreads();
            if (thread_ < half) memory[thread_] += memory[thread_ + half];
        }
        sum = memory[thread_];
        __syncthreads();
        return sum;
    }

    SCA_DEVICE bool writes() const { return thread_ < kTotalChannels && channel_ < p_.channels; }
    SCA_DEVICE int64 channel() const { return channel_; }

  private:
    const Channels& p_;
    const int thread_;
    const int64 channel_;
};

SCA_DEVICE void write(float* to, int64 channel, double value) {
    if (to != nullptr) to[channel] = static_cast<float>(value);
}

// After neuron_forward.
__global__ void __launch_bounds__(kTotalThreads) activity_totals(const Channels p) {
    const Total total(p);
    const double count = total(0), l1 = total(1);
    if (!total.writes()) return;
    p.spike_count[total.channel()] = static_cast<int64>(count);  // exact: integers below 2^53
    write(p.membrane_l1, total.channel(), l1);
}

// After neuron_backward.
__global__ void __launch_bounds__(kTotalThreads) gradient_totals(const Channels p) {
    const Total total(p);
    const double shift = total(0), scale = total(1), rate = p.grad_rate == nullptr ? 0.0 : total(2);
    if (!total.writes()) return;
    write(p.grad_shift, total.channel(), shift);
    write(p.grad_scale, total.channel(), scale);
    write(p.grad_rate, total.channel(), rate);
}

// The affine map that training batch norm is, from the rounded statistics, in double, rounded once.
class Normalisation {
  public:
    SCA_DEVICE Normalisation(const Channels& p, int64 channel)
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
    const Channels& p_;
    const int64 channel_;
    const double mean_, rstd_;
};

// After moments: mean, biased variance, and the prelude that follows.
__global__ void __launch_bounds__(kTotalThreads) statistics(const Channels p) {
    const Total total(p);
    const double mean = total(0) / p.count, square = total(1) / p.count, var = square - mean * mean;
    if (!total.writes()) return;
    write(p.mean, total.channel(), mean);
    write(p.var, total.channel(), var < 0.0 ? 0.0 : var);
    Normalisation(p, total.channel()).write_prelude();
}

// In front of the backward pass: the prelude again.
__global__ void __launch_bounds__(kTotalThreads) prelude(const Channels p) {
    const Total total(p);
    if (total.writes()) Normalisation(p, total.channel()).write_prelude();
}

// Between the two backward passes: gradients of weight, bias and rate, and what the gradient of x takes. Each
// presentation of x subtracts the mean of g, and the mean of g * (x - mean) times (x - mean) / (var + eps).
__global__ void __launch_bounds__(kTotalThreads) coefficients(const Channels p) {
    const Total total(p);
    const double g = total(0), gx = total(1), rate = p.grad_rate == nullptr ? 0.0 : total(2);
    if (!total.writes()) return;
    const Normalisation norm(p, total.channel());
    const double factor = -norm.scale() * p.presentations / p.count;
    write(p.slope, total.channel(), factor * norm.rstd() * norm.rstd() * gx);
    write(p.offset, total.channel(), factor * g);
    write(p.grad_scale, total.channel(), gx * norm.rstd());
    write(p.grad_shift, total.channel(), g);
    write(p.grad_rate, total.channel(), rate);
}

}  // namespace sca

// row(parameters, expression), as in kernels.h.
#define SCA_ALL_OVER_CHANNELS(row)                                                                         \
    row(Channels, sca::activity_totals) row(Channels, sca::gradient_totals) row(Channels, sca::statistics) \
        row(Channels, sca::prelude) row(Channels, sca::coefficients)
