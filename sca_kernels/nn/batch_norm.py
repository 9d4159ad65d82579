"""Batch norm + neuron as one module, and batch norm alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks
from .. import functional as F
from ..neurons import NEURONS
from .group import CarriesGroups, ChannelGroup, check_group, check_time_major, gathered
from .neuron import IF, LIF, PLIF, NeuronModule, ParametricLeak, is_recomputing

# Functions of torch (and libraries that follow it) and of apex that put a synchronised batch norm in place of others.
_CONVERSIONS = ("convert_sync_batchnorm", "convert_syncbn_model")


class Normalisation(CarriesGroups, tnn.modules.batchnorm._BatchNorm):
    """Mixin that owns a batch norm's parameters and running statistics, full size, and uses those of a group's active
    channels. torch's own base, by which tools such as ``torch.optim.swa_utils.update_bn`` find batch norms."""

    group: ChannelGroup | None

    def __init__(self) -> None:
        tnn.Module.__init__(self)  # what the base would make, init_norm makes

    def init_norm(self, num_features, eps, momentum, affine, track_running_stats, process_group) -> None:
        checks.integer("num_features", num_features)
        if self.group is not None and self.group.num_channels != num_features:
            raise ValueError(
                f"num_features: expected the {self.group.num_channels} channels of {self.group}, got {num_features}"
            )
        if checks.number("eps", eps) < 0:
            raise ValueError(f"eps: expected a number >= 0, got {eps}")
        if momentum is not None:
            checks.number("momentum", momentum)
        F.check_process_group(process_group)
        self.num_features, self.eps, self.momentum, self.process_group = num_features, eps, momentum, process_group
        self.affine = checks.boolean("affine", affine)
        self.track_running_stats = checks.boolean("track_running_stats", track_running_stats)
        for name, value in (("weight", torch.ones(num_features)), ("bias", torch.zeros(num_features))):
            self.register_parameter(name, tnn.Parameter(value) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)

    def reset_running_stats(self) -> None:
        """Those of the active channels; a dormant one keeps its last."""
        if self.track_running_stats:
            active = slice(None) if self.group is None else self.group.mask(self.running_mean.device)
            self.running_mean[active], self.running_var[active] = 0, 1
            self.num_batches_tracked.zero_()

    def named_children(self) -> Iterator[tuple[str, tnn.Module]]:
        """None. Conversions to SyncBatchNorm, which would put a plain batch norm in place of this module, come through
        here: a ValueError says what to do instead."""
        caller = sys._getframe(1).f_code.co_name
        if caller in _CONVERSIONS:
            raise ValueError(
                f"{caller}: expected torch's own batch norms, got {type(self).__name__}, "
                "of which only a plain batch norm would be left; set its process_group instead (True: the default "
                "group), which synchronises it"
            )
        return super().named_children()

    def width(self) -> int:
        """Channels of the input: the group's active ones, or all."""
        return self.num_features if self.group is None else self.group.width

    def is_tracking(self) -> bool:
        """Whether this forward pass moves the running statistics: not while probing, nor when activation checkpointing
        repeats it."""
        return self.training and self._has_statistics() and not is_recomputing()

    def _has_statistics(self) -> bool:
        return self.track_running_stats and not (self.group is not None and self.group.probing)

    def batch_weight(self) -> float | Tensor:
        """Weight of the coming batch in the running statistics; for the cumulative average ``1 / batches``, a tensor
        where the count is: reading it would mean to wait for the device."""
        return (self.num_batches_tracked + 1).double().reciprocal() if self.momentum is None else self.momentum


