"""What a benchmark measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..settings import check, setting
from ..training.config import MAX_COUNT, MAX_SEED, MAX_TIME_STEPS, MAX_WIDTH, PRECISIONS, check_device

MAX_SIZE = 2**16
MODES = ("training", "inference")


def _all_peers() -> tuple[str, ...]:
    from .peers import PEERS

    return tuple(PEERS)


@dataclass(frozen=True)
class BenchConfig:
    """One benchmark. At most one of ``time_steps`` and ``batch_size`` has several values: that one is swept.

    Raises:
        ValueError: a value is of another type or out of range; the message names the field.
    """

    model: str = setting("vgg9", names="sca.models:MODELS")
    """Network: a name in ``sca.models``."""

    network: str | None = None
    """Network that was trained, in place of a fresh one: a run's folder, or a file of ``sca.save``. It is measured
    dense, and with the channels that it has active; model, width, images and densities are its own, and T where none
    is given."""

    width: float = setting(1.0, above=0, high=MAX_WIDTH)
    """Factor on its hidden widths."""

    in_channels: int = setting(3, low=1, high=MAX_COUNT)
    """Channels of the images."""

    size: int = setting(32, low=1, high=MAX_SIZE)
    """Side of the images, in pixels."""

    sequences: bool = False
    """Feed sequences of T frames, as of event cameras, of which every layer computes all, in place of still images."""

    time_steps: tuple[int, ...] = setting((4,), low=1, high=MAX_TIME_STEPS)
    """T, or several to scale over: 1,2,4,8,16,32."""

    batch_size: tuple[int, ...] = setting((16,), low=1, high=MAX_COUNT)
    """N, the images per step, or several to scale over."""

    densities: tuple[float, ...] = setting((1.0, 0.5, 0.3), above=0, high=1)
    """Shares of active channels, the same in every layer; 1 is always measured."""

    modes: tuple[str, ...] = setting(MODES, names=MODES)
    """What is measured: ``training`` (forward, backward, optimizer step), ``inference`` or both."""

    peers: tuple[str, ...] = setting(factory=_all_peers, names="sca.bench.peers:PEERS")
    """Libraries to compare with, all of ``sca.bench.peers`` where none is named; ``none`` for none."""

    round_to: int = setting(16, low=1, high=MAX_COUNT)
    """Active channels of a layer are a multiple of this."""

    rounds: int = setting(15, low=3, high=MAX_COUNT)
    """Turns of each party; at least 3, for a median with a spread."""

    precision: str = setting("float32", names=PRECISIONS)
    """Numbers to compute in: ``float32`` or ``bfloat16`` (autocast)."""

    seed: int = setting(0, low=0, high=MAX_SEED)
    """Seed of everything random."""

    device: str = "cpu"
    """Torch device that computes."""

    def __post_init__(self) -> None:
        for name in ("time_steps", "batch_size", "densities", "modes"):
            if getattr(self, name) in ((), []):
                raise ValueError(f"{name}: expected one or several, got none")
        check(self)
        if len(self.time_steps) > 1 and len(self.batch_size) > 1:
            raise ValueError("time_steps, batch_size: expected several values of one of them at most")
        check_device(self.device)
        object.__setattr__(self, "densities", tuple(sorted({1.0, *self.densities}, reverse=True)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
