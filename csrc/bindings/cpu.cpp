// Python module sca_kernels._cpu: raw addresses, sizes and strides in. It checks what it can do cheaply;
// backends/cpu.py, its only caller, hands over tensors that it has checked or made itself. Addresses are integers, 0
// stands for "none".

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "../cpu/bitpack.h"
#include "../cpu/isa.h"
#include "../cpu/neuron.h"
#include "../cpu/weights.h"
#include "../cpu/winograd.h"

namespace py = pybind11;

namespace {

// Raised with every change of a signature below; backends/cpu.py refuses a build that is out of date.
constexpr int kAbiVersion = 9;

// (address, (t, n, c, s) strides in elements)
using Activation = std::tuple<uintptr_t, std::array<int64_t, 4>>;
using MaybeActivation = std::optional<Activation>;
// (threshold, least number that fires), [C] each
using Thresholds = std::pair<uintptr_t, uintptr_t>;

sca::DType dtype_of(const std::string& name) {
    if (name == "float32") return sca::DType::float32;
    if (name == "bfloat16") return sca::DType::bfloat16;
    throw py::value_error("dtype: expected float32 or bfloat16, got " + name);
}

sca::Shape shape_of(const std::array<int64_t, 4>& sizes) {
    if (sizes[0] < 1 || sizes[1] < 0 || sizes[2] < 0 || sizes[3] < 0)
        throw py::value_error("shape: expected (T >= 1, N >= 0, C >= 0, S >= 0)");
    return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

sca::View view(const MaybeActivation& z, sca::DType dtype) {
    if (!z) return {};
    const auto& [address, strides] = *z;
    return {reinterpret_cast<void*>(address), dtype, strides[0], strides[1], strides[2], strides[3]};
}

sca::View state(const MaybeActivation& z) { return view(z, sca::DType::float32); }

template <class T>
T* vector_at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

bool any_nan(const float* values, int64_t size) {
    return std::any_of(values, values + size, [](float value) { return std::isnan(value); });
}

// Null stands for all channels.
void check_indices(const char* name, const int64_t* indices, int64_t count, int64_t size) {
    for (int64_t i = 0; indices != nullptr && i < count; ++i)
        if (indices[i] < 0 || indices[i] >= size)
            throw py::value_error(std::string(name) + ": expected indices in [0, " + std::to_string(size) + "), got " +
                                  std::to_string(indices[i]));
}

// ((images, height, width, pad rows, pad columns, in, out), filters in channels_last)
using Convolution = std::tuple<std::array<int64_t, 7>, bool>;

sca::Convolution convolution(const Convolution& c) {
    const auto& [sizes, in_innermost] = c;
    const auto [images, height, width, rows, columns, in, out] = sizes;
    const sca::Convolution made{images, height, width, rows, columns, in, out, in_innermost};
    if (images < 0 || in < 1 || out < 1 || std::min(rows, columns) < 0 || std::max(rows, columns) > 2 ||
        std::min(made.out_height(), made.out_width()) < 1)
        throw py::value_error("convolution: expected at least one channel and position, and a padding of 2 at most");
    return made;
}

struct Problem {
    sca::DType dtype;
    sca::Input in;

    Problem(const std::array<int64_t, 4>& sizes, const std::string& dtype_name, int threads, const Activation& x,
            const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t rate,
            const Thresholds& thresholds)
        : dtype(dtype_of(dtype_name)),
          in{shape_of(sizes),
             view(x, dtype),
             state(v_init),
             vector_at<const float>(scale),
             vector_at<const float>(shift),
             vector_at<const float>(rate),
             vector_at<const float>(thresholds.first),
             vector_at<const float>(thresholds.second),
             threads} {}
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Compiled CPU kernels; use sca_kernels.functional.";
    m.attr("abi_version") = kAbiVersion;
    m.def("available_isas", &sca::available_isas, "Instruction sets that can run here, the fastest first.");
    m.def("isa", [] { return sca::kernels().name; }, "Instruction set in use.");

    py::class_<sca::NeuronConfig>(m, "NeuronConfig", "A neuron configuration, translated once.")
        .def(py::init(&sca::neuron_config), py::arg("charge"), py::arg("reset"), py::arg("surrogate"),
             py::arg("detach_reset"), py::arg("subtracts_threshold"), py::arg("leak"), py::arg("threshold"),
             py::arg("fires_at"), py::arg("by"), py::arg("rest"), py::arg("alpha"), py::arg("beta"), py::arg("gain"));

    m.def(
        "neuron_forward",
        [](const sca::NeuronConfig& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t rate, const Thresholds& thresholds,
           const Activation& spikes, const MaybeActivation& v, const MaybeActivation& h, uintptr_t mask, uintptr_t count, uintptr_t l1) {
            const Problem p(shape, dtype, threads, x, v_init, scale, shift, rate, thresholds);
            const sca::ForwardOutput out{view(spikes, p.dtype), state(v), state(h), vector_at<const uint8_t>(mask),
                                         vector_at<int64_t>(count), vector_at<float>(l1)};
            const py::gil_scoped_release released;
            sca::neuron_forward(neuron, p.in, out);
            return any_nan(out.l1, p.in.shape.c);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("scale"), py::arg("shift"), py::arg("rate"), py::arg("thresholds"), py::arg("spikes"), py::arg("v"), py::arg("h"), py::arg("mask"),
        py::arg("count"), py::arg("l1"), "Returns whether an l1 is NaN.");

    m.def(
        "neuron_backward",
        [](const sca::NeuronConfig& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t rate, const Thresholds& thresholds,
           const MaybeActivation& grad_spikes, const MaybeActivation& grad_v, const MaybeActivation& grad_h, const MaybeActivation& grad_x,
           const MaybeActivation& grad_v_init, uintptr_t grad_scale, uintptr_t grad_shift, uintptr_t grad_rate, uintptr_t grad_threshold) {
            const Problem p(shape, dtype, threads, x, v_init, scale, shift, rate, thresholds);
            const sca::BackwardInput grad{view(grad_spikes, p.dtype), state(grad_v), state(grad_h)};
            const sca::BackwardOutput out{view(grad_x, p.dtype), state(grad_v_init), vector_at<float>(grad_scale),
                                          vector_at<float>(grad_shift), vector_at<float>(grad_rate), vector_at<float>(grad_threshold)};
            const py::gil_scoped_release released;
            sca::neuron_backward(neuron, p.in, grad, out);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("scale"), py::arg("shift"), py::arg("rate"), py::arg("thresholds"), py::arg("grad_spikes"), py::arg("grad_v"), py::arg("grad_h"),
        py::arg("grad_x"), py::arg("grad_v_init"), py::arg("grad_scale"), py::arg("grad_shift"), py::arg("grad_rate"), py::arg("grad_threshold"));

    m.def(
        "batch_norm_forward",
        [](const sca::NeuronConfig& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t weight, uintptr_t bias, double eps,
           uintptr_t statistics, uintptr_t rate, const Thresholds& thresholds, const Activation& spikes, const MaybeActivation& v, const MaybeActivation& h, uintptr_t mask,
           uintptr_t count, uintptr_t l1) {
            const Problem p(shape, dtype, threads, x, v_init, 0, 0, rate, thresholds);
            const sca::BatchNorm norm{vector_at<const float>(weight), vector_at<const float>(bias), eps};
            const sca::ForwardOutput out{view(spikes, p.dtype), state(v), state(h), vector_at<const uint8_t>(mask),
                                         vector_at<int64_t>(count), vector_at<float>(l1)};
            const py::gil_scoped_release released;
            sca::batch_norm_forward(neuron, norm, p.in, out, vector_at<float>(statistics));
            return any_nan(out.l1, p.in.shape.c);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("statistics"), py::arg("rate"), py::arg("thresholds"), py::arg("spikes"),
        py::arg("v"), py::arg("h"), py::arg("mask"), py::arg("count"), py::arg("l1"));

    m.def(
        "batch_norm_backward",
        [](const sca::NeuronConfig& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t weight, double eps, uintptr_t statistics,
           uintptr_t rate, const Thresholds& thresholds, const MaybeActivation& grad_spikes, const MaybeActivation& grad_v, const MaybeActivation& grad_h,
           const MaybeActivation& grad_x, const MaybeActivation& grad_v_init, uintptr_t grad_weight,
           uintptr_t grad_bias, uintptr_t grad_rate, uintptr_t grad_threshold) {
            const Problem p(shape, dtype, threads, x, v_init, 0, 0, rate, thresholds);
            const sca::BatchNorm norm{vector_at<const float>(weight), nullptr, eps};
            const sca::BackwardInput grad{view(grad_spikes, p.dtype), state(grad_v), state(grad_h)};
            const sca::BackwardOutput out{view(grad_x, p.dtype), state(grad_v_init), vector_at<float>(grad_weight),
                                          vector_at<float>(grad_bias), vector_at<float>(grad_rate), vector_at<float>(grad_threshold)};
            const py::gil_scoped_release released;
            sca::batch_norm_backward(neuron, norm, p.in, vector_at<const float>(statistics), grad, out);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("weight"), py::arg("eps"), py::arg("statistics"), py::arg("rate"), py::arg("thresholds"), py::arg("grad_spikes"),
        py::arg("grad_v"), py::arg("grad_h"), py::arg("grad_x"), py::arg("grad_v_init"), py::arg("grad_weight"), py::arg("grad_bias"),
        py::arg("grad_rate"), py::arg("grad_threshold"));

    m.def(
        "batch_norm_moments",
        [](const std::array<int64_t, 4>& shape, const std::string& dtype, int threads, const Activation& x,
           uintptr_t sums) {
            const Problem p(shape, dtype, threads, x, {}, 0, 0, 0, {});
            const py::gil_scoped_release released;
            sca::batch_norm_moments(p.in, vector_at<double>(sums));
        },
        py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("sums"));

    m.def(
        "batch_norm_sums",
        [](const sca::NeuronConfig& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t center,
           uintptr_t rate, const Thresholds& thresholds, const MaybeActivation& grad_spikes, const MaybeActivation& grad_v, const MaybeActivation& grad_h, uintptr_t sums) {
            const Problem p(shape, dtype, threads, x, v_init, scale, shift, rate, thresholds);
            const sca::BackwardInput grad{view(grad_spikes, p.dtype), state(grad_v), state(grad_h)};
            const py::gil_scoped_release released;
            sca::batch_norm_sums(neuron, p.in, vector_at<const float>(center), grad, vector_at<double>(sums));
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("scale"), py::arg("shift"), py::arg("center"), py::arg("rate"), py::arg("thresholds"), py::arg("grad_spikes"),
        py::arg("grad_v"), py::arg("grad_h"), py::arg("sums"));

    m.def(
        "batch_norm_gradient",
        [](const sca::NeuronConfig& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t center,
           uintptr_t slope, uintptr_t offset, uintptr_t rate, const Thresholds& thresholds, const MaybeActivation& grad_spikes,
           const MaybeActivation& grad_v, const MaybeActivation& grad_h, const Activation& grad_x, const MaybeActivation& grad_v_init) {
            const Problem p(shape, dtype, threads, x, v_init, scale, shift, rate, thresholds);
            const sca::BackwardInput grad{view(grad_spikes, p.dtype), state(grad_v), state(grad_h)};
            const sca::BackwardOutput out{view(grad_x, p.dtype), state(grad_v_init), nullptr, nullptr, nullptr, nullptr};
            const py::gil_scoped_release released;
            sca::batch_norm_gradient(neuron, p.in, vector_at<const float>(center), vector_at<const float>(slope),
                                     vector_at<const float>(offset), grad, out);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("scale"), py::arg("shift"), py::arg("center"), py::arg("slope"), py::arg("offset"), py::arg("rate"), py::arg("thresholds"),
        py::arg("grad_spikes"), py::arg("grad_v"), py::arg("grad_h"), py::arg("grad_x"), py::arg("grad_v_init"));

    m.def(
        "pack_bits",
        [](uintptr_t from, const std::string& dtype, int64_t numel, uintptr_t to, int threads) {
            const sca::DType type = dtype_of(dtype);
            const py::gil_scoped_release released;
            return sca::pack_bits(vector_at<const void>(from), type, numel, vector_at<uint8_t>(to), threads);
        },
        py::arg("spikes"), py::arg("dtype"), py::arg("numel"), py::arg("packed"), py::arg("threads"));

    m.def(
        "unpack_bits",
        [](uintptr_t from, const std::string& dtype, int64_t numel, uintptr_t to, int threads) {
            const sca::DType type = dtype_of(dtype);
            const py::gil_scoped_release released;
            sca::unpack_bits(vector_at<const uint8_t>(from), type, numel, vector_at<void>(to), threads);
        },
        py::arg("packed"), py::arg("dtype"), py::arg("numel"), py::arg("spikes"), py::arg("threads"));

    m.def(
        "winograd_forward",
        [](const Convolution& c, uintptr_t x, uintptr_t filters, uintptr_t bias, uintptr_t y, int threads) {
            const sca::Convolution made = convolution(c);
            const py::gil_scoped_release released;
            sca::winograd_forward(made, vector_at<const float>(x), vector_at<const float>(filters),
                                  vector_at<const float>(bias), vector_at<float>(y), threads);
        },
        py::arg("convolution"), py::arg("x"), py::arg("filters"), py::arg("bias"), py::arg("y"), py::arg("threads"));
    m.def(
        "winograd_backward_input",
        [](const Convolution& c, uintptr_t g_y, uintptr_t filters, uintptr_t g_x, int threads) {
            const sca::Convolution made = convolution(c);
            const py::gil_scoped_release released;
            sca::winograd_backward_input(made, vector_at<const float>(g_y), vector_at<const float>(filters),
                                         vector_at<float>(g_x), threads);
        },
        py::arg("convolution"), py::arg("grad"), py::arg("filters"), py::arg("grad_x"), py::arg("threads"));
    m.def(
        "winograd_backward_filters",
        [](const Convolution& c, uintptr_t g_y, uintptr_t x, uintptr_t bits, uintptr_t g_filters, int threads) {
            const sca::Convolution made = convolution(c);
            const py::gil_scoped_release released;
            sca::winograd_backward_filters(made, vector_at<const float>(g_y), vector_at<const float>(x),
                                           vector_at<const uint8_t>(bits), vector_at<float>(g_filters), threads);
        },
        py::arg("convolution"), py::arg("grad"), py::arg("x"), py::arg("bits"), py::arg("grad_filters"),
        py::arg("threads"));

    const auto on_block = [](auto function) {
        return
            [function](uintptr_t from, std::array<int64_t, 3> shape, bool in_innermost, int64_t element_size,
                       std::pair<uintptr_t, int64_t> out, std::pair<uintptr_t, int64_t> in, uintptr_t to, int threads) {
                if (element_size != 2 && element_size != 4)
                    throw py::value_error("element_size: expected 2 or 4 bytes, got " + std::to_string(element_size));
                const sca::Weight weight{shape[0], shape[1], shape[2], in_innermost, element_size};
                const sca::Active active{vector_at<const int64_t>(out.first), out.second,
                                         vector_at<const int64_t>(in.first), in.second};
                check_indices("out_channels", active.out, active.num_out, weight.out);
                check_indices("in_channels", active.in, active.num_in, weight.in);
                const py::gil_scoped_release released;
                function(vector_at<const void>(from), weight, active, vector_at<void>(to), threads);
            };
    };
    m.def("gather_block", on_block(sca::gather_block), py::arg("weight"), py::arg("shape"), py::arg("in_innermost"),
          py::arg("element_size"), py::arg("out"), py::arg("in"), py::arg("block"), py::arg("threads"));
    m.def("scatter_block", on_block(sca::scatter_block), py::arg("block"), py::arg("shape"), py::arg("in_innermost"),
          py::arg("element_size"), py::arg("out"), py::arg("in"), py::arg("weight"), py::arg("threads"));
    m.def("put_block", on_block(sca::put_block), py::arg("block"), py::arg("shape"), py::arg("in_innermost"),
          py::arg("element_size"), py::arg("out"), py::arg("in"), py::arg("weight"), py::arg("threads"));
}
