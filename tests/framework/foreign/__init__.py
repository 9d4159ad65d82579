"""Networks of other people's, each with its trap, as factories: what sca.convert is to take, or to refuse."""

from __future__ import annotations

from . import norse_nets, research, snntorch_nets, spikingjelly_nets, spikingjelly_old
from .net import ForeignNet

__all__ = ["NETS", "ForeignNet"]

NETS: dict[str, ForeignNet] = {
    net.name: net
    for module in (spikingjelly_nets, spikingjelly_old, research, snntorch_nets, norse_nets)
    for net in module.NETS
}
