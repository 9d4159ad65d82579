// The kernels of csrc/cuda as a Python module that runs them on CPU tensors;
// test only.

// clang-format off: the kernels need what the emulation defines
#include "emulation.h"

#include "../../../csrc/cuda/kernels.h"
// clang-format on

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace sca {

void store_sixteen(void* p, const Sixteen& x) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) throw std::logic_error("a store of 16 bytes that is not aligned");
    std::memcpy(p, &x, 16);
}

// Half precision, which a device converts by an instruction.
float widened(float16 x) {
    const float magnitude = bits_as<float>((x.bits & 0x7fffu) << 13) * 0x1p112f;  // denormals come right by themselves
    const bool special = (x.bits & 0x7c00u) == 0x7c00u;
    const unsigned bits = special ? 0x7f800000u | (x.bits & 0x3ffu) << 13 : bits_as<unsigned>(magnitude);
    return bits_as<float>(bits | (x.bits & 0x8000u) << 16);
}

void round_to(float16& to, float x) {
    const unsigned sign = bits_as<unsigned>(x) >> 16 & 0x8000u;
    const double magnitude = std::fabs(static_cast<double>(x));
    if (x != x) {
        to.bits = 0x7fff;
        return;
    }
    // To the nearest multiple of the last place, ties to even; the exponent of
    // denormals is that of the least normal.
    const int exponent = magnitude == 0.0 ? -14 : std::max(-14, std::min(16, std::ilogb(magnitude)));
    const double units = std::nearbyint(std::min(std::ldexp(magnitude, 10 - exponent), 4096.0));
    const unsigned bits = static_cast<unsigned>(units) + static_cast<unsigned>(exponent + 14) * 1024u;
    to.bits = static_cast<unsigned short>(sign | std::min(bits, 0x7c00u));
}

}  // namespace sca

namespace py = pybind11;

namespace {

using Launch = void (*)(const void*, unsigned, int, size_t, unsigned);

template <class Parameters, void (*kernel)(const Parameters)>
void run(const void* bytes, unsigned grid, int threads, size_t shared, unsigned seed) {
    emulation::launch<Parameters>(kernel, bytes, grid, threads, shared, seed);
}

template <class Structure>
Structure unpacked(const py::bytes& bytes) {
    const std::string_view from(bytes);
    if (from.size() != sizeof(Structure)) throw std::logic_error("bytes of another structure");
    Structure to;
    std::memcpy(&to, from.data(), sizeof to);
    return to;
}

// Where the threads of a block stand in the tile that is so many after its first, those of which the tensor has the
// elements: offsets of the first in a strided and in a dense tensor, by thread.
template <bool planes, int V>
std::map<unsigned, std::pair<sca::int64, sca::int64>> places(const py::bytes& tiles, const py::bytes& strided,
                                                             unsigned block, int tile) {
    std::map<unsigned, std::pair<sca::int64, sca::int64>> found;
    const auto given = unpacked<sca::TileParameters>(tiles);
    const auto z = unpacked<sca::Strided>(strided);
    blockIdx.x = block;
    for (unsigned thread = 0; thread < sca::kThreads; ++thread) {
        threadIdx.x = thread;
        sca::Place<planes, V> at(given);
        for (int i = 0; i < tile; ++i) at.next();
        if (at.valid()) found[thread] = {at.offset(z), at.dense()};
    }
    return found;
}

const std::map<std::string, Launch>& table() {
    static const std::map<std::string, Launch> rows = {
#define SCA_ROW(Parameters, ...) {#__VA_ARGS__, run<sca::Parameters, __VA_ARGS__>},
        SCA_ALL_KERNELS(SCA_ROW, float, 4) SCA_ALL_KERNELS(SCA_ROW, sca::bfloat16, 8)
            SCA_ALL_KERNELS(SCA_ROW, sca::float16, 8)
#undef SCA_ROW
    };
    return rows;
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
    m.def("launch",
          [](const std::string& kernel, unsigned grid, int threads, size_t shared, const py::bytes& parameters,
             unsigned seed) { table().at(kernel)(std::string_view(parameters).data(), grid, threads, shared, seed); });
    const std::map<std::pair<bool, int>, decltype(&places<true, 4>)> widths = {{{true, 4}, places<true, 4>},
                                                                               {{false, 4}, places<false, 4>},
                                                                               {{true, 1}, places<true, 1>},
                                                                               {{false, 1}, places<false, 1>}};
    m.def("places", [widths](bool planes, int width, const py::bytes& tiles, const py::bytes& strided, unsigned block,
                             int tile) { return widths.at({planes, width})(tiles, strided, block, tile); });
    std::map<std::string, size_t> sizes;
#define SCA_ROW(Parameters) sizes[#Parameters] = sizeof(sca::Parameters);
    SCA_PARAMETERS(SCA_ROW)
#undef SCA_ROW
    m.attr("sizes") = sizes;
}
