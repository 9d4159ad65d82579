// Which compiled set of kernels runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace sca {

// Sets that this build holds and this processor can run, the fastest first.
std::vector<std::string> available_isas();

// The set in use: the fastest available, or the one that SCA_KERNELS_CPU_ISA names (read once).
// Throws std::invalid_argument where that one is unknown or can't run here.
const Kernels& kernels();

}  // namespace sca
