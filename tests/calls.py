"""Calls of a public API as text, drawn at random: valid ones, of which up to three arguments are made hostile.

A call is one line of Python that can be pasted behind :data:`PREFACE`. Its outcome is right (as an oracle of its own
says), or a TypeError or ValueError that names one of its arguments, after which nothing has changed.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import mmap
import os
import random
import re
import select
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

PREFACE = "import numpy, torch; from sca_kernels import Surrogate, functional as F, nn, surrogates; import sca"
SPACE: dict[str, Any] = {}
exec(PREFACE, SPACE)

PATIENCE = 120
"""Seconds after which a call that has not come back never will."""

# What anything may turn out to be.
ANYTHING = (
    *(
        "None",
        "True",
        "'lif'",
        "''",
        "[]",
        "[1]",
        "['atan']",
        "(1, 2, 3)",
        "{}",
        "object()",
        "-1",
        "0",
        "3",
        "1.5",
        "1j",
    ),
    *("float('nan')", "float('inf')", "-float('inf')", "10**400", "1e300", "1e39", "2**63", "-2**63", "1e-300", "b'x'"),
    *("numpy.zeros((4, 2, 3))", "numpy.float32(2)", "numpy.int64(2)", "numpy.bool_(True)", "range(3)", "lambda: 0"),
    *("torch.zeros(())", "torch.arange(3)", "torch.zeros(4, 2, 3, dtype=torch.complex64)", "torch.eye(3).to_sparse()"),
    *(
        "torch.zeros(4, 2, 3, device='meta')",
        "torch.empty(0)",
        "torch.float16",
        "torch.strided",
        "torch.nn.Linear(8, 8)",
    ),
    *("torch.zeros(2, 3, 4, dtype=torch.float8_e4m3fn)", "torch.ones(4, 2, 3, dtype=torch.bool)", "Surrogate"),
    *("torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)", "nn.ChannelGroup(3)"),
)
# What may be wrong, or merely unusual, about a tensor.
TENSORS = (
    *("{}.double()", "{}.half()", "{}.bfloat16()", "{}.long()", "{}.bool()", "{}.to('meta')", "{}.to_sparse()"),
    *("{}.numpy()", "{}.tolist()", "{}[..., :0]", "{}[:0]", "{}.unsqueeze(0)", "{}.unsqueeze(-1)", "{}.sum()"),
    *("{}.transpose(0, -1)", "{}.flip(0)", "{} * float('nan')", "{} * float('inf')", "{} * 1e30", "{}.reshape(-1)"),
    *(
        "torch._neg_view({})",
        "{}.to(torch.complex64)",
        "torch.nn.Parameter({})",
        "{}.clone()[..., ::2]",
        "{}.to_mkldnn()",
    ),
    *("torch.cat([{0}, {0}])", "torch.cat([{0}, {0}], -1)", "{}[..., :1]", "{}.squeeze()", "{}.movedim(0, -1)"),
)


class Stage(NamedTuple):
    """A part of a call: what is called, and its arguments as text. ``{}`` stands for the result of the stage before."""

    function: str
    arguments: dict[str, str]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={text}' for name, text in self.arguments.items())})"


Check = Callable[[dict[str, Any], Any, dict[str, torch.Tensor]], None]


class Call(NamedTuple):
    """A call, the random state that its tensors are drawn from, and the check of its result:
    ``check(arguments, result, before)`` asserts what is right, of the arguments of all stages by name, and copies of
    those that are tensors, made before the call."""

    seed: int
    stages: tuple[Stage, ...]
    check: Check

    def __str__(self) -> str:
        text = ""
        for stage in self.stages:
            text = str(stage).replace("{}", text) if "{}" in stage.function else str(stage)
        return f"torch.manual_seed({self.seed}); {text}"

    def without(self, stage: int, name: str, text: str) -> Call:
        """The same call with another argument."""
        stages = list(self.stages)
        stages[stage] = stages[stage]._replace(arguments=stages[stage].arguments | {name: text})
        return self._replace(stages=tuple(stages))


Draw = Callable[[random.Random], tuple[tuple[Stage, ...], Check]]


def drawn(seed: int, targets: tuple[Draw, ...]) -> Iterator[Call]:
    """The call of a seed, after those with fewer of its hostile arguments: the first that fails says most."""
    rng = random.Random(seed)
    stages, check = rng.choice(targets)(rng)
    call = Call(seed % 2**32, stages, check)
    places = [(i, name) for i, stage in enumerate(stages) for name in stage.arguments]
    changes = []
    for i, name in rng.sample(places, min(len(places), rng.choice((0, 0, 0, 1, 1, 2, 3)))):
        text = stages[i].arguments[name]
        tensor = "torch." in text and "(" in text and rng.random() < 0.7
        changes.append((i, name, rng.choice(TENSORS).format(text) if tensor else rng.choice(ANYTHING)))
    for change in changes:
        call = call.without(*change)
    yield call
    for change in changes:  # only asked for where the call failed
        yield Call(seed % 2**32, stages, check).without(*change)


def values_of(stage: Stage) -> dict[str, Any]:
    return {name: eval(text, SPACE) for name, text in stage.arguments.items()}


def _has_values(z: Any) -> bool:
    """Whether z is a tensor that can be compared with a copy of it."""
    if not isinstance(z, torch.Tensor) or z.is_nested or z.layout is not torch.strided or z.is_meta:
        return False
    return not z.dtype.is_complex and bool((z == z).all())


def changed(values: dict[str, Any], copies: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, copy in copies.items() if not torch.equal(values[name], copy)]


def outcome(call: Call, also: Sequence[str] = ()) -> tuple[str, str]:
    """How a call ended (``right``, ``TypeError``, ``ValueError`` or ``wrong``), and what is wrong. A message may name
    what ``also`` lists instead of an argument."""
    torch.manual_seed(call.seed)
    values: dict[str, Any] = {}
    result: Any = None
    names: set[str] = set(also)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            evaluated = [values_of(stage) for stage in call.stages]
            for stage in evaluated:
                values |= stage
            copies = {name: z.detach().clone() for name, z in values.items() if _has_values(z)}
        except Exception as error:  # a hostile change that its tensor does not know
            return "not drawn", str(error)
        buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            for stage, arguments in zip(call.stages, evaluated, strict=True):
                names |= {*arguments, stage.function.lower()}  # a Surrogate is the argument ``surrogate``
                if isinstance(result, torch.nn.Module):
                    names |= set(result.state_dict())  # a weight that does not go with x
                    buffers = [(b, b.clone()) for b in result.buffers()]
                function = eval(stage.function.replace("{}", "_result"), SPACE | {"_result": result})
                result = function(**arguments)
        except (TypeError, ValueError) as error:
            text = str(error)
            listed = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
            named = re.match(rf"(?:{listed})\b[,: ]", text) or re.search(rf"'(?:{listed})'", text)
            if not named:
                return "wrong", f"{type(error).__name__} names no argument: {text}"
            moved = changed(values, copies) + ["a buffer" for now, before in buffers if not torch.equal(now, before)]
            if moved:
                return "wrong", f"changed {', '.join(moved)} before {type(error).__name__}: {text}"
            return ("TypeError" if isinstance(error, TypeError) else "ValueError"), text
        except Exception as error:
            return "wrong", f"{type(error).__name__}: {error}"
        try:
            call.check(values, result, copies)
        except AssertionError as error:
            return "wrong", f"result: {error}"
        except Exception as error:
            return "wrong", f"the check of the result: {type(error).__name__}: {error}"
    return "right", ""


def examine(seed: int, targets: tuple[Draw, ...], tally: Counter[str], also: Sequence[str] = ()) -> str:
    """Make the call of a seed and count how it ended; where that is wrong, the call with the fewest hostile arguments
    that is, to paste, and what is wrong."""
    calls = drawn(seed, targets)
    call = next(calls)
    how, why = outcome(call, also)
    tally[how] += 1
    if how != "wrong":
        return ""
    for simpler in calls:
        if (again := outcome(simpler, also))[0] == "wrong":
            call, why = simpler, again[1]
            break
    return f"{PREFACE}\n{call}\n    {why}"


def run_calls(targets: tuple[Draw, ...], calls: int, at_most: int = 20, also: Sequence[str] = ()) -> str:
    """Make so many calls, of seeds that hypothesis chooses (the same ones every time), say how they ended, and fail
    with the first ones that ended wrong. They run in a forked child, so that a crash or a call that does not come back
    names its seed, too.
    """
    seed_now = mmap.mmap(-1, 8)
    read, write = os.pipe()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads about, none of which holds a lock here
        child = os.fork()
    if child == 0:
        try:
            gc.freeze()  # what earlier tests left, process groups among it, must not be taken apart without its threads
            os.close(read)
            torch.set_num_threads(1)
            tally, wrong = _run_here(targets, calls, at_most, also, seed_now)
            with os.fdopen(write, "w") as pipe:
                json.dump([tally, wrong], pipe)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write)
    seed = -1
    while not select.select([read], [], [], PATIENCE)[0]:
        if int.from_bytes(seed_now[:8], "little") == seed:
            os.kill(child, signal.SIGKILL)  # what it was at shows below
        seed = int.from_bytes(seed_now[:8], "little")
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        seed = int.from_bytes(seed_now[:8], "little")
        raise AssertionError(f"seed {seed} did not come back ({status}):\n{PREFACE}\n{next(drawn(seed, targets))}")
    tally, wrong = json.loads(text)
    ends = f"{sum(tally.values())} calls: " + ", ".join(f"{count} {how}" for how, count in sorted(tally.items()))
    assert not wrong, "\n\n".join([ends, *wrong])
    return ends


def _run_here(
    targets: tuple[Draw, ...], calls: int, at_most: int, also: Sequence[str], seed_now: mmap.mmap
) -> tuple[Counter[str], list[str]]:
    tally: Counter[str] = Counter()
    wrong: list[str] = []

    @settings(max_examples=calls, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**60))
    def one(seed: int) -> None:
        seed_now[:8] = seed.to_bytes(8, "little")
        if (problem := examine(seed, targets, tally, also)) and len(wrong) < at_most:
            wrong.append(problem)

    one()
    return tally, wrong


faulthandler.enable()
