#include "kernels.h"
#include "table.h"

static const sca::Rows rows{SCA_KERNELS_OF(SCA_TABLE_ROW, float, 4)};
