"""The CUDA backend's kernels as they get compiled and started, without a GPU: when it is on, and why not; at run time
through CuPy; ahead by nvcc, whose machine code is read."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import re
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels.backends import cuda, registry
from sca_kernels.backends.base import BackendError
from sca_kernels.cuda_kernels import parameters

CSRC = Path(__file__).parents[2] / "csrc"
BACKEND = registry()["cuda"]
CUDA = torch.device("cuda")


# ---- on or off, and why ----------------------------------------------------------------------------------------------


class Module(types.SimpleNamespace):
    """A stand-in for sca_kernels._cuda."""

    def __init__(self, driver=13000, runtime=13000, architectures="8.0;9.0+PTX", sizes=parameters.SIZES):
        super().__init__(
            driver_version=lambda: driver,
            runtime_version=runtime,
            architectures=architectures,
            sizes=sizes,
            launched=[],
        )

    def launch(self, *arguments):
        self.launched.append(arguments)


@pytest.fixture
def device(monkeypatch):
    """A machine that has modules as given and a device of a capability; returns what sets it up."""
    cuda._kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def set_up(capability=(9, 0), **modules):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

        def import_module(name):
            if name in modules:
                return modules[name]
            raise ImportError(f"No module named {name!r}")

        monkeypatch.setattr(cuda.importlib, "import_module", import_module)
        return BACKEND.supports(CUDA, torch.float32)

    yield set_up
    cuda._kernels.cache_clear()


def test_a_cpu_tensor_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'cuda' can't run .*device type cpu is not cuda\. Others that can: "):
        F.lif(torch.zeros(2, 1, 3), backend="cuda")


def test_an_unsupported_dtype_is_a_reason():
    assert BACKEND.supports(CUDA, torch.float64) == (
        False,
        "dtype torch.float64 is not float32, bfloat16 or float16",
    )


def test_no_driver_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ok, reason = BACKEND.supports(CUDA, torch.float32)
    assert not ok
    assert "no driver" in reason


def test_neither_compiled_nor_cupy_is_a_reason_with_both_fixes(device):
    ok, reason = device()
    assert not ok
    assert "neither the compiled module nor CuPy" in reason
    assert "TORCH_CUDA_ARCH_LIST" in reason
    assert "sca_kernels[cupy]" in reason


@pytest.mark.parametrize(
    ("capability", "on"), [((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True), ((7, 5), False)]
)
def test_compiled_kernels_run_on_their_generation_and_by_ptx_on_later_ones(device, capability, on):
    ok, reason = device(capability, **{"sca_kernels._cuda": Module()})
    assert ok is on
    assert on or "TORCH_CUDA_ARCH_LIST=7.5" in reason


def test_without_ptx_later_devices_are_off(device):
    assert device((10, 0), **{"sca_kernels._cuda": Module(architectures="8.0;9.0")})[0] is False


def test_a_low_capability_is_a_reason(device):
    ok, reason = device((6, 1), **{"sca_kernels._cuda": Module()})
    assert not ok
    assert "6.1" in reason
    assert "7.5" in reason


def test_an_old_driver_is_a_reason(device):
    ok, reason = device(**{"sca_kernels._cuda": Module(driver=12040)})
    assert not ok
    assert "the driver supports CUDA 12.4, the kernels need 13.0" in reason


def test_another_layout_of_the_structures_is_a_reason(device):
    ok, reason = device(**{"sca_kernels._cuda": Module(sizes={"Forward": 1})})
    assert not ok
    assert "out of date" in reason


def test_a_launch_goes_to_the_device_and_current_stream_of_its_tensor(device, monkeypatch):
    module = Module()
    device(**{"sca_kernels._cuda": module})
    entered = []

    class Guard:
        def __init__(self, index):
            entered.append(index)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda d: types.SimpleNamespace(cuda_stream=1000 + d.index))
    bits = parameters.BitpackParameters(numel=8)
    BACKEND.launch("k", 3, 128, 64, bits, types.SimpleNamespace(device=torch.device("cuda", 1)))
    assert module.launched == [("k", 3, 128, 64, bytes(bits), 1, 1001)]
    assert entered == [torch.device("cuda", 1), "left"]


# ---- compiled at run time --------------------------------------------------------------------------------------------


class CompileException(Exception):
    pass


class Cupy:
    """As much of CuPy as the backend asks for."""

    __version__ = "14"

    def __init__(self, fails=False):
        self.modules, self.launched, self.device = [], [], None
        owner = self

        class RawModule:
            def __init__(self, **arguments):
                owner.modules.append(arguments)

            def get_function(self, name):
                if fails:
                    raise CompileException("a.cu(1): error: no such thing\nmore")
                return types.SimpleNamespace(kernel=types.SimpleNamespace(ptr=4711))

        class Device:
            def __init__(self, index):
                self.index = index

            def __enter__(self):
                owner.device = self.index

            def __exit__(self, *_):
                owner.device = None

        def launch_kernel(function, *rest):
            *numbers, stream, arguments, extra = rest
            address = ctypes.cast(arguments, ctypes.POINTER(ctypes.c_void_p))[0]
            bits = parameters.BitpackParameters.from_address(address)
            owner.launched.append((owner.device, function, numbers, stream, bits.numel, extra))

        self.RawModule = RawModule
        self.cuda = types.SimpleNamespace(
            Device=Device,
            compiler=types.SimpleNamespace(CompileException=CompileException),
            driver=types.SimpleNamespace(launchKernel=launch_kernel),
            runtime=types.SimpleNamespace(driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13020),
        )


def test_cupy_serves_where_there_is_no_compiled_module(device):
    ok, reason = device(cupy=Cupy())
    assert ok
    assert "compiled at run time by CuPy 14" in reason


def test_cupy_launches_with_the_structure_by_value_and_compiles_a_kernel_once():
    cupy = Cupy()
    kernels = cuda.RunTime(cupy)
    for _ in range(2):
        kernels.start("sca::pack_bits<float, 4>", 5, 128, 64, bytes(parameters.BitpackParameters(numel=77)), 1, 99)
    assert cupy.launched == [(1, 4711, [5, 1, 1, 128, 1, 1, 64], 99, 77, 0)] * 2
    (module,) = cupy.modules
    assert module["name_expressions"] == ("sca::pack_bits<float, 4>",)
    assert "--fmad=false" in module["options"]


def test_a_failed_compile_is_one_sentence_that_names_the_kernel():
    kernels = cuda.RunTime(Cupy(fails=True))
    says = r"^backend cuda: CuPy can't compile or start sca::pack_bits<float, 4>: CompileException: a.cu\(1\): .*thing$"
    with pytest.raises(BackendError, match=says):
        kernels.start("sca::pack_bits<float, 4>", 1, 1, 0, b"", 0, 0)


@pytest.mark.parametrize(
    ("ahead", "error", "kind"),
    [
        pytest.param(False, OSError("Read-only file system: '.cupy'"), BackendError, id="CuPy's cache"),
        *(
            pytest.param(ahead, RuntimeError(text), kind, id=f"{text}, {'compiled ahead' if ahead else 'by CuPy'}")
            for ahead in (True, False)
            for text, kind in (
                ("no kernel image is available", BackendError),
                ("an illegal memory access was encountered", RuntimeError),
                ("out of memory", RuntimeError),
            )
        ),
    ],
)
def test_a_failed_start_is_the_backends_but_where_the_device_or_its_memory_is_lost(ahead, error, kind):
    def fail(*arguments):
        raise error

    cupy = Cupy()
    cupy.cuda.driver.launchKernel = fail
    module = types.SimpleNamespace(
        driver_version=lambda: 13000, runtime_version=13000, architectures="9.0", launch=fail
    )
    kernels = cuda.Compiled(module) if ahead else cuda.RunTime(cupy)
    with pytest.raises(Exception) as found:
        kernels.start("sca::pack_bits<float, 4>", 5, 128, 64, bytes(parameters.BitpackParameters(numel=77)), 1, 99)
    assert type(found.value) is kind


@pytest.mark.compile_only
@pytest.mark.parametrize(
    "kernel",
    [
        "sca::neuron_backward<float, true, 4>",
        "sca::neuron_backward<sca::float16, false, 8, false>",
        "sca::moments<sca::float16, false, 1>",
    ],
)
def test_nvrtc_compiles_the_shipped_sources(kernel):
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"NVRTC can't be loaded ({type(error).__name__})")
    code, options = cuda.program()
    program = nvrtc.createProgram(code, "kernels.cu", (), ())
    nvrtc.addNameExpression(program, kernel)
    try:
        nvrtc.compileProgram(program, [*options, "-arch=sm_90"])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert nvrtc.getCUBIN(program)


def test_the_program_for_nvrtc_includes_files_that_are_there():
    named = re.findall(r'#include "([^"]+)"', cuda.program()[0])
    assert named
    assert [name for name in named if not (cuda.sources() / name).exists()] == []


# ---- compiled ahead --------------------------------------------------------------------------------------------------

NVCC = shutil.which("nvcc")
# Registers per thread on sm_80, sm_90 and sm_100 that a kernel may take; all without a spill.
REGISTERS = {
    "neuron_forward<float, true, 4>": 80,
    "neuron_forward<float, false, 4>": 96,
    "neuron_forward<sca::bfloat16, true, 8>": 96,
    "neuron_forward<sca::bfloat16, false, 8>": 144,
    "neuron_backward<float, true, 4>": 144,
    "neuron_backward<float, false, 4>": 192,
    "neuron_backward<sca::bfloat16, true, 8>": 192,
    "neuron_backward<sca::bfloat16, false, 8>": 224,
    "neuron_forward<float, true, 4, false>": 80,
    "neuron_forward<sca::bfloat16, false, 8, false>": 144,
    "neuron_backward<float, false, 4, false>": 208,
    "neuron_backward<sca::bfloat16, true, 8, false>": 208,
    "neuron_backward<sca::bfloat16, false, 8, false>": 255,
    "moments<float, true, 4>": 80,
    "moments<sca::bfloat16, false, 8>": 80,
}
# 16-byte loads and stores of global memory that must be there: steps in flight, and what is written per step.
WIDE = {"neuron_forward": (4, 4), "neuron_backward": (8, 1), "moments": (4, 0)}


def disassembler() -> str | None:
    """cuobjdump: the toolkit's, or the one that Triton brings."""
    beside = [Path(NVCC).resolve().parent] if NVCC else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        beside.append(Path(triton.origin).parent / "backends/nvidia/bin")
    return shutil.which("cuobjdump") or next(
        (found for p in beside if (found := shutil.which("cuobjdump", path=p))), None
    )


