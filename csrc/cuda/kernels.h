// Every kernel, and the list of what is compiled: row(parameters, expression). The expression, as text, is the name
// that a launch asks for, and what NVRTC instantiates.
#pragma once

#include "batch_norm.h"
#include "bitpack.h"
#include "neuron_backward.h"
#include "neuron_forward.h"

// 16 bytes per access, or one element where sizes, strides or addresses ask for it.
#define SCA_VARIANTS(row, kernel, Parameters, T, V)                                    \
    row(Parameters, sca::kernel<T, true, V>) row(Parameters, sca::kernel<T, false, V>) \
        row(Parameters, sca::kernel<T, true, 1>) row(Parameters, sca::kernel<T, false, 1>)

// Beside the plain ones.
#define SCA_OTHER_VARIANTS(row, kernel, Parameters, T, V)                                            \
    row(Parameters, sca::kernel<T, true, V, false>) row(Parameters, sca::kernel<T, false, V, false>) \
        row(Parameters, sca::kernel<T, true, 1, false>) row(Parameters, sca::kernel<T, false, 1, false>)

#define SCA_ALL_KERNELS(row, T, V)                                                            \
    SCA_VARIANTS(row, neuron_forward, ForwardParameters, T, V)                                \
    SCA_OTHER_VARIANTS(row, neuron_forward, ForwardParameters, T, V)                          \
    SCA_VARIANTS(row, neuron_backward, BackwardParameters, T, V)                              \
    SCA_OTHER_VARIANTS(row, neuron_backward, BackwardParameters, T, V)                        \
    SCA_VARIANTS(row, moments, MomentsParameters, T, V)                                       \
    row(BitpackParameters, sca::pack_bits<T, V>) row(BitpackParameters, sca::pack_bits<T, 1>) \
        row(BitpackParameters, sca::unpack_bits<T, V>) row(BitpackParameters, sca::unpack_bits<T, 1>)
