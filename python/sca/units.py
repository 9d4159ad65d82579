"""Numbers as people read them."""

from __future__ import annotations


def count(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.4g}"


def energy(picojoules: float) -> str:
    """1234567 -> "1.23 µJ"."""
    nanojoules = picojoules / 1e3
    return f"{nanojoules / 1e3:.3g} µJ" if nanojoules >= 1e3 else f"{nanojoules:.3g} nJ"
