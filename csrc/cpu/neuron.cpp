#include "neuron.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "backward.h"
#include "forward.h"

namespace sca {

Neuron make_neuron(const std::string& neuron, double tau, double v_threshold, bool soft_reset, double v_rest,
                   bool decay_input, bool detach_reset, const std::string& surrogate, double alpha, double beta) {
    static const char* const surrogates[] = {
#define SCA_ROW(index, Surrogate, name) name,
        SCA_SURROGATES(SCA_ROW)
#undef SCA_ROW
    };
    int exponent;
    const bool exact = std::frexp(tau, &exponent) == 0.5;  // a power of two
    const bool multiplies = neuron == "plif" || exact;
    Neuron made{};
    if (neuron == "if")
        made.charge = 0;
    else if (neuron == "lif" || neuron == "plif")
        made.charge = (decay_input ? 1 : 3) + (multiplies ? 1 : 0);
    else
        throw std::invalid_argument("neuron: expected one of if, lif, plif, got '" + neuron + "'");
    made.reset = soft_reset ? 2 : v_rest == 0.0 ? 1 : 0;
    made.surrogate = static_cast<int>(std::find(surrogates, surrogates + kSurrogates, surrogate) - surrogates);
    if (made.surrogate == kSurrogates) throw std::invalid_argument("surrogate: '" + surrogate + "' is not compiled in");
    made.detach_reset = detach_reset;
    made.rate = static_cast<float>(multiplies ? 1.0 / tau : tau);
    made.threshold = static_cast<float>(v_threshold);
    made.rest = static_cast<float>(v_rest);
    made.alpha = static_cast<float>(alpha);
    made.beta = static_cast<float>(beta);
    return made;
}

bool empty(const Shape& shape) { return shape.n == 0 || shape.c == 0 || shape.s == 0; }

void clear(const ForwardOutput& out, int64_t channels) {
    std::fill_n(out.count, channels, 0);
    std::fill_n(out.l1, channels, 0.0f);
}

void clear(const BackwardOutput& out, int64_t channels) {
    for (float* sum : {out.scale, out.shift, out.rate})
        if (sum != nullptr) std::fill_n(sum, channels, 0.0f);
}

void neuron_forward(const Neuron& neuron, const Input& in, const ForwardOutput& out) {
    clear(out, in.shape.c);
    if (empty(in.shape)) return;
    ForwardPass forward(neuron, in, out, Order::memory);
    for_stripes(forward.tiling, useful_threads(in.shape, in.threads),
                [&](const Stripe& stripe, int threads) { forward.run(stripe, threads); });
}

void neuron_backward(const Neuron& neuron, const Input& in, const BackwardInput& grad, const BackwardOutput& out) {
    clear(out, in.shape.c);
    if (empty(in.shape)) return;
    BackwardPass backward(neuron, in, grad, out, {in.scale, nullptr, nullptr, nullptr}, Order::memory);
    for_stripes(backward.tiling, useful_threads(in.shape, in.threads),
                [&](const Stripe& stripe, int threads) { backward.run(stripe, threads); });
    for (int64_t c = 0; c < in.shape.c; ++c) {
        if (out.scale != nullptr) out.scale[c] = static_cast<float>(backward.sum(BackwardPass::kScale, c));
        if (out.shift != nullptr) out.shift[c] = static_cast<float>(backward.sum(BackwardPass::kShift, c));
        if (out.rate != nullptr) out.rate[c] = static_cast<float>(backward.sum(BackwardPass::kRate, c));
    }
}

}  // namespace sca
