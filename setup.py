"""Build of the compiled backends ``sca_kernels._cpu`` and ``sca_kernels._cuda``; everything else about the distribution
is in pyproject.toml.

Both are optional: without a C++ compiler, or with SCA_KERNELS_NO_NATIVE=1, the install is pure Python and says so once;
without nvcc the CUDA kernels are left to CuPy, which compiles them at run time from the headers that every install
holds. Neither needs torch: kernels take addresses, sizes and strides.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# Spikes are equal bit for bit on every instruction set and backend: no fused multiply-add, no fast math. The flag about
# traps changes no result; without it comparisons would not vectorise.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fopenmp-simd",
    "-fno-trapping-math",
    "-g0",
]

# `make sanitize`: "address,undefined". The first finding ends the process, so that a test fails.
SANITIZE = os.environ.get("SCA_KERNELS_SANITIZE", "")
CHECKED = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
# Each check of an address is a call: in line, in kernels that are unrolled, they take the compiler minutes. They hide
# from it what is set, too.
CALLED = ["--param", "asan-instrumentation-with-call-threshold=0", "-Wno-maybe-uninitialized"]
FLAGS += [*CHECKED, *CALLED, "-O1", "-g1", "-fno-omit-frame-pointer"] if SANITIZE else []

# Kernels compiled once per instruction set, in one binary, chosen at run time.
ISA_FLAGS = {
    "isa_avx512.cpp": ["-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
    "isa_avx2.cpp": ["-mavx2", "-mfma"],
    "isa_baseline.cpp": [],
}
X86_ONLY = {"isa_avx512.cpp", "isa_avx2.cpp"}


CUDA = "sca_kernels._cuda"


def sources() -> list[str]:
    files = [*sorted(Path("csrc/cpu").glob("*.cpp")), Path("csrc/bindings/cpu.cpp")]
    on_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return [f.as_posix() for f in files if on_x86 or f.name not in X86_ONLY]


# The same for CUDA; divisions and square roots as IEEE has them.
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-prec-div=true", "-prec-sqrt=true", "--threads=0"]
NVCC_FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all"]


class NoCuda(Exception):
    """Why CUDA kernels are not compiled ahead."""


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))
    if nvcc is None:
        raise NoCuda("there is no nvcc")
    return nvcc


def architectures() -> list[str]:
    """Compute capabilities to compile for: TORCH_CUDA_ARCH_LIST, else those of the GPUs that are here.

    Nothing is compiled for machines that are not named: it takes minutes, and CuPy can do it where the GPU is.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not listed:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        try:
            listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            raise NoCuda("there is no GPU here, and TORCH_CUDA_ARCH_LIST names none") from None
    wrong = [entry for entry in listed if not re.fullmatch(r"\d+\.\d(\+PTX)?", entry)]
    if wrong or not listed:
        raise NoCuda(f"TORCH_CUDA_ARCH_LIST: expected numbers like '8.0 9.0+PTX', got {' '.join(wrong)!r}")
    found = sorted(set(listed), key=lambda entry: [int(n) for n in re.findall(r"\d+", entry)])
    if not any(entry.endswith("+PTX") for entry in found):
        found[-1] += "+PTX"  # newer devices translate it
    return found


def code_for(entry: str) -> str:
    number, _, ptx = entry.partition("+")
    number = number.replace(".", "")
    return f"-gencode=arch=compute_{number},code=[sm_{number}{f',compute_{number}' if ptx else ''}]"


def build_cuda(target: Path, folder: Path, includes: list[str]) -> None:
    """Compile ``sca_kernels._cuda``, one nvcc per source; by Ninja, where it is installed, only what has changed."""
    nvcc, entries = find_nvcc(), architectures()
    print(f"sca_kernels: compiling CUDA kernels for {' '.join(entries)} with {nvcc}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = [*NVCC_FLAGS, *map(code_for, entries), *(f"-I{path}" for path in includes)]
    flags.append(f'-DSCA_CUDA_ARCHITECTURES="{";".join(entries)}"')
    files = [*sorted(Path("csrc/cuda").glob("*.cu")), Path("csrc/bindings/cuda.cpp")]
    jobs = {str(folder / f"{file.name}.o"): (str(file), [nvcc, *flags, "-c", str(file)]) for file in files}
    if shutil.which("ninja"):
        headers = " ".join(str(path) for path in Path("csrc").rglob("*.h"))
        rules = [f"builddir = {folder}", "rule run", "  command = $command"]
        for output, (source, command) in jobs.items():
            line = shlex.join([*command, "-o", output]).replace("$", "$$")
            rules += [f"build {output}: run {source} | {headers}", f"  command = {line}"]
        (folder / "build.ninja").write_text("\n".join([*rules, ""]), encoding="utf-8")
        run(["ninja", "-f", str(folder / "build.ninja")])
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, ([*command, "-o", output] for output, (_, command) in jobs.items())))
    run([nvcc, "-shared", "-cudart=static", *jobs, "-o", str(target)])


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or ["it said nothing"]
        raise NoCuda(f"{Path(command[0]).name} failed: " + next((line for line in said if "error" in line), said[-1]))


