// Python module sca_kernels._cpu: raw addresses, sizes and strides in. It checks what it can do cheaply;
// backends/cpu.py, its only caller, hands over tensors that it has checked or made itself. Addresses are integers, 0
// stands for "none".

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "../cpu/bitpack.h"
#include "../cpu/blocks.h"
#include "../cpu/isa.h"
#include "../cpu/neuron.h"

namespace py = pybind11;

namespace {

// Raised with every change of a signature below; backends/cpu.py refuses a build that is out of date.
constexpr int kAbiVersion = 2;

// (address, (t, n, c, s) strides in elements)
using Activation = std::tuple<uintptr_t, std::array<int64_t, 4>>;
using MaybeActivation = std::optional<Activation>;

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

struct Problem {
    sca::DType dtype;
    sca::Input in;

    Problem(const std::array<int64_t, 4>& sizes, const std::string& dtype_name, int threads, const Activation& x,
            const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t rate)
        : dtype(dtype_of(dtype_name)),
          in{shape_of(sizes),
             view(x, dtype),
             state(v_init),
             vector_at<const float>(scale),
             vector_at<const float>(shift),
             vector_at<const float>(rate),
             threads} {}
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Compiled CPU kernels; use sca_kernels.functional.";
    m.attr("abi_version") = kAbiVersion;
    m.def("available_isas", &sca::available_isas, "Instruction sets that can run here, the fastest first.");
    m.def("isa", [] { return sca::kernels().name; }, "Instruction set in use.");

    py::class_<sca::Neuron>(m, "Neuron", "A neuron configuration, translated once.")
        .def(py::init(&sca::make_neuron), py::arg("neuron"), py::arg("tau"), py::arg("v_threshold"),
             py::arg("soft_reset"), py::arg("v_rest"), py::arg("decay_input"), py::arg("detach_reset"),
             py::arg("surrogate"), py::arg("alpha"), py::arg("beta"));

