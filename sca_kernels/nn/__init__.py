"""Modules over :mod:`sca_kernels.functional`: neurons, batch norm + neuron, channel-sparse convolution and linear
layers."""

from .activity import Activity
from .batch_norm import BatchNormIF, BatchNormLIF, BatchNormPLIF
from .conv import ChannelConv2d
from .group import ChannelGroup, probing
from .linear import ChannelLinear
from .neuron import IF, LIF, PLIF, detach, reset

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Activity",
    "BatchNormIF",
    "BatchNormLIF",
    "BatchNormPLIF",
    "ChannelConv2d",
    "ChannelGroup",
    "ChannelLinear",
    "detach",
    "probing",
    "reset",
]
