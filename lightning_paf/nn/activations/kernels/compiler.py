"""Compilation of C at run time."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

_COMMON = ("-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")

# From fastest to most portable; the first set that compiles and loads is used.
_FLAGS = (("-march=native", "-fopenmp"), ("-march=native", "-fopenmp-simd"), ("-fopenmp-simd",))


class CompilerError(Exception):
    """There is no C compiler, or its libraries cannot be loaded."""


def load(source: str) -> ctypes.CDLL:
    """Compile C source for this machine and load it.

    It takes half a second, so nothing is cached, and no stale or foreign file can be loaded. OpenMP is compiled in but
    not linked, so that the code uses torch's OpenMP library and threads.

    Raises:
        CompilerError: There is no compiler, or no set of flags works.
    """
    compiler = next((c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None)
    if compiler is None:
        raise CompilerError("no C compiler (cc, gcc, clang or $CC)")
    failures: list[str] = []
    with TemporaryDirectory(prefix="lightning_paf_") as folder:
        (Path(folder) / "kernel.c").write_text(source)
        for number, flags in enumerate(_FLAGS):
            library = Path(folder) / f"kernel{number}.so"  # a new name, since loaders can cache a failure
            try:
                _run(compiler, *_COMMON, *flags, "-c", "kernel.c", "-o", "kernel.o", folder=folder)
                _run(compiler, "-shared", "kernel.o", "-o", library.name, "-lm", folder=folder)
                return ctypes.CDLL(str(library))
            except (subprocess.SubprocessError, OSError) as error:
                failures.append(str(getattr(error, "stderr", "") or error))
    raise CompilerError(f"{compiler}: {failures[-1].strip()[-300:]}")


def _run(*command: str, folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120)
