"""Channel groups: the channels that live or die together, shared by all modules they pass through."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..channels import on_device

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ChannelGroup:
    """Which channels of a convolution, its batch norm and neurons, and its consumers' inputs are active.

    A plain object that modules share by reference: it has no parameters and does not appear in a state_dict. Copying or
    pickling a model keeps the sharing within the copy. Indices are ordinary tensors on the CPU and, as they are needed,
    on the devices of a model's passes, whatever mode or default device they are made in.

    Args:
        num_channels: all channels, active and dormant.
        name: how reports and checkpoints call it.
        prunable: whether a scheduler may change it.
    """

    def __init__(self, num_channels: int, name: str = "", prunable: bool = True) -> None:
        self.num_channels = checks.integer("num_channels", num_channels)
        self.name = checks.instance("name", name, str, "a string")
        self.prunable = checks.boolean("prunable", prunable)
        self.probing = False
        self.version = 0
        with torch.inference_mode(False):
            self._adopt(torch.arange(num_channels, device="cpu"))

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_on_device", "_mask_on_device")
        return {name: value for name, value in vars(self).items() if name not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._adopt(self._active)

    @staticmethod
    def concat(*groups: ChannelGroup) -> ChannelGroup:
        """The channels of several groups side by side, as ``torch.cat`` puts them: a read-only view, whose active
        channels are those of its parts; for the layers that read a concatenation. Of a single group, the group itself.

        Raises:
            ValueError: no group is given.
        """
        for group in groups:
            checks.instance("groups", group, ChannelGroup, "ChannelGroup objects")
        parts = tuple(part for group in groups for part in group.parts)
        if not parts:
            raise ValueError("groups: expected at least one ChannelGroup, got none")
        return parts[0] if len(parts) == 1 else _Concatenation(parts)

    @property
    def parts(self) -> tuple[ChannelGroup, ...]:
        """The groups whose channels these are, in their order: this one, or those of a concatenation."""
        return (self,)

    def _adopt(self, active: Tensor) -> None:
        self._active = active
        self._on_device = {active.device: active}
        self._mask_on_device: dict[torch.device, Tensor] = {}

    @property
    def active(self) -> Tensor:
        """Sorted indices of the active channels; int64, CPU."""
        return self._active

    @property
    def num_active(self) -> int:
        return self.active.numel()

    @property
    def all_active(self) -> bool:
        return self.num_active == self.num_channels

    @property
    def density(self) -> float:
        """Active / all channels."""
        return self.num_active / self.num_channels

    @property
    def width(self) -> int:
        """Channels that activations of this group have now: the active ones, or all while probing."""
        return self.num_channels if self.probing else self.num_active

    @property
    def dormant(self) -> Tensor:
        """Sorted indices of the channels that are not active; int64, CPU."""
        return (~self.mask()).nonzero().flatten()

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """bool [num_channels], True where active."""
        device = checks.device("device", device)
        if device not in self._mask_on_device:
            with torch.inference_mode(False):
                mask = torch.zeros(self.num_channels, dtype=torch.bool, device="cpu").index_fill_(0, self.active, True)
                self._mask_on_device[device] = mask.to(device)
        return self._mask_on_device[device]

    def set_active(self, indices: Tensor | Iterable[int]) -> None:
        """Make exactly these channels active.

        Raises:
            TypeError: no integers.
            ValueError: none, a duplicate, or an index outside [0, num_channels).
        """
        with torch.inference_mode(False):
            if isinstance(indices, Tensor):
                if not checks.is_plain(indices) or indices.is_meta or indices.dtype not in _INTEGERS:
                    raise TypeError(f"indices: expected a tensor of integers, got {checks.describe(indices)}")
                index = indices.to("cpu", torch.int64, copy=True).flatten()
            else:
                checks.instance("indices", indices, Iterable, "a tensor of integers, or ints")
                listed = [checks.integer("indices", i, -1, 2**62) for i in indices]
                index = torch.tensor(listed, dtype=torch.int64, device="cpu")
            index = index.sort().values
        if index.numel() == 0:
            raise ValueError(f"indices: expected at least one active channel in group {self.name!r}, got none")
        if int(index[0]) < 0 or int(index[-1]) >= self.num_channels or not bool((index[1:] > index[:-1]).all()):
            raise ValueError(
                f"indices: expected unique channels in [0, {self.num_channels}) for group {self.name!r}, "
                f"got {index.tolist()}"
            )
        self._adopt(index)
        self.version += 1

    def index(self, device: torch.device) -> Tensor | None:
        """Active indices on a device; None where nothing is to be gathered (all active, or probing)."""
        if self.all_active or self.probing:
            return None
        if device not in self._on_device:
            with torch.inference_mode(False):  # a pass in inference mode may be the first one on this device
                self._on_device[device] = on_device(self.active, device)
        return self._on_device[device]

    def probe_mask(self, device: torch.device) -> Tensor | None:
        """The mask that stands behind the neuron while probing; None otherwise."""
        return self.mask(device) if self.probing and not self.all_active else None

    def __repr__(self) -> str:
        return f"ChannelGroup({self.name!r}, {self.num_active}/{self.num_channels} active)"


class _Concatenation(ChannelGroup):
    """See :meth:`ChannelGroup.concat`. Equal to another concatenation of the same groups."""

    def __init__(self, parts: tuple[ChannelGroup, ...]) -> None:
        self._parts = parts
        self.num_channels = sum(part.num_channels for part in parts)
        self.name = "+".join(part.name for part in parts)
        self._join()

    def _join(self) -> None:
        starts = accumulate((part.num_channels for part in self._parts), initial=0)
        with torch.inference_mode(False):
            self._adopt(torch.cat([part.active + start for part, start in zip(self._parts, starts, strict=False)]))
        self._joined = self.version

    @property
    def parts(self) -> tuple[ChannelGroup, ...]:
        return self._parts

    @property
    def prunable(self) -> bool:
        return all(part.prunable for part in self._parts)

    @property
    def probing(self) -> bool:
        return any(part.probing for part in self._parts)

    @property
    def version(self) -> int:
        return sum(part.version for part in self._parts)

    @property
    def active(self) -> Tensor:
        if self._joined != self.version:
            self._join()
        return self._active

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        if self._joined != self.version:
            self._join()
        return super().mask(device)

    def set_active(self, indices: Tensor | Iterable[int]) -> None:
        """Always a TypeError: the parts say what is active."""
        raise TypeError(f"set_active: {self} is a view; set the active channels of its parts")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Concatenation) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)


STRUCTURE = "channels"
"""Where a module's part of a state_dict's metadata says which channels are active."""


class CarriesGroups:
    """Mixin of the modules that carry channel groups: which channels are active travels with the state_dict.

    It stands in the state_dict's ``_metadata``, beside each module's version, as plain lists: no key is added,
    ``torch.save`` keeps it and ``torch.load(weights_only=True)`` reads it. Where it is lost (safetensors, a dict made
    by a comprehension), or nothing here can take it, one warning for the whole ``load_state_dict`` says what to do.
    """

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        listed = {role: group for role in ROLES if (group := getattr(self, role, None)) is not None}
        if metadata is not None and listed:
            known = metadata.setdefault(prefix[:-1], {})
            known[STRUCTURE] = {role: [_described(part) for part in group.parts] for role, group in listed.items()}

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        arguments = state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(*arguments)
        stored = local_metadata.get(STRUCTURE, {})
        for role in ROLES:
            group, parts = getattr(self, role, None), stored.get(role)
            if group is None:
                if parts is not None and any(active is not None for _, _, active in parts):
                    _warn(_NOT_TAKEN, missing_keys)
            elif parts is None:
                if not group.all_active:
                    _warn(_LOST, missing_keys)
            elif [part.num_channels for part in group.parts] != [channels for _, channels, _ in parts]:
                expected = [part.num_channels for part in group.parts]
                error_msgs.append(f"{prefix}{role}: expected {expected} channels, got {[n for _, n, _ in parts]}.")
            else:
                for part, (_, channels, active) in zip(group.parts, parts, strict=True):
                    _take(part, range(channels) if active is None else active, f"{prefix}{role}", error_msgs)


ROLES = ("out_group", "group", "in_group")
"""Attributes by which modules carry groups: of what they make, work on channel by channel, and read."""

_LOST = (
    "load_state_dict: some channels of this model are dormant, and the state does not say which of its own are (it "
    "has lost its metadata, as in safetensors or a dict made by a comprehension, or is of an earlier version). The "
    "model keeps its structure; was another one saved, or all channels, call set_active of its groups, or save by "
    "sca.save and load by sca.load"
)
_NOT_TAKEN = (
    "load_state_dict: this is the state of a network with dormant channels, and the model has no channel groups to "
    "keep them so: it runs all, and gives other outputs. Call sca.attach_groups(model, example_input) before "
    "load_state_dict, or save by sca.save(model, path) and load by sca.load(path, model)"
)
_last_load: list[Any] = [None]
"""What one call of load_state_dict hands to all modules: held, so that no other call's list gets its identity."""


