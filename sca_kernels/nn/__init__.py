"""Modules over :mod:`sca_kernels.functional`: neurons, batch norm with and without one, channel-sparse convolution and
linear layers, max-pooling."""

from .activity import Activity
from .batch_norm import BatchNormIF, BatchNormLIF, BatchNormPLIF, ChannelBatchNorm2d
from .conv import ChannelConv2d
from .explain import explain
from .group import ChannelGroup, probing
from .linear import ChannelLinear
from .neuron import IF, LIF, PLIF, detach, reset
from .pool import MaxPool2d
from .select import ChannelSelect

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Activity",
    "BatchNormIF",
    "BatchNormLIF",
    "BatchNormPLIF",
    "ChannelBatchNorm2d",
    "ChannelConv2d",
    "ChannelGroup",
    "ChannelLinear",
    "ChannelSelect",
    "MaxPool2d",
    "detach",
    "explain",
    "probing",
    "reset",
]