class BuildExt(build_ext):
    """Compiles the sources side by side, each with its own flags; without a compiler, leaves the extension out."""

    def run(self) -> None:
        # pip shows this under -v; at run time `sca doctor` and the first call give the same reason.
        if os.environ.get("SCA_KERNELS_NO_NATIVE", "0") not in {"", "0"}:
            self.leave_out("SCA_KERNELS_NO_NATIVE is set", "unset it and install again")
        super().run()

    def leave_out(self, reason: str, fix: str) -> None:
        print(
            f"sca_kernels: installing WITHOUT compiled CPU kernels: {reason}. "
            f"Everything works, slower; to get them, {fix}.",
            file=sys.stderr,
        )
        self.extensions = []

    def build_extensions(self) -> None:
        if not self.works('#include <Python.h>\n#include <array>\nextern "C" int f() { return PY_MAJOR_VERSION; }\n'):
            self.leave_out(
                "no working C++17 compiler with Python's headers",
                "install g++ or clang++ and the Python development package (Debian: apt install g++ python3-dev) "
                "and install again",
            )
        self.extensions = [ext for ext in self.extensions if ext.name != CUDA or self.build_cuda()]
        super().build_extensions()

    def build_cuda(self) -> bool:
        """Whether the CUDA extension was built; if not, one line says why."""
        import pybind11

        includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
        try:
            build_cuda(Path(self.get_ext_fullpath(CUDA)), Path(self.build_temp, "cuda"), includes)
        except NoCuda as reason:
            print(
                f"sca_kernels: CUDA kernels are not compiled ahead: {reason}. Where there is a GPU, mend this and "
                "install again, or pip install 'sca_kernels[cupy]' to compile them at run time.",
                file=sys.stderr,
            )
            return False
        return True

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        if ext.name == CUDA:
            return  # already there
        openmp = (
            ["-fopenmp"]
            if self.works("#include <omp.h>\nint f() { return omp_get_max_threads(); }\n", "-fopenmp")
            else []
        )
        include = [*self.include_dirs, pybind11.get_include(), "csrc/include"]

        def compiled(source: str) -> str:
            flags = [*FLAGS, *openmp, *ISA_FLAGS.get(Path(source).name, [])]
            return self.compiler.compile([source], self.build_temp, include_dirs=include, extra_postargs=flags)[0]

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(compiled, ext.sources))
        except CompileError as error:
            raise CompileError(f"{error} (SCA_KERNELS_NO_NATIVE=1 installs without the compiled kernels)") from None
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=[*openmp, *CHECKED], target_lang="c++")

    def works(self, code: str, *flags: str) -> bool:
        """Whether a shared object can be made of ``code``."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(code, encoding="utf-8")
            try:
                objects = self.compiler.compile(
                    [str(source)], folder, include_dirs=self.include_dirs, extra_postargs=["-std=c++17", *flags]
                )
                self.compiler.link_shared_object(
                    objects, f"{folder}/probe.so", extra_postargs=list(flags), target_lang="c++"
                )
            except (CompileError, LinkError):
                return False
        return True


setup(
    packages=[
        *find_packages(include=["sca_kernels", "sca_kernels.*"]),
        *find_namespace_packages("python", include=["sca", "sca.*"]),
        # The sources of the CUDA kernels travel inside the package, for CuPy; which files, pyproject.toml says.
        "sca_kernels._csrc",
    ],
    package_dir={"sca": "python/sca", "sca_kernels._csrc": "csrc"},
    ext_modules=[
        Extension(
            "sca_kernels._cpu", sources(), depends=[str(p) for p in Path("csrc").rglob("*.[hi]*")], optional=False
        ),
        Extension(CUDA, []),
    ],
    cmdclass={"build_ext": BuildExt},
)
