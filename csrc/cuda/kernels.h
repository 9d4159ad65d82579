// Every kernel, and the list of those that are compiled: SCA_KERNELS(row) is row(expression, parameters) per kernel. The
// expression, as text, is the name that a launch asks for, and what NVRTC instantiates.
#pragma once

#include "batch_norm.h"
#include "bitpack.h"
#include "channels.h"
#include "neuron_backward.h"
#include "neuron_forward.h"

// 16 bytes per access, or one element where sizes, strides or addresses ask for it.
#define SCA_WALKS(row, kernel, Parameters, T, V)                                                           \
    row(Parameters, sca::kernel<T, true, V>) row(Parameters, sca::kernel<T, false, V>)                     \
        row(Parameters, sca::kernel<T, true, 1>) row(Parameters, sca::kernel<T, false, 1>)

#define SCA_KERNELS_OF(row, T, V)                            \
    SCA_WALKS(row, neuron_forward, Forward, T, V)            \
    SCA_WALKS(row, neuron_backward, Backward, T, V)          \
    SCA_WALKS(row, moments, Moments, T, V)                   \
    row(Bits, sca::pack_bits<T, V>) row(Bits, sca::pack_bits<T, 1>) \
    row(Bits, sca::unpack_bits<T, V>) row(Bits, sca::unpack_bits<T, 1>)

#define SCA_KERNELS_OF_CHANNELS(row)                                          \
    row(Channels, sca::activity_totals) row(Channels, sca::gradient_totals)   \
        row(Channels, sca::statistics) row(Channels, sca::prelude) row(Channels, sca::coefficients)

// sizeof, to be compared with what the caller packs.
#define SCA_PARAMETERS(row) row(Forward) row(Backward) row(Moments) row(Channels) row(Bits)
