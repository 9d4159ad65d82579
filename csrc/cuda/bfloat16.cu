#include "kernels.h"
#include "table.h"

static const sca::KernelRows rows{SCA_ALL_KERNELS(SCA_TABLE_ROW, sca::bfloat16, 8)};
