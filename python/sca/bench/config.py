"""What a benchmark measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..models import MODELS
from ..registry import lookup
from ..training.config import (
    MAX_COUNT,
    MAX_SEED,
    MAX_TIME_STEPS,
    MAX_WIDTH,
    PRECISIONS,
    check_device,
    check_number,
)
from .peers import PEERS

MAX_SIZE = 2**16
MODES = ("training", "inference")


@dataclass(frozen=True)
class BenchConfig:
    """One benchmark. At most one of ``time_steps`` and ``batch_size`` has several values: that one is swept.

    Attributes:
        model, width: name in ``sca.models``, and the factor on its hidden widths.
        in_channels, size: of the images, square.
        time_steps, batch_size: T and N, one or several.
        densities: shares of active channels, the same in every layer; 1 is always among them.
        modes: some of ``training`` (forward, backward, optimizer step) and ``inference``.
        peers: some of ``PEERS``.
        round_to: active channels of a layer are a multiple of this.
        rounds: how often each party's turn comes.
        precision: ``float32`` or ``bfloat16`` (autocast).
        seed, device: of everything random; a torch device.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    model: str = "vgg9"
    width: float = 1.0
    in_channels: int = 3
    size: int = 32
    time_steps: tuple[int, ...] = (4,)
    batch_size: tuple[int, ...] = (16,)
    densities: tuple[float, ...] = (1.0, 0.5, 0.3)
    modes: tuple[str, ...] = MODES
    peers: tuple[str, ...] = tuple(PEERS)
    round_to: int = 16
    rounds: int = 15
    precision: str = "float32"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, expected: str) -> None:
            if not ok:
                value = getattr(self, name)
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise ValueError(f"{name}: expected {expected}, got {shown!r}")

        lookup(MODELS, self.model, "model")
        check_number("width", self.width, above=0, high=MAX_WIDTH)
        for name, high in ("in_channels", MAX_COUNT), ("size", MAX_SIZE), ("round_to", MAX_COUNT):
            check_number(name, getattr(self, name), 1, high)
        check("rounds", self.rounds >= 3, "at least 3, for a median with a spread")
        check_number("rounds", self.rounds, high=MAX_COUNT)
        check_number("seed", self.seed, 0, MAX_SEED)
        for name, high in ("time_steps", MAX_TIME_STEPS), ("batch_size", MAX_COUNT):
            check(name, bool(getattr(self, name)) and min(getattr(self, name)) >= 1, "numbers, each at least 1")
            check_number(name, max(getattr(self, name)), high=high)
        check("densities", bool(self.densities) and all(0 < d <= 1 for d in self.densities), "shares in (0, 1]")
        for name, known in (("modes", MODES), ("peers", tuple(PEERS))):
            some = bool(getattr(self, name)) or name == "peers"
            check(name, some and set(getattr(self, name)) <= set(known), f"some of {', '.join(known)}")
        check("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        if len(self.time_steps) > 1 and len(self.batch_size) > 1:
            raise ValueError("time_steps, batch_size: expected several values of one of them at most")
        check_device(self.device)
        object.__setattr__(self, "densities", tuple(sorted({1.0, *self.densities}, reverse=True)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
