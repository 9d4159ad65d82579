#include "sums.h"
#include "table.h"

static const sca::KernelRows rows{SCA_ALL_OVER_CHANNELS(SCA_TABLE_ROW)};
