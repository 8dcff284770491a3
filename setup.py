"""Compile the C++ kernels along with the package, where there is a compiler that can compile CHECK.

ILM_PLUGINS_REQUIRE_C=1 makes it an error if there is none, ILM_PLUGINS_WITHOUT_C=1 leaves them out.
ILM_PLUGINS_CHECKED=1 builds kernels that check where they write. ILM_PLUGINS_CFLAGS adds flags.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from runpy import run_path
from shutil import rmtree

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, PlatformError

FOLDER = Path("ilm_plugins", "ops")
CPU = FOLDER / "engine" / "cpu"
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-g0"]
#: Without these, the library needs nothing of C++'s own library.
FLAGS += ["-fno-exceptions", "-fno-rtti"]
FLAGS += ["-w"]  # `make lint` warns, of errors alone
#: As torch names what it chooses from when it is loaded; so do the kernels' tables of functions.
INSTRUCTIONS = {"default": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTIONS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTIONS["avx512"] = [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")]
    INSTRUCTIONS["avx512"] += ["-mfma", "-mf16c", "-mprefer-vector-width=512"]
#: A library that every compiler builds which can be asked for the kernels.
CHECK = """\
#include <cmath>
#include <stdlib.h>
#if !defined __clang__ && !(__GNUC__ >= 9)
#error "the kernels need g++ 9 or newer, or clang++"
#endif
"""


class BuildKernels(build_ext):
    """One library of the same source, compiled for each instruction set, for float and double."""

    has_compiler = False

    def run(self):
        for extension in self.extensions:  # never one of other sources
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        if os.environ.get("ILM_PLUGINS_WITHOUT_C") == "1":
            return self.leave_out()
        try:
            super().run()
        except (CCompilerError, PlatformError) as error:
            if self.has_compiler:
                advice = "to install without the kernels, set ILM_PLUGINS_WITHOUT_C=1"
                raise CCompilerError(f"the kernels do not compile: {error}; {advice}") from error
            if os.environ.get("ILM_PLUGINS_REQUIRE_C") == "1":
                raise
            self.warn(f"the kernels are left out, without a C++ compiler that works: {error}")
            self.leave_out()

    def leave_out(self):
        self.extensions = self.distribution.ext_modules = []
        self.get_finalized_command("bdist_wheel").root_is_pure = True

    def check_compiler(self):
        folder = Path(self.build_temp, "check")
        folder.mkdir(parents=True, exist_ok=True)
        (source := folder / "check.cpp").write_text(CHECK)
        for instructions in INSTRUCTIONS.values():
            flags = [*FLAGS, *instructions]
            objects = self.compiler.compile([str(source)], str(folder), extra_postargs=flags)
        self.link(objects, str(folder / "check.so"), FLAGS)
        self.has_compiler = True

    def build_extension(self, extension):
        self.check_compiler()
        # By which the binding in Python refuses a library of other sources.
        sources = run_path(str(CPU / "source_hash.py"))["hash_sources"](FOLDER)
        flags = [*FLAGS, *os.environ.get("ILM_PLUGINS_CFLAGS", "").split()]
        if os.environ.get("ILM_PLUGINS_CHECKED") == "1":
            flags.append("-DILM_PLUGINS_CHECKED")

        def compile_for(variant):
            (name, instructions), real = variant
            macros = [
                ("ILM_PLUGINS_REAL", real),
                ("ILM_PLUGINS_FIND", f"ilm_plugins_find_{real}_{name}"),
                ("ILM_PLUGINS_SOURCES", f'"{sources}"'),
            ]
            return self.compiler.compile(
                extension.sources,
                output_dir=str(Path(self.build_temp, f"{name}-{real}")),
                macros=macros,
                extra_postargs=[*flags, *instructions],
                depends=extension.depends,
            )

        variants = [(item, real) for item in INSTRUCTIONS.items() for real in ("float", "double")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [name for names in pool.map(compile_for, variants) for name in names]
        self.link(objects, self.get_ext_fullpath(extension.name), flags)

    def link(self, objects, path, flags):
        # The C++ compiler links its own library, which nothing needs.
        needed = ["-Wl,--as-needed"] if sys.platform == "linux" else []
        flags = [*flags, *needed]
        self.compiler.link_shared_object(
            objects, path, libraries=["m"], extra_postargs=flags, target_lang="c++"
        )

    def get_ext_filename(self, name):
        return str(Path(*name.split("."))) + ".so"  # on macOS, too; no module of Python

    def get_export_symbols(self, extension):
        return []


class PlatformWheel(bdist_wheel):
    """A wheel for every Python: the library does not know it."""

    def run(self):
        # Files of an earlier build, which the package may no longer have, would be packed, too.
        rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if not Path("ilm_plugins", ".mim", "configs").is_dir():
    raise SystemExit(
        "error: ilm_plugins/.mim/configs is no link to configs/; take the sources by git, or as a "
        ".tar.gz, since some programs unpack links of a .zip as text"
    )
kernels = Extension(
    "ilm_plugins.ops.engine.cpu.kernels",
    sources=[str(CPU / "kernels.cpp")],
    depends=[str(path) for path in sorted(FOLDER.rglob("*.hpp"))],
)
setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel})