def _described(part: ChannelGroup) -> list[Any]:
    """Name, number of channels and active ones (None: all) of a group, as plain values."""
    return [part.name, part.num_channels, None if part.all_active else part.active.tolist()]


def _take(part: ChannelGroup, active: Iterable[int], place: str, errors: list[str]) -> None:
    """Make these channels of a group active, as a state says; an error is added to those of the load."""
    try:
        if list(active) != part.active.tolist():
            part.set_active(active)
    except (TypeError, ValueError) as error:
        errors.append(f"{place}: {error}.")


def _warn(text: str, call: list[str]) -> None:
    """A warning for a whole load_state_dict, of which every module here learns."""
    if _last_load[0] is not call:
        _last_load[0] = call
        warnings.warn(text, stacklevel=2)


@contextlib.contextmanager
def probing(groups: Iterable[ChannelGroup]) -> Iterator[None]:
    """Run the modules of these groups at full width.

    Dormant channels are computed from their stored parameters, their spikes reach the next layer as zeros, so the
    output is that of the pruned network, and the gradient passes that gate as if it were open. Running statistics and
    activity stay as they are.
    """
    groups = list(checks.instance("groups", groups, Iterable, "ChannelGroup objects"))
    for group in groups:
        checks.instance("groups", group, ChannelGroup, "ChannelGroup objects")
    groups = [part for group in groups for part in group.parts]
    for group in groups:
        group.probing = True
    try:
        yield
    finally:
        for group in groups:
            group.probing = False


