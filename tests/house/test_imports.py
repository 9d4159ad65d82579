"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from operator import attrgetter

import torch

from sca_kernels.torch_private import PRIVATE

from .tree import all_imports, imports, inside, modules

# Top to bottom: a module imports its own package and lower layers, never a neighbour in the same layer, never upward.
KERNEL_LAYERS = [
    {"doctor"},
    {"testing"},
    {"nn"},
    {"functional"},
    {"ops"},
    {"backends"},
    {"reference", "triton_kernels", "cuda_kernels"},
    {"gpu"},
    {"twins"},
    {"neurons"},
    {"surrogates"},
    {"paths"},
    {"channels", "checks", "layout", "memory", "spikes", "threads", "torch_private", "tracking", "version"},
]
COMPILED = {"sca_kernels._cpu": "sca_kernels.backends.cpu", "sca_kernels._cuda": "sca_kernels.backends.cuda"}

# What each room of sca may use of its neighbours; python/sca/__init__.py only names what it loads lazily. The first are
# open to every room.
COMMON = {"registry", "files", "checkpoint", "machine", "packed", "pictures", "settings", "units", "lazy"}
SCA_ROOMS = {
    "structure": set(),
    "models": set(),
    "data": set(),
    "cost": {"structure"},
    "pruning": {"structure", "cost"},
    "saving": {"structure", "models"},
    "report": {"cost"},
    "training": {"structure", "saving", "cost", "pruning", "models", "data", "report"},
    "bench": {"structure", "saving", "cost", "pruning", "models", "training", "convert"},
    "experiments": {"pruning", "training", "bench"},
    "convert": {"structure", "models"},
    "export": {"structure", "models"},
    "__main__": {"cli"},
    "cli": {
        "structure",
        "cost",
        "pruning",
        "models",
        "data",
        "report",
        "training",
        "bench",
        "experiments",
        "convert",
        "export",
    },
}
SCA_SEES_OF_KERNELS = {"checks", "functional", "nn", "doctor", "surrogates", "torch_private"}


def layer(part: str) -> int | None:
    return next((depth for depth, names in enumerate(KERNEL_LAYERS) if part in names), None)


def upward(module: str, imported: set[str]) -> list[str]:
    """What a module of sca_kernels imports against the order of the layers."""
    if module.count(".") == 0:
        return []
    own = module.split(".")[1]
    depth = layer(own)
    if depth is None:
        return [f"{module} has no place in KERNEL_LAYERS"]
    parts = {name.split(".")[1] for name in imported if name.startswith("sca_kernels.")} - {own}
    return [f"{module} imports {part}" for part in sorted(parts) if layer(part) is not None and layer(part) <= depth]


def test_sca_kernels_imports_only_downward():
    wrong = [
        line
        for module, names in all_imports().items()
        if inside(module, "sca_kernels")
        for line in upward(module, names)
    ]
    assert wrong == []


def test_upward_finds_a_planted_violation():
    planted = imports(
        "sca_kernels.ops.neuron", "def f():\n    from ..nn import LIF\n    from .. import functional", False
    )
    assert upward("sca_kernels.ops.neuron", planted) == [
        "sca_kernels.ops.neuron imports functional",
        "sca_kernels.ops.neuron imports nn",
    ]
    assert upward(
        "sca_kernels.reference.a", imports("sca_kernels.reference.a", "from ..triton_kernels import b", False)
    )


def test_backends_do_not_import_each_other():
    backends = {m: names for m, names in all_imports().items() if m.startswith("sca_kernels.backends.")}
    wrong = [
        f"{module} imports {name}"
        for module, names in backends.items()
        for name in sorted(names)
        if inside(name, "sca_kernels.backends") and not inside(name, "sca_kernels.backends.base")
    ]
    assert wrong == []


def test_only_the_backend_of_a_compiled_module_imports_it():
    wrong = [
        f"{module} imports {name}"
        for module, names in all_imports().items()
        for name in names
        for compiled, owner in COMPILED.items()
        if inside(name, compiled) and module != owner
    ]
    assert wrong == []


def test_sca_kernels_knows_nothing_of_sca_or_of_tests():
    for module, names in all_imports().items():
        if inside(module, "sca_kernels"):
            assert not [name for name in names if inside(name, "sca")], module
        assert not [name for name in names if inside(name, "tests") or inside(name, "benchmarks")], module


def test_rooms_of_sca_import_only_what_they_may():
    wrong = []
    for module, names in all_imports().items():
        if not module.startswith("sca."):
            continue
        room = module.split(".")[1]
        assert room in SCA_ROOMS or room in COMMON, f"{module}: add its room to SCA_ROOMS"
        allowed = {room} | COMMON | SCA_ROOMS.get(room, set())
        wrong += [
            f"{module} imports {n}" for n in sorted(names) if n.startswith("sca.") and n.split(".")[1] not in allowed
        ]
    assert wrong == []


