// The kernels that are compiled ahead, by name.
#pragma once

#include <map>
#include <string>

namespace sca {

// Expression of the list in kernels.h -> address for cudaLaunchKernel.
std::map<std::string, const void*>& kernel_table();

struct KernelRows {
    KernelRows(std::initializer_list<std::pair<const std::string, const void*>> rows) { kernel_table().insert(rows); }
};

}  // namespace sca

#define SCA_TABLE_ROW(Parameters, ...) \
    {#__VA_ARGS__, reinterpret_cast<const void*>(static_cast<void (*)(sca::Parameters)>(__VA_ARGS__))},
