#include "channels.h"
#include "table.h"

static const sca::Rows rows{SCA_KERNELS_OF_CHANNELS(SCA_TABLE_ROW)};