class ChannelBatchNorm(Normalisation):
    """Batch norm alone, over time, samples and space."""

    shapes: ClassVar[dict[int, str]]
    """Inputs by their numbers of dimensions, in words, the largest last."""
    frames: ClassVar[str]
    """What torch's layer takes, in words."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        process_group=None,
        group: ChannelGroup | None = None,
    ) -> None:
        super().__init__()
        self.group = check_group("group", group)
        self.init_norm(num_features, eps, momentum, affine, track_running_stats, process_group)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, N, C, *S], C the active channels (all while probing) -> the same, normalised over T, N and S."""
        check_time_major(x, self.width(), self.group or "num_features", self.frames)
        if x.dim() not in self.shapes:
            raise ValueError(
                f"x: expected {' or '.join(self.shapes.values())}, got {tuple(x.shape)}; frames {self.frames} need "
                "unflatten(0, (T, N))"
            )
        mean, var = self._statistics()
        tracking = self.is_tracking()
        y = F.batch_norm(
            x,
            gathered(self.weight, self.group),
            gathered(self.bias, self.group),
            mean,
            var,
            self.training,
            self.batch_weight() if tracking else 0.0,
            self.eps,
            self.process_group,
        )
        if tracking:
            self._track(mean, var)
        return y

    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        """Running mean and variance at the active width, for a call that updates them in place and :meth:`_track`; None
        for batch statistics that must not be tracked."""
        if self.training and not self._has_statistics():
            return None, None
        mean, var = gathered(self.running_mean, self.group), gathered(self.running_var, self.group)
        if self.training and not self.is_tracking():
            # torch's batch norm saves them for its backward pass; repeated, it must save as many tensors
            return mean.clone(), var.clone()
        return mean, var

    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Count a batch, and keep the statistics that it moved."""
        self.num_batches_tracked.add_(1)
        index = None if self.group is None else self.group.index(mean.device)
        if index is not None:  # gathered copies were updated
            self.running_mean.index_copy_(0, index, mean)
            self.running_var.index_copy_(0, index, var)

    def extra_repr(self) -> str:
        group = "" if self.group is None else f", group={self.group}"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}{group}"


class ChannelBatchNorm2d(ChannelBatchNorm):
    """torch.nn.BatchNorm2d of the active channels of a group; same parameters, same state_dict, full size. x is
    [T, N, C, H, W].

    For a current that something is added to before its neuron; where nothing is, :class:`BatchNormLIF` and its like
    need no memory for the normalised current.

    Args:
        All as in :class:`BatchNormNeuron`.
    """

    shapes, frames = {5: "[T, N, C, H, W]"}, "[M, C, H, W]"


class ChannelBatchNorm1d(ChannelBatchNorm):
    """torch.nn.BatchNorm1d of the active channels of a group, as :class:`ChannelBatchNorm2d` is BatchNorm2d. x is
    [T, N, C] or [T, N, C, L].

    Args:
        All as in :class:`BatchNormNeuron`.
    """

    shapes, frames = {3: "[T, N, C]", 4: "[T, N, C, L]"}, "[M, C, L]"


class NeuronBehindNorm(NeuronModule):
    """A neuron that runs the batch norm in front of it in the same operator, wherever that batch norm is.

    Attributes:
        normalisation: the batch norm, a property of the subclass.
    """

    normalisation: Normalisation

    def current(self, x: Tensor) -> Tensor:
        norm = self.normalisation
        uses_batch = norm.training or not norm.track_running_stats
        statistics = (None, None) if uses_batch else (norm.running_mean, norm.running_var)
        vectors = (gathered(p, norm.group) for p in (norm.weight, norm.bias, *statistics))
        return F.batch_norm(super().current(x), *vectors, uses_batch, 0.0, norm.eps, norm.process_group)

    def integrate(self, x: Tensor, time_steps: int | None) -> F.NeuronOutput:
        group, norm = self.group, self.normalisation
        tracking = norm.is_tracking()
        known = tracking or not norm.training
        arguments = self.call_arguments(x)
        if group is not None:
            arguments["channels"] = group.index(x.device)
        return F.batch_norm_neuron(
            x,
            norm.weight,
            norm.bias,
            norm.running_mean if known else None,
            norm.running_var if known else None,
            norm.training,
            norm.batch_weight() if tracking else 0.0,
            norm.eps,
            None if group is None else group.probe_mask(x.device),
            self.neuron,
            w=self.leak_parameter(),
            time_steps=time_steps,
            process_group=norm.process_group,
            num_batches_tracked=norm.num_batches_tracked if tracking else None,
            **arguments,
        )

    def width(self) -> int:
        return self.normalisation.width()


class BatchNormNeuron(Normalisation, NeuronBehindNorm):
    """Batch norm over (T, N, S) followed by a neuron; equivalent to ``neuron(BatchNorm2d(x.flatten(0, 1)))``, in one
    operator.

    Parameters and buffers have the names, shapes and meaning of torch.nn.BatchNorm2d and are full size. With a group,
    the input has the active channels, and those alone are normalised, tracked and trained.

    Args:
        num_features: C, full width.
        eps, momentum, affine, track_running_stats: as in torch.nn.BatchNorm2d (momentum=None: cumulative average).
        process_group: average the batch statistics over the ranks of this torch.distributed group (``True``: the
            default group) when training, as torch.nn.SyncBatchNorm does: one sum over ranks in each pass, and no memory
            but for the output's. Compiled, it stays outside of the graph.
        group, stateful, backend and the neuron's arguments: see :class:`NeuronModule`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        process_group=None,
        **arguments,
    ) -> None:
        NeuronModule.__init__(self, **arguments)
        self.init_norm(num_features, eps, momentum, affine, track_running_stats, process_group)

    alone: ClassVar[type[NeuronModule]]
    """The same neuron without a batch norm."""

    def without_norm(self) -> NeuronModule:
        """The neuron alone, of the same arguments, group and modes; a leak that is learned is shared. It starts afresh,
        and records no activity."""
        modes = {"group": self.group, "stateful": self.stateful, "store_v_seq": self.store_v_seq}
        neuron = self.alone(**self.arguments, v_threshold=self.v_threshold, **modes)
        if NEURONS[self.neuron].learnable_leak:
            neuron.w, neuron._tau = self.w, self._tau
        return neuron.train(self.training)

    forward = NeuronModule.forward  # torch's batch norm, a base of the first base, has one, too

    @property
    def normalisation(self) -> Normalisation:
        return self

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, {NeuronModule.extra_repr(self)}"


class BatchNormIF(BatchNormNeuron):
    """Batch norm + :class:`IF`."""

    neuron, alone = "if", IF


class BatchNormLIF(BatchNormNeuron):
    """Batch norm + :class:`LIF`; ``tau`` > 1 among the keyword arguments."""

    neuron, alone = "lif", LIF


class BatchNormPLIF(ParametricLeak, BatchNormNeuron):
    """Batch norm + :class:`PLIF`, with one learnable tau per layer, or, with ``per_channel``, per channel.

    Args:
        tau: initial time constant, > 1.
        per_channel: whether each channel learns its own.
    """

    neuron, alone = "plif", PLIF

    def __init__(self, num_features: int, *arguments, tau: float = 2.0, per_channel: bool = False, **named) -> None:
        super().__init__(num_features, *arguments, **named)
        self.init_leak(tau, num_features if checks.boolean("per_channel", per_channel) else None)