@pytest.fixture(scope="module", params=[80, 90, 100], ids=lambda number: f"sm_{number}")
def machine_code(request, tmp_path_factory):
    """A cubin with the kernels of REGISTERS, and what ptxas said."""
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("cubin")
    names = {"neuron_forward": "Forward", "neuron_backward": "Backward", "moments": "Moments"}
    lines = [f"template __global__ void sca::{k}(const sca::{names[k.split('<')[0]]}Parameters);" for k in REGISTERS]
    (folder / "k.cu").write_text("\n".join(['#include "cuda/kernels.h"', *lines]))
    flags = [
        "-std=c++17",
        "-O3",
        "--fmad=false",
        "-prec-div=true",
        f"-arch=sm_{request.param}",
        "-Xptxas=-v",
        f"-I{CSRC}",
    ]
    command = [NVCC, *flags, "-cubin", "-o", str(folder / "k.cubin"), str(folder / "k.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "k.cubin", done.stderr


def mangled(kernel: str) -> str:
    """How a kernel's name begins in machine code."""
    name, arguments = kernel.rstrip(">").split("<")
    kind, planes, width, *plain = arguments.split(", ")
    kind = {"float": "f", "sca::bfloat16": "NS_8bfloat16E"}[kind]
    plain = "" if name == "moments" else f"Lb{int(not plain)}E"
    return f"_ZN3sca{len(name)}{name}I{kind}Lb{int(planes == 'true')}ELi{width}E{plain}EE"


@pytest.mark.compile_only
@pytest.mark.parametrize("kernel", REGISTERS)
def test_machine_code_spills_nothing_and_stays_within_its_registers(machine_code, kernel):
    said = machine_code[1]
    report = said[said.index(f"Compiling entry function '{mangled(kernel)}") :]
    stack, stores, loads = map(
        int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    )
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert (stack, stores, loads) == (0, 0, 0)
    assert registers <= REGISTERS[kernel]
    assert not re.search(r"bytes smem", report.splitlines()[2])  # all of it is dynamic


@pytest.mark.compile_only
@pytest.mark.parametrize("kernel", REGISTERS)
def test_machine_code_moves_16_bytes_per_access_and_fuses_no_multiply_add_into_the_neuron(machine_code, kernel):
    if disassembler() is None:
        pytest.skip("cuobjdump is not installed")
    command = [disassembler(), "-sass", str(machine_code[0])]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own = next(part for part in sass.split("Function : ")[1:] if part.startswith(mangled(kernel)))
    loads, stores = WIDE[kernel.split("<")[0]]
    assert len(re.findall(r"\bLDG\.E\.128", own)) >= loads
    assert len(re.findall(r"\bSTG\.E\.128", own)) >= stores
    assert not re.search(r"\b(LDL|STL)\b", own)
    # Blocks count who has arrived; until then narrower stores of global memory are none but partial sums in double.
    arrivals = re.findall(r"\b(?:ATOM|RED)[\w.]*", own)
    assert set(arrivals) == {"ATOMG.E.ADD.STRONG.GPU"}
    before = own[: own.index(arrivals[0])]
    assert set(re.findall(r"\bST(?:G\.E)?\b[\w.]*", before)) <= {"STG.E.128", "STG.E.64"}


@pytest.fixture(scope="module")
def build():
    """The functions of setup.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        patch.chdir(CSRC.parent)
        return types.SimpleNamespace(**runpy.run_path("setup.py"))


def no_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("8.0;9.0", ["8.0", "9.0+PTX"]),
        ("10.0 8.0+PTX", ["8.0+PTX", "10.0"]),
        ("9.0", ["9.0+PTX"]),
    ],
)
def test_arch_list_is_honoured_and_ptx_of_the_newest_included(build, monkeypatch, listed, found):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build.architectures() == found


def test_without_a_gpu_and_a_list_nothing_is_compiled_ahead(build, monkeypatch):
    no_gpu(monkeypatch)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    with pytest.raises(build.NoCuda, match="no GPU here, and TORCH_CUDA_ARCH_LIST names none"):
        build.architectures()


def test_a_list_that_names_no_number_is_refused(build, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build.NoCuda, match=r"expected numbers like '8\.0 9\.0\+PTX', got 'Hopper'"):
        build.architectures()


def test_one_architecture_becomes_machine_code_and_ptx(build):
    assert build.code_for("8.0") == "-gencode=arch=compute_80,code=[sm_80]"
    assert build.code_for("12.0+PTX") == "-gencode=arch=compute_120,code=[sm_120,compute_120]"


@pytest.fixture
def fake_nvcc(tmp_path, monkeypatch):
    """An nvcc that notes how it was called, makes empty files, and fails where it is told to."""

    def make(fails: bool):
        script = tmp_path / "bin" / "nvcc"
        script.parent.mkdir()
        body = f"import os, sys\nopen({str(tmp_path / 'log')!r}, 'a').write(repr(sys.argv[1:]) + chr(10))\n"
        if fails:
            body += "sys.exit('kernels.h(3): error: no such luck')\n"
        body += "open(sys.argv[sys.argv.index('-o') + 1], 'w').close()\n"
        script.write_text(f"#!{sys.executable}\n{body}")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
        monkeypatch.chdir(CSRC.parent)
        return tmp_path

    return make


def compile_ahead(build, folder):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        build.build_cuda(folder / "_cuda.so", folder / "build", ["/include"])
    return said.getvalue()


@pytest.mark.parametrize("ninja", [False, True], ids=["alone", "ninja"])
def test_every_source_is_compiled_without_fused_multiply_add_and_linked_to_a_static_runtime(
    build, fake_nvcc, monkeypatch, ninja
):
    tool = shutil.which("ninja")
    folder = fake_nvcc(fails=False)
    if ninja:
        if tool is None:
            pytest.skip("ninja is not installed")
        (folder / "bin" / "ninja").symlink_to(tool)
    monkeypatch.setattr(build.shutil, "which", shutil.which)
    assert "8.0 9.0+PTX" in compile_ahead(build, folder)
    calls = [eval(line) for line in (folder / "log").read_text().splitlines()]
    sources = {Path(call[call.index("-c") + 1]).name for call in calls if "-c" in call}
    assert sources == {"float32.cu", "bfloat16.cu", "float16.cu", "cuda.cpp"}
    for call in calls[:-1]:
        assert {"--fmad=false", "-prec-div=true", "-gencode=arch=compute_80,code=[sm_80]"} <= set(call)
        assert '-DSCA_CUDA_ARCHITECTURES="8.0;9.0+PTX"' in call
        assert not [flag for flag in call if "torch" in flag]
    assert {"-shared", "-cudart=static"} <= set(calls[-1])


def test_an_nvcc_that_fails_is_one_sentence_with_its_first_error(build, fake_nvcc):
    folder = fake_nvcc(fails=True)
    with pytest.raises(build.NoCuda, match=r"failed: .*error: no such luck"):
        compile_ahead(build, folder)
    assert not (folder / "_cuda.so").exists()


def test_the_package_finds_its_sources():
    assert (cuda.sources() / "cuda" / "kernels.h").is_file()
    assert (cuda.sources() / "include" / "sca" / "neurons.h").is_file()