    m.def(
        "neuron_forward",
        [](const sca::Neuron& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t rate,
           const Activation& spikes, const MaybeActivation& v, uintptr_t mask, uintptr_t count, uintptr_t l1) {
            const Problem p(shape, dtype, threads, x, v_init, scale, shift, rate);
            const sca::ForwardOutput out{view(spikes, p.dtype), state(v), vector_at<const uint8_t>(mask),
                                         vector_at<int64_t>(count), vector_at<float>(l1)};
            const py::gil_scoped_release released;
            sca::neuron_forward(neuron, p.in, out);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("scale"), py::arg("shift"), py::arg("rate"), py::arg("spikes"), py::arg("v"), py::arg("mask"),
        py::arg("count"), py::arg("l1"));

    m.def(
        "neuron_backward",
        [](const sca::Neuron& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t scale, uintptr_t shift, uintptr_t rate,
           const MaybeActivation& grad_spikes, const MaybeActivation& grad_v, const MaybeActivation& grad_x,
           const MaybeActivation& grad_v_init, uintptr_t grad_scale, uintptr_t grad_shift, uintptr_t grad_rate) {
            const Problem p(shape, dtype, threads, x, v_init, scale, shift, rate);
            const sca::BackwardInput grad{view(grad_spikes, p.dtype), state(grad_v)};
            const sca::BackwardOutput out{view(grad_x, p.dtype), state(grad_v_init), vector_at<float>(grad_scale),
                                          vector_at<float>(grad_shift), vector_at<float>(grad_rate)};
            const py::gil_scoped_release released;
            sca::neuron_backward(neuron, p.in, grad, out);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("scale"), py::arg("shift"), py::arg("rate"), py::arg("grad_spikes"), py::arg("grad_v"),
        py::arg("grad_x"), py::arg("grad_v_init"), py::arg("grad_scale"), py::arg("grad_shift"), py::arg("grad_rate"));

    m.def(
        "batch_norm_forward",
        [](const sca::Neuron& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t weight, uintptr_t bias, double eps,
           uintptr_t mean, uintptr_t var, uintptr_t rate, const Activation& spikes, const MaybeActivation& v,
           uintptr_t mask, uintptr_t count, uintptr_t l1) {
            const Problem p(shape, dtype, threads, x, v_init, 0, 0, rate);
            const sca::BatchNorm norm{vector_at<const float>(weight), vector_at<const float>(bias), eps};
            const sca::ForwardOutput out{view(spikes, p.dtype), state(v), vector_at<const uint8_t>(mask),
                                         vector_at<int64_t>(count), vector_at<float>(l1)};
            const py::gil_scoped_release released;
            sca::batch_norm_forward(neuron, norm, p.in, out, vector_at<float>(mean), vector_at<float>(var));
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("mean"), py::arg("var"), py::arg("rate"),
        py::arg("spikes"), py::arg("v"), py::arg("mask"), py::arg("count"), py::arg("l1"));

    m.def(
        "batch_norm_backward",
        [](const sca::Neuron& neuron, const std::array<int64_t, 4>& shape, const std::string& dtype, int threads,
           const Activation& x, const MaybeActivation& v_init, uintptr_t weight, uintptr_t bias, double eps,
           uintptr_t mean, uintptr_t var, uintptr_t rate, const MaybeActivation& grad_spikes,
           const MaybeActivation& grad_v, const MaybeActivation& grad_x, const MaybeActivation& grad_v_init,
           uintptr_t grad_weight, uintptr_t grad_bias, uintptr_t grad_rate) {
            const Problem p(shape, dtype, threads, x, v_init, 0, 0, rate);
            const sca::BatchNorm norm{vector_at<const float>(weight), vector_at<const float>(bias), eps};
            const sca::BackwardInput grad{view(grad_spikes, p.dtype), state(grad_v)};
            const sca::BackwardOutput out{view(grad_x, p.dtype), state(grad_v_init), vector_at<float>(grad_weight),
                                          vector_at<float>(grad_bias), vector_at<float>(grad_rate)};
            const py::gil_scoped_release released;
            sca::batch_norm_backward(neuron, norm, p.in, vector_at<const float>(mean), vector_at<const float>(var),
                                     grad, out);
        },
        py::arg("neuron"), py::arg("shape"), py::arg("dtype"), py::arg("threads"), py::arg("x"), py::arg("v_init"),
        py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("mean"), py::arg("var"), py::arg("rate"),
        py::arg("grad_spikes"), py::arg("grad_v"), py::arg("grad_x"), py::arg("grad_v_init"), py::arg("grad_weight"),
        py::arg("grad_bias"), py::arg("grad_rate"));

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

    const auto on_block = [](auto function) {
        return
            [function](uintptr_t from, std::array<int64_t, 3> shape, bool in_innermost, int64_t element_size,
                       std::pair<uintptr_t, int64_t> out, std::pair<uintptr_t, int64_t> in, uintptr_t to, int threads) {
                if (element_size != 2 && element_size != 4)
                    throw py::value_error("element_size: expected 2 or 4 bytes, got " + std::to_string(element_size));
                const sca::Weight weight{shape[0], shape[1], shape[2], in_innermost, element_size};
                const sca::Active active{vector_at<const int64_t>(out.first), out.second,
                                         vector_at<const int64_t>(in.first), in.second};
                const py::gil_scoped_release released;
                function(vector_at<const void>(from), weight, active, vector_at<void>(to), threads);
            };
    };
    m.def("gather_block", on_block(sca::gather_block), py::arg("weight"), py::arg("shape"), py::arg("in_innermost"),
          py::arg("element_size"), py::arg("out"), py::arg("in"), py::arg("block"), py::arg("threads"));
    m.def("scatter_block", on_block(sca::scatter_block), py::arg("block"), py::arg("shape"), py::arg("in_innermost"),
          py::arg("element_size"), py::arg("out"), py::arg("in"), py::arg("weight"), py::arg("threads"));
}
