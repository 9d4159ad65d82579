"""Triton kernels of the neurons, for any GPU that Triton compiles for (and, with TRITON_INTERPRET=1, for CPU tensors).

Imported by :mod:`sca_kernels.backends.triton` alone, at its first use. Sizes and strides are run-time arguments; only
T, dtypes, the kind of layout and the neuron's modes are compiled in.
"""

import triton

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter. Triton decides this when it is imported."""


def _let_ranges_end_at_arguments() -> None:
    """Make an int of a run-time number, as Triton 3.7 does: the interpreter of older ones leaves that to NumPy, which
    from 2.4 on refuses arrays of one element, and no ``range(n)`` runs."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda number: number.handle.data.item()

    interpreter._patch_lang_tensor = patch_and_mend


if INTERPRETED and triton.__version__.startswith(("3.5.", "3.6.")):
    _let_ranges_end_at_arguments()
