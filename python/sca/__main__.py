"""``python -m sca``, and what torchrun starts with ``-m sca``."""

from .cli import main

if __name__ == "__main__":
    main()
