// Python module sca_kernels._cuda: the kernels that are compiled ahead, started by name with a structure of
// csrc/cuda/parameters.h as bytes. backends/cuda.py, its only caller, has filled that in.

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>

#include "../cuda/parameters.h"
#include "../cuda/table.h"

namespace py = pybind11;

namespace sca {

std::map<std::string, const void*>& kernel_table() {
    static std::map<std::string, const void*> table;
    return table;
}

}  // namespace sca

namespace {

void check(cudaError_t code, const std::string& what) {
    if (code != cudaSuccess) throw std::runtime_error("backend cuda: " + what + " failed: " + cudaGetErrorString(code));
}

void launch(const std::string& kernel, unsigned grid, unsigned threads, size_t shared, const py::bytes& parameters,
            int device, uintptr_t stream) {
    const auto row = sca::kernel_table().find(kernel);
    if (row == sca::kernel_table().end()) throw py::value_error("kernel: " + kernel + " is not compiled in");
    void* argument = PyBytes_AS_STRING(parameters.ptr());
    check(cudaSetDevice(device), "choosing device " + std::to_string(device));
    check(cudaLaunchKernel(row->second, dim3(grid), dim3(threads), &argument, shared,
                           reinterpret_cast<cudaStream_t>(stream)),
          "starting " + kernel);
}

int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "asking for the driver's version");
    return version;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.def("launch", launch, py::arg("kernel"), py::arg("grid"), py::arg("threads"), py::arg("shared"),
          py::arg("parameters"), py::arg("device"), py::arg("stream"));
    m.def("driver_version", driver_version, "CUDA version that the driver supports, 0 without a driver.");
    m.attr("runtime_version") = CUDART_VERSION;
    m.attr("architectures") = SCA_CUDA_ARCHITECTURES;  // as in setup.py: "8.0;9.0+PTX"
    std::map<std::string, size_t> sizes;
#define SCA_ROW(Parameters) sizes[#Parameters] = sizeof(sca::Parameters);
    SCA_PARAMETERS(SCA_ROW)
#undef SCA_ROW
    m.attr("sizes") = sizes;
    std::vector<std::string> kernels;
    for (const auto& row : sca::kernel_table()) kernels.push_back(row.first);
    m.attr("kernels") = kernels;
}
