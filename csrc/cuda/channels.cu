#include "channels.h"
#include "table.h"

static const sca::Rows rows{SCA_ALL_OVER_CHANNELS(SCA_TABLE_ROW)};
