"""Triton kernels of the neurons, for any GPU that Triton compiles for (and, with TRITON_INTERPRET=1, for CPU tensors).

Imported by :mod:`sca_kernels.backends.triton` alone, at its first use. Sizes and strides are run-time arguments; only
T, dtypes, the kind of layout and the neuron's modes are compiled in.
"""

import triton

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter. Triton decides this when it is imported."""
