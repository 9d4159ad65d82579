"""Checked, documented entry points.

Shapes: activations are time-major ``[T, N, C, *S]`` (T time steps, N samples, C channels, S any number of spatial
sizes), contiguous or channels_last; other layouts are copied once. dtypes: float32, bfloat16, float16 (float64 on the
reference backend); membrane potentials and sums are float32 (float64 for float64 input). Every argument error is a
TypeError or ValueError that names the argument, raised before anything is computed or changed. Tensors are strided: no
sparse or nested ones; of torch.func's transforms, those work that the operators have rules for, and the others are
refused.
"""

from ..ops.common import NotANumber, check_nan
from .activity import ActivitySums as ActivitySums
from .arguments import check_backend as check_backend
from .arguments import check_neuron as check_neuron
from .arguments import check_path as check_path
from .arguments import check_process_group as check_process_group
from .bitpack import pack_spikes, unpack_spikes
from .channel_conv import channel_conv2d
from .multistep import NeuronOutput, NeuronSequences, if_neuron, lif, neuron, plif
from .normalisation import batch_norm, batch_norm_lif, batch_norm_neuron
from .weights import gather_weight, put_weight

__all__ = [
    "NeuronOutput",
    "NeuronSequences",
    "NotANumber",
    "batch_norm",
    "batch_norm_lif",
    "batch_norm_neuron",
    "channel_conv2d",
    "check_nan",
    "gather_weight",
    "if_neuron",
    "lif",
    "neuron",
    "pack_spikes",
    "plif",
    "put_weight",
    "unpack_spikes",
]
