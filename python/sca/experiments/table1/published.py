"""What papers report for the same question: top-1 accuracy against the share of the dense network that is kept."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One published network; accuracy in %, shares in % of the dense network, None where the source tells none."""

    data: str
    network: str
    time_steps: int
    method: str
    accuracy: float
    connectivity: float
    synops: float | None


_SCA = "SCA (ICML 2024)"
_SPEAR = "SPEAR (2025)"
_LTH = "LTH-IMP, unstructured"

PUBLISHED = (
    Published("cifar10", "VGG-16", 4, f"{_SCA}, dense", 91.14, 100.0, 100.0),
    Published("cifar10", "VGG-16", 4, _SCA, 91.67, 28.39, 67.8),
    Published("cifar10", "VGG-16", 4, _SCA, 90.26, 9.31, 63.0),
    Published("cifar10", "VGG-16", 4, _SPEAR, 92.49, 33.1, 62.5),
    Published("cifar10", "VGG-16", 4, _SPEAR, 91.77, 14.4, 52.5),
    Published("cifar10", "VGG-16", 4, _SPEAR, 91.62, 11.9, 46.4),
    Published("cifar10", "ResNet-18", 4, _SPEAR, 92.78, 30.3, 39.2),
    Published("cifar10", "VGG-16", 5, _LTH, 92.54, 10.1, None),
    Published("cifar10", "VGG-16", 5, _LTH, 92.38, 4.3, None),
    Published("cifar100", "VGG-16", 4, _SPEAR, 70.50, 35.0, 69.0),
    Published("dvs_cifar10", "5Conv, 1FC", 10, _SPEAR, 80.05, 17.1, 39.3),
    Published("dvs_cifar10", "VGGSNN", 10, "UPR, unstructured", 81.0, 4.46, None),
    Published("dvs_cifar10", "VGGSNN", 10, "STDS, unstructured", 79.8, 4.67, None),
    Published("dvs_cifar10", "VGGSNN", 10, "TET (ICLR 2022), dense", 83.17, 100.0, 100.0),
    Published("dvs_cifar10", "VGGSNN", 10, "TEBN (NeurIPS 2022), dense", 84.90, 100.0, 100.0),
)
