"""Augmentation policies by name, as kornia computes them (the extra ``augment``): on the images' device, in batches.

Kornia draws the operations once for a batch, and how strong they are for each image; the papers draw both for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["POLICIES", "augmented", "require_policy"]

Policy = Callable[[Tensor], Tensor]


def autoaugment(auto: Any) -> Policy:
    """AutoAugment with the policy that was found for CIFAR-10 (Cubuk et al., CVPR 2019)."""
    return auto.AutoAugment("cifar10")


def randaugment(auto: Any) -> Policy:
    """RandAugment with two operations of magnitude 9 (Cubuk et al., 2020)."""
    return auto.RandAugment(n=2, m=9)


def trivialaugment(auto: Any) -> Policy:
    """TrivialAugment: one operation of any magnitude (Müller & Hutter, ICCV 2021)."""
    return auto.TrivialAugment()


#: name -> what makes the policy of the module ``kornia.augmentation.auto``
POLICIES: dict[str, Callable[[Any], Policy]] = {
    make.__name__: make for make in (autoaugment, randaugment, trivialaugment)
}


def require_policy(name: str, channels: int) -> None:
    """See to it that a policy can be applied to images of so many channels.

    Raises:
        ImportError: kornia is missing.
        ValueError: the images have neither one channel nor three.
    """
    _policy(name)
    if channels not in (1, 3):
        raise ValueError(f"policy: expected images of 1 or 3 channels, got {channels}")


def augmented(images: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Images changed as the policy says. They depend on the arguments alone, and torch's random states stay as they
    were.

    Args:
        images: float32 ``[N, 1 or 3, H, W]`` in [0, 1].
        name: one of :data:`POLICIES`.
        generator: a CPU generator; one draw.

    Returns:
        float32, same shape, in [0, 1], channels_last.
    """
    channels, device = images.shape[1], images.device
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    # kornia draws from torch's global generators
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        # some operations are for colours: on three equal ones they leave three equal ones
        changed = _policy(name)(images.expand(-1, 3, -1, -1))
    return changed[:, :channels].contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=8)
def _policy(name: str) -> Policy:
    try:
        from kornia.augmentation import auto
    except ImportError as error:
        raise ImportError(
            f"policy: {name} needs kornia: pip install 'sca_kernels[augment]', or leave policy out"
        ) from error
    return POLICIES[name](auto)
