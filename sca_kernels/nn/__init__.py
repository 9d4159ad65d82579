"""Modules over :mod:`sca_kernels.functional`: neurons, batch norm with and without one, channel-sparse convolution and
linear layers, pools."""

from .activity import Activity
from .batch_norm import BatchNormIF, BatchNormLIF, BatchNormPLIF, ChannelBatchNorm2d
from .conv import ChannelConv2d
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
    "ChannelBatchNorm2d",
    "ChannelConv2d",
    "ChannelGroup",
    "ChannelLinear",
    "ChannelSelect",
    "MaxPool2d",
    "Synapse",
    "detach",
    "explain",
    "probing",
    "reset",
]
