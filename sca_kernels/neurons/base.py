"""What a neuron model is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Leak(NamedTuple):
    """The membrane's leak: ``1 / tau`` as a division by a number, as a factor ``rate`` (a number, or, where it is
    learned, a tensor per channel), or as the factor ``decay = 1 - 1 / tau`` of what stays.

    They differ in the last bit, hence in spikes; backends must use the one that the equation has. (Where tau is a power
    of two, the first two are the same number.)
    """

    tau: float
    rate: Tensor | float | None = None
    decay: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """What leaks out of z."""
        return z / self.tau if self.rate is None else z * self.rate


class Neuron(Protocol):
    """Charge equation ``h = charge(v, x)`` and its adjoint; v, x, h are tensors of one shape, ``v_rest`` a number.

    It is the row of its neuron and names the twins; :func:`sca_kernels.testing.missing_twins` says which are not there.

    Attributes:
        name: what users call it.
        takes_tau: whether tau is an argument of it.
        learnable_leak: whether ``1 / tau`` is learned.
        cpp: structs of ``csrc/include/sca/neurons.h``, with decay_input and without. ``<>`` at the end marks a template
            over the leak, of which the list at the header's foot has ``<DivideByTau>`` (unless the leak is learned) and
            ``<MultiplyByRate>``.
        cpp_decay: the struct for a leak that is given as a decay; of neurons that take tau.
        triton: how its functions in ``triton_kernels/neurons.py`` begin: ``<triton>_charge``, ``<triton>_adjoint`` and,
            where the leak is learned, ``<triton>_leak_gradient``.
    """

    name: str
    takes_tau: bool
    learnable_leak: bool
    cpp: tuple[str, str]
    cpp_decay: str
    triton: str

    def charge(self, v: Tensor, x: Tensor, leak: Leak, v_rest: float, decay_input: bool) -> Tensor:
        """Membrane potential before the spike."""

    def adjoint(self, grad_h: Tensor, leak: Leak, decay_input: bool) -> tuple[Tensor, Tensor]:
        """``(dL/dv, dL/dx)`` from ``dL/dh``."""

    def leak_gradient(self, grad_h: Tensor, v: Tensor, x: Tensor, v_rest: float, decay_input: bool) -> Tensor:
        """``dL/d(1/tau)`` per element; only for neurons with a learnable leak."""
