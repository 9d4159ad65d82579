"""torch.library operators ``sca_kernels::*``: schema, fake implementation, autograd and the choice of backend, inside
the operator.

:mod:`sca_kernels.functional` checks arguments; those of calls of ``torch.ops.sca_kernels.*`` are checked here, so that
no kernel reads or writes where nothing is (:mod:`sca_kernels.ops.guards`). An empty backend name means the best one
that can run.
"""

from .batch_norm import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_gradient,
    batch_norm_inference,
    batch_norm_moments,
    batch_norm_sums,
    recorded_batch_norm_forward,
)
from .bitpack import pack_spikes, unpack_spikes
from .channel_conv import channel_conv2d, channel_conv2d_backward
from .channel_conv import channel_conv2d_by_torch as channel_conv2d_by_torch
from .common import can_change_in_place as can_change_in_place
from .common import seen as seen
from .common import transformed as transformed
from .flops import register as _register_flops
from .neuron import neuron_backward, neuron_forward, recorded_neuron_forward

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_gradient",
    "batch_norm_inference",
    "batch_norm_moments",
    "batch_norm_sums",
    "channel_conv2d",
    "channel_conv2d_backward",
    "neuron_backward",
    "neuron_forward",
    "pack_spikes",
    "recorded_batch_norm_forward",
    "recorded_neuron_forward",
    "unpack_spikes",
]

_register_flops()
