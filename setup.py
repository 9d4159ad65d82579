"""Build of the compiled CPU backend ``sca_kernels._cpu``; everything else about the distribution is in pyproject.toml.

The extension is optional: without a C++ compiler, or with SCA_KERNELS_NO_NATIVE=1, the install is pure Python and says
so once. It never needs torch: the kernels take addresses, sizes and strides.
"""

from __future__ import annotations

import os
import platform
import sys
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

# Kernels compiled once per instruction set, in one binary, chosen at run time.
ISA_FLAGS = {
    "isa_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
    "isa_avx2.cpp": ["-mavx2"],
    "isa_baseline.cpp": [],
}
X86_ONLY = {"isa_avx512.cpp", "isa_avx2.cpp"}


def sources() -> list[str]:
    files = [*sorted(Path("csrc/cpu").glob("*.cpp")), Path("csrc/bindings/cpu.cpp")]
    on_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return [f.as_posix() for f in files if on_x86 or f.name not in X86_ONLY]


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
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

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
        self.compiler.link_shared_object(objects, target, extra_postargs=openmp, target_lang="c++")

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
    ],
    package_dir={"sca": "python/sca"},
    ext_modules=[
        Extension(
            "sca_kernels._cpu", sources(), depends=[str(p) for p in Path("csrc").rglob("*.[hi]*")], optional=False
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
