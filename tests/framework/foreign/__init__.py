"""Networks of other people's, each with its trap, as factories: what sca.convert is to take, or to refuse."""

from __future__ import annotations

from . import spikingjelly_nets, spikingjelly_old
from .net import ForeignNet

NETS: dict[str, ForeignNet] = {net.name: net for net in (*spikingjelly_nets.NETS, *spikingjelly_old.NETS)}
