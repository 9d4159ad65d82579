#include "neuron.h"

#include <algorithm>
#include <stdexcept>

#include "backward.h"
#include "forward.h"

namespace sca {

namespace {

int row_of(const char* list, const char* header, const std::string& name, int row) {
    if (row >= 0) return row;
    throw std::invalid_argument(name + ": expected a row of " + list + " in csrc/include/sca/" + header +
                                ", which is not compiled in: add its struct and its row, and install again; "
                                "backend='reference' runs without");
}

#define SCA_ROW(index, ...) \
    if (name == #__VA_ARGS__) return index;
int charge_row(const std::string& name) {
    SCA_CHARGES(SCA_ROW)
    return -1;
}
int reset_row(const std::string& name) {
    SCA_RESETS(SCA_ROW)
    return -1;
}
int surrogate_row(const std::string& name) {
    SCA_SURROGATES(SCA_ROW)
    return -1;
}
#undef SCA_ROW

}  // namespace

NeuronConfig neuron_config(const std::string& charge, const std::string& reset, const std::string& surrogate,
                           bool detach_reset, bool subtracts_threshold, double rate, double threshold, double fires_at,
                           double by, double rest, double alpha, double beta, double gain) {
    NeuronConfig made{};
    made.charge = row_of("SCA_CHARGES", "neurons.h", charge, charge_row(charge));
    made.reset = row_of("SCA_RESETS", "neurons.h", reset, reset_row(reset));
    made.surrogate = row_of("SCA_SURROGATES", "surrogates.h", surrogate, surrogate_row(surrogate));
    made.detach_reset = detach_reset;
    made.subtracts_threshold = subtracts_threshold;
    made.rate = static_cast<float>(rate);
    made.threshold = static_cast<float>(threshold);
    made.fires_at = static_cast<float>(fires_at);
    made.by = static_cast<float>(by);
    made.rest = static_cast<float>(rest);
    made.alpha = static_cast<float>(alpha);
    made.beta = static_cast<float>(beta);
    made.gain = static_cast<float>(gain);
    return made;
}

bool empty(const Shape& shape) { return shape.n == 0 || shape.c == 0 || shape.s == 0; }

void clear(const ForwardOutput& out, int64_t channels) {
    std::fill_n(out.count, channels, 0);
    std::fill_n(out.l1, channels, 0.0f);
}

void clear(const BackwardOutput& out, int64_t channels) {
    for (float* sum : {out.scale, out.shift, out.rate, out.threshold})
        if (sum != nullptr) std::fill_n(sum, channels, 0.0f);
}

void neuron_forward(const NeuronConfig& neuron, const Input& in, const ForwardOutput& out) {
    clear(out, in.shape.c);
    if (empty(in.shape)) return;
    ForwardPass forward(neuron, in, out, Order::memory);
    for_stripes(forward.tiling, useful_threads(in.shape, in.threads),
                [&](const Stripe& stripe, int threads) { forward.run(stripe, threads); });
}

void neuron_backward(const NeuronConfig& neuron, const Input& in, const BackwardInput& grad,
                     const BackwardOutput& out) {
    clear(out, in.shape.c);
    if (empty(in.shape)) return;
    BackwardPass backward(neuron, in, grad, out, {in.scale, nullptr, nullptr, nullptr}, Order::memory);
    for_stripes(backward.tiling, useful_threads(in.shape, in.threads),
                [&](const Stripe& stripe, int threads) { backward.run(stripe, threads); });
    for (int64_t c = 0; c < in.shape.c; ++c) {
        if (out.scale != nullptr) out.scale[c] = static_cast<float>(backward.sum(BackwardPass::kScale, c));
        if (out.shift != nullptr) out.shift[c] = static_cast<float>(backward.sum(BackwardPass::kShift, c));
        if (out.rate != nullptr) out.rate[c] = static_cast<float>(backward.sum(BackwardPass::kRate, c));
        if (out.threshold != nullptr) out.threshold[c] = static_cast<float>(backward.sum(BackwardPass::kThreshold, c));
    }
}

}  // namespace sca
