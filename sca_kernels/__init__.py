"""Fused spiking-neuron kernels and channel-sparse layers for PyTorch.

Importing this package loads no native code, no Triton and probes no device: backends load at their first use.
"""

from . import functional, nn, surrogates
from .functional import NeuronOutput
from .memory import reuse_host_memory
from .surrogates import Surrogate
from .threads import share_cores
from .version import __version__

__all__ = [
    "NeuronOutput",
    "Surrogate",
    "__version__",
    "functional",
    "nn",
    "reuse_host_memory",
    "share_cores",
    "surrogates",
]
