"""What neurons keep from call to call, whosever they are."""

from __future__ import annotations

import sys

from torch import Tensor, nn

from sca_kernels import nn as snn

from . import snntorch

__all__ = ["forget_caches", "reset_states"]


def reset_states(model: nn.Module) -> None:
    """Forget all states, whichever library has them."""
    for module in model.modules():
        if module is not model or type(module).__module__.startswith("spikingjelly."):
            forget = getattr(module, "reset", None)
            if callable(forget) and hasattr(module, "_memories"):
                forget()
        if snntorch.is_theirs(module) and callable(getattr(module, "reset_mem", None)):
            module.reset_mem()
            for name, state in module._buffers.items():
                if name in module._non_persistent_buffers_set and isinstance(state, Tensor):
                    module._buffers[name] = state.detach()
    snn.reset(model)


def forget_caches(model: nn.Module) -> None:
    """Have SpikingJelly look for what is to be reset again."""
    functional = sys.modules.get("spikingjelly.activation_based.functional")
    forget = getattr(functional, "invalidate_reset_cache", None)
    if forget is not None:
        forget(model)
