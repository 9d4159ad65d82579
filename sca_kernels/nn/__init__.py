"""Modules over :mod:`sca_kernels.functional`: neurons, batch norm with and without one, channel-sparse convolution and
linear layers, pools."""

from .activity import Activity
from .analog import set_analog
from .batch_norm import BatchNormIF, BatchNormLIF, BatchNormPLIF, ChannelBatchNorm1d, ChannelBatchNorm2d
from .conv import ChannelConv1d, ChannelConv2d
from .conv_transpose import ChannelConvTranspose1d, ChannelConvTranspose2d
from .explain import explain
from .group import ChannelGroup, probing
from .linear import ChannelLinear
from .neuron import IF, LIF, PLIF, Synapse, detach, reset
from .pool import AvgPool2d, MaxPool2d
from .select import ChannelSelect

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Activity",
    "AvgPool2d",
    "BatchNormIF",
    "BatchNormLIF",
    "BatchNormPLIF",
    "ChannelBatchNorm1d",
    "ChannelBatchNorm2d",
    "ChannelConv1d",
    "ChannelConv2d",
    "ChannelConvTranspose1d",
    "ChannelConvTranspose2d",
    "ChannelGroup",
    "ChannelLinear",
    "ChannelSelect",
    "MaxPool2d",
    "Synapse",
    "detach",
    "explain",
    "probing",
    "reset",
    "set_analog",
]
