"""The one place that holds the version (setup.py, the wheel and result files read it from here)."""

__version__ = "0.1.0"