def check_group(name: str, group: ChannelGroup | None, channels: int | None = None) -> ChannelGroup | None:
    """The group of so many channels (None: of any number), or None."""
    if group is not None:
        checks.instance(name, group, ChannelGroup, "a ChannelGroup or None")
        if channels is not None and group.num_channels != channels:
            raise ValueError(f"{name}: expected a group of {channels} channels, got {group}")
    return group


def check_time_major(x: Tensor, channels: int | None, owner: object, frames: str = "[M, C, H, W]") -> None:
    """Whether x is a tensor [T, N, C, *S] with so many channels (None: any number), which are those of ``owner``;
    ``frames``: what the error guesses to have come instead."""
    if not isinstance(x, Tensor) and not checks.is_traced(x):
        raise TypeError(f"x: expected a tensor [T, N, C, *S], got {checks.describe(x)}")
    if channels is None or x.dim() < 3 or x.shape[2] == channels:  # too few dimensions: the functional call says so
        return
    likely = x.dim() == len(frames.split(",")) and x.shape[1] == channels
    guess = f"; {frames}? expected time-major [T, N, C, *S]: unflatten(0, (T, N))" if likely else ""
    raise ValueError(f"x: expected {channels} channels in dimension 2 ({owner}), got {tuple(x.shape)}{guess}")


def gathered(p: Tensor | None, group: ChannelGroup | None) -> Tensor | None:
    """A [num_channels] vector at the group's width; differentiable."""
    if p is None or group is None:
        return p
    index = group.index(p.device)
    return p if index is None else p.index_select(0, index)
