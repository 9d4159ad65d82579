"""The twins of neurons and surrogates in C++ and Triton: which of them a configuration means, and which are not there.

Rows (:data:`sca_kernels.neurons.NEURONS`, :data:`sca_kernels.surrogates.TABLE`) name their twins. What is there is read
from the text of the sources, so that it takes neither a compiler, nor a GPU, nor Triton. Every error says which file
lacks what.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .neurons import NEURONS, Neuron, NeuronConfig
from .surrogates import TABLE, SurrogateRow

_HEADERS = {
    "SCA_CHARGES": "include/sca/neurons.h",
    "SCA_RESETS": "include/sca/neurons.h",
    "SCA_SURROGATES": "include/sca/surrogates.h",
}
"""The lists of what is compiled, and where they stand in :func:`sources`."""
_Free = dict[str, Iterator[int]]
"""Indices that a list has left."""


# ---- the twins of a configuration


def charge(config: NeuronConfig) -> str:
    """The struct of its charge in C++; ValueError where its row names none."""
    neuron = NEURONS[config.neuron]
    if config.decay is not None:
        return _named(config.neuron, getattr(neuron, "cpp_decay", ""), _unnamed_decay(neuron))
    structs = _named(config.neuron, _cpp(neuron), _unnamed_cpp(neuron))
    struct = structs[0 if config.decay_input else 1]
    return struct.replace("<>", "<DivideByTau>" if config.divides_by_tau else "<MultiplyByRate>")


def reset(config: NeuronConfig) -> str:
    """The struct of its reset in C++: constant zeros, where its numbers are."""
    kind, numbers = ("SoftReset", (config.rest,)) if config.v_reset is None else ("HardReset", (config.rest, config.by))
    return kind if any(numbers) else f"{kind}AtZero"


def surrogate(config: NeuronConfig) -> str:
    """The struct of its surrogate in C++; ValueError where its row names none."""
    return _named(config.surrogate, TABLE[config.surrogate].cpp, _UNNAMED_STRUCT)


def row(macro: str, struct: str) -> int:
    """The index of a struct in one of the lists of C++; ValueError where it is not there."""
    index = listed(macro).get(struct)
    if index is None:
        raise ValueError(f"{struct}: {_missing_row(macro, struct, len(listed(macro)))}")
    return index


def triton_of_neuron(module: ModuleType, config: NeuronConfig, part: str) -> Any:
    """Its ``charge``, ``adjoint`` or ``leak_gradient`` in the module of Triton twins; ValueError where it is not there
    or its row names none."""
    neuron = NEURONS[config.neuron]
    return _function(module, f"{_named(config.neuron, _triton(neuron), _unnamed_triton(neuron))}_{part}")


def triton_of_surrogate(module: ModuleType, config: NeuronConfig) -> Any:
    """The derivative in the module of Triton twins; ValueError as of :func:`triton_of_neuron`."""
    return _function(module, _named(config.surrogate, TABLE[config.surrogate].triton, _UNNAMED_FUNCTION))


def _function(module: ModuleType, name: str) -> Any:
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(f"{name}: {_missing_function(module.__name__.rpartition('.')[2], name)}")
    return function


def _named(name: str, twin: Any, otherwise: str) -> Any:
    if not twin:
        raise ValueError(f"{name}: {otherwise}")
    return twin


# ---- what is there


def sources() -> Path:
    """The folder of the C++ sources: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_csrc"
    return installed if installed.is_dir() else package.parent / "csrc"


def listed(macro: str) -> dict[str, int]:
    """Struct -> index, as one of the lists of C++ has them."""
    return _listed(sources() / _HEADERS[macro], macro)


@functools.lru_cache(maxsize=16)
def _listed(header: Path, macro: str) -> dict[str, int]:
    text = header.read_text().replace("\\\n", " ")
    body = re.search(rf"^#define {macro}\(row\)(.*)$", text, re.M)[1]
    return {struct: int(index) for index, struct in re.findall(r"row\((\d+), ([^()]+)\)", body)}


def _defined(macro: str) -> set[str]:
    """The structs that the header of a list defines."""
    return set(re.findall(r"^struct (\w+)", (sources() / _HEADERS[macro]).read_text(), re.M))


