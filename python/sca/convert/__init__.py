"""Other people's networks on our kernels: :func:`convert`."""

from .conversion import convert
from .report import ConversionError, ConversionReport, Converted, Parity, Reason, Speed

__all__ = ["ConversionError", "ConversionReport", "Converted", "Parity", "Reason", "Speed", "convert"]
