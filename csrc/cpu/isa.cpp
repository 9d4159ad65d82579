#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace sca {

#if defined(__x86_64__)
namespace avx512 {
Kernels kernels(const char*);
}
namespace avx2 {
Kernels kernels(const char*);
}
#endif
namespace baseline {
Kernels kernels(const char*);
}

namespace {

struct Isa {
    const char* name;
    Kernels (*kernels)(const char*);
    bool runs;
};

std::vector<Isa> isas() {
    std::vector<Isa> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
    all.push_back({"avx512", avx512::kernels,
                   __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl")});
    all.push_back({"avx2", avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
    all.push_back({"baseline", baseline::kernels, true});
    return all;
}

Kernels chosen() {
    const char* wanted = std::getenv("SCA_KERNELS_CPU_ISA");
    std::string names;
    for (const Isa& isa : isas()) {
        if (!isa.runs) continue;
        if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == isa.name) return isa.kernels(isa.name);
        names += names.empty() ? isa.name : std::string(", ") + isa.name;
    }
    throw std::invalid_argument("SCA_KERNELS_CPU_ISA: expected one of " + names + ", got '" + wanted + "'");
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : isas())
        if (isa.runs) names.push_back(isa.name);
    return names;
}

const Kernels& kernels() {
    static const Kernels table = chosen();
    return table;
}

}  // namespace sca