def triton_functions(module: str) -> set[str]:
    """The functions of ``neurons`` or ``surrogates`` among the Triton kernels."""
    tree = ast.parse((Path(__file__).parent / "triton_kernels" / f"{module}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# ---- what is not


def missing() -> list[str]:
    """One sentence for each twin that a row does not name, or that is not there: the file, and what to add to it."""
    found = []
    free = {macro: itertools.count(len(listed(macro))) for macro in _HEADERS}
    for name, neuron in NEURONS.items():
        found += [f"neuron {name!r}: {what}" for what in _missing_of_neuron(neuron, free)]
    for name, given in TABLE.items():
        found += [f"surrogate {name!r}: {what}" for what in _missing_of_surrogate(given, free)]
    for macro in _HEADERS:
        indices = list(listed(macro).values())
        if sorted(indices) != list(range(len(indices))):
            found.append(f"{macro}: expected the indices 0, 1, 2, ... in csrc/{_HEADERS[macro]}, got {indices}")
    return found


def _missing_of_neuron(neuron: Neuron, free: _Free) -> Iterable[str]:
    structs, prefix = _cpp(neuron), _triton(neuron)
    if not structs:
        yield _unnamed_cpp(neuron)
    leaks = ("MultiplyByRate",) if neuron.learnable_leak else ("DivideByTau", "MultiplyByRate")
    if neuron.takes_tau and not getattr(neuron, "cpp_decay", ""):
        yield _unnamed_decay(neuron)
    elif neuron.takes_tau:
        yield from _missing_struct("SCA_CHARGES", [neuron.cpp_decay], free)
    for struct in dict.fromkeys(structs or ()):
        rows = [struct.replace("<>", f"<{leak}>") for leak in leaks] if struct.endswith("<>") else [struct]
        yield from _missing_struct("SCA_CHARGES", rows, free)
    if not prefix:
        yield _unnamed_triton(neuron)
        return
    there = triton_functions("neurons")
    for part in ("charge", "adjoint", *(["leak_gradient"] if neuron.learnable_leak else [])):
        if f"{prefix}_{part}" not in there:
            yield _missing_function("neurons", f"{prefix}_{part}")


def _missing_of_surrogate(given: SurrogateRow, free: _Free) -> Iterable[str]:
    if given.cpp:
        yield from _missing_struct("SCA_SURROGATES", [given.cpp], free)
    else:
        yield _UNNAMED_STRUCT
    if not given.triton:
        yield _UNNAMED_FUNCTION
    elif given.triton not in triton_functions("surrogates"):
        yield _missing_function("surrogates", given.triton)


def _missing_struct(macro: str, rows: list[str], free: _Free) -> Iterable[str]:
    """Of a struct, and its rows."""
    bare = rows[0].partition("<")[0]
    if bare not in _defined(macro):
        yield f"no C++ twin: add `struct {bare}` to csrc/{_HEADERS[macro]}"
    yield from (_missing_row(macro, struct, next(free[macro])) for struct in rows if struct not in listed(macro))


def _missing_row(macro: str, struct: str, index: int) -> str:
    return f"no C++ row: add `row({index}, {struct})` to {macro} at the foot of csrc/{_HEADERS[macro]}"


def _missing_function(module: str, name: str) -> str:
    return f"no Triton twin: add a function `{name}` to sca_kernels/triton_kernels/{module}.py"


_UNNAMED_STRUCT = 'its row names no C++ twin: add `cpp="<struct>"` to it in sca_kernels/surrogates.py'
_UNNAMED_FUNCTION = 'its row names no Triton twin: add `triton="<function>"` to it in sca_kernels/surrogates.py'


def _unnamed_cpp(neuron: Neuron) -> str:
    return f"its row names no C++ twin: add `cpp = (<struct>, <without decay_input>)` to it in {_file(neuron)}"


def _unnamed_decay(neuron: Neuron) -> str:
    return f'its row names no C++ twin of its decay: add `cpp_decay = "<struct>"` to it in {_file(neuron)}'


def _unnamed_triton(neuron: Neuron) -> str:
    return f"its row names no Triton twin: add `triton = <how its functions begin>` to it in {_file(neuron)}"


def _file(neuron: Neuron) -> str:
    return f"{type(neuron).__module__.replace('.', '/')}.py"


def _cpp(neuron: Neuron) -> tuple[str, str] | None:
    return getattr(neuron, "cpp", None)


def _triton(neuron: Neuron) -> str | None:
    return getattr(neuron, "triton", None)