def test_sca_uses_only_the_public_part_of_sca_kernels():
    packages = {name.split(".")[1] for name in all_imports() if name.startswith("sca_kernels.")}
    wrong = [
        f"{module} imports {name}"
        for module, names in all_imports().items()
        if inside(module, "sca")
        for name in sorted(names)
        if inside(name, "sca_kernels")
        and name.count(".")
        and name.split(".")[1] in packages
        and name.split(".")[1] not in SCA_SEES_OF_KERNELS
    ]
    assert wrong == []


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_sca_kernels_loads_no_native_code_and_probes_no_device():
    out = run(
        "import sys, torch\n"
        "def probe(*args): raise AssertionError('a device was probed')\n"
        "for name in ('is_available', 'device_count', 'current_device', 'get_device_properties', 'init'):\n"
        "    setattr(torch.cuda, name, probe)\n"
        "before = set(sys.modules)\n"
        "import sca_kernels, sca_kernels.nn, sca_kernels.functional\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = out.split()
    heavy = ("triton", "cupy", "torch._dynamo")
    heavy += tuple(f"sca_kernels.{part}" for part in ("_cpu", "_cuda", "triton_kernels", "cuda_kernels"))
    assert [name for name in loaded if any(inside(name, package) for package in heavy)] == []
    assert "sca_kernels.functional" in loaded


def test_import_sca_loads_no_room():
    out = run("import sys, sca\nprint(*sys.modules)")
    assert [name for name in out.split() if name.startswith("sca.")] == ["sca.lazy"]


def unbounded(source: str) -> list[str]:
    """Functions whose answers are kept for ever, however many there are: but for those that nothing, or only a device
    or a dtype, is given to."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            kept = [ast.unparse(decorator) for decorator in node.decorator_list]
            forever = any(text in ("functools.cache", "cache") or "maxsize=None" in text for text in kept)
            given = {ast.unparse(a.annotation) if a.annotation else "?" for a in node.args.args}
            if forever and given - {"torch.device", "torch.dtype"}:
                found.append(node.name)
    return found


def test_no_cache_grows_with_what_users_pass():
    found = {name: unbounded(path.read_text()) for name, path in modules().items()}
    assert {name: functions for name, functions in found.items() if functions} == {
        "sca_kernels.backends.cuda": ["kernel"],  # by variant, of which there is a list
    }
    assert unbounded("@functools.cache\ndef f(config: Config): ...") == ["f"]


BASES = {"_BatchNorm", "_ConvNd"}  # of modules; torch's users have always told kinds by them
COMPILER = "torch._dynamo"  # in sys.modules, nothing else tells whether it is loaded
KNOWN = {name.rpartition(".")[2]: f"torch.{name}" for private in PRIVATE.values() for name in private.names}


def private_names(source: str) -> list[str]:
    """Names of torch with a leading underscore that a module reads or imports, or has as text; those that
    ``torch_private`` has, of whatever they are read."""
    tree, roots, found = ast.parse(source), {"torch"}, set()
    for node in ast.walk(tree):
        named = []
        if isinstance(node, ast.ImportFrom) and inside(node.module or "", "torch"):
            roots |= {alias.asname or alias.name for alias in node.names}
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            named = [alias.name for alias in node.names if inside(alias.name, "torch")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.removeprefix("torch.")
            if text in KNOWN:
                found.add(KNOWN[text])
            elif node.value != COMPILER and is_private_text(text):
                named = [f"torch.{text}"]
        found |= {name for name in named if "._" in name and name.rpartition(".")[2] not in BASES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            chain = ast.unparse(node)
            if chain.partition(".")[0] in roots and node.attr not in BASES:
                found.add(chain)
        if isinstance(node, ast.Attribute) and node.attr in KNOWN:
            found.add(ast.unparse(node))
    return sorted(found)


def is_private_text(text: str) -> bool:
    """Whether it is what follows ``torch.`` in the name of something private."""
    if not re.fullmatch(r"(\w+\.)*_\w*[a-z0-9A-Z](\.\w+)*", text) or text.startswith("__"):
        return False
    try:
        attrgetter(text)(torch)
    except AttributeError:
        return False
    return True


def test_private_names_of_torch_stand_in_one_file():
    found = {name: private_names(path.read_text()) for name, path in modules().items()}
    assert [name for name, names in found.items() if names] == ["sca_kernels.torch_private"]
    planted = "import torch, torch._a\nfrom torch._b import x\nfrom torch import fx\nfx._c\ntorch.y._d()\nself._e"
    assert private_names(planted) == ["fx._c", "torch._a", "torch._b.x", "torch.y._d"]
    planted = "getattr(torch, '_C'), f('_C._dispatch_keys'), '_e', '__version__', 'a _C b'"
    assert private_names(planted) == ["torch._C", "torch._C._dispatch_keys"]
    assert private_names("'torch._C._dispatch_tls', 'torch._C._functions', 'torch.nn'") == ["torch._C._functions"]
    planted = "module._compiled_call_impl\ngetattr(module, '_compiled_call_impl')\nC._dispatch_keys(z)"
    assert private_names(planted) == [
        "C._dispatch_keys",
        "module._compiled_call_impl",
        "torch.nn.Module._compiled_call_impl",
    ]
    assert private_names("'torch._dynamo' in sys.modules") == []
