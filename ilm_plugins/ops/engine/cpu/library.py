"""The compiled library: where it is, and its functions by their names."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

from .source_hash import hash_sources

LIBRARY = Path(__file__).with_name("kernels.so")
#: Where the sources are.
FOLDER = Path(__file__).parents[2]

#: The library's functions that take a call.
FUNCTIONS = ("moments", "affine", "sums", "dx", "forward", "backward")


def load_problem() -> str | None:
    """Return why the kernels cannot be loaded, with advice; None if they can.

    Raises:
        RuntimeError: the library was compiled from other sources.
    """
    if not LIBRARY.exists():
        problem, otherwise = "the package was installed without a C++ compiler", ""
        if _is_checkout():
            problem = "this checkout has no compiled C++ kernels"
            otherwise = ", or run from another folder"
        return f"{problem}; install a compiler, such as g++, and {_how_to_compile()}{otherwise}"
    try:
        _check_sources()
    except OSError as error:
        return f"the C++ kernels cannot be loaded ({error}); install the package again, here"


@functools.cache
def functions(real: str, instructions: str) -> dict[str, Callable[..., int]]:
    """Return name -> function, for real in "float" or "double" and an instruction set."""
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    return {name: function(_address(name, f"{real}_{instructions}")) for name in FUNCTIONS}


def _check_sources() -> None:
    compiled = ctypes.CFUNCTYPE(ctypes.c_char_p)(_address("sources"))().decode()
    # Programs that bundle the package may leave out the sources.
    if any(FOLDER.rglob("*.hpp")) and compiled != hash_sources(FOLDER):
        raise _stale()


def _address(name: str, variant: str = "float_default") -> int:
    """Return the address of a function of the library by its name."""
    # Not "ilm_plugins_{variant}", which is data in libraries of earlier sources.
    find = getattr(_load(), f"ilm_plugins_find_{variant}", None)
    if find is not None:
        find.argtypes, find.restype = [ctypes.c_char_p], ctypes.c_void_p
        if address := find(name.encode()):
            return address
    raise _stale()


def _stale() -> RuntimeError:
    return RuntimeError(
        f"{LIBRARY} was compiled from other sources than {FOLDER} has; {_how_to_compile()}"
    )


def _is_checkout() -> bool:
    return Path(__file__).parents[4].joinpath("setup.py").exists()


def _how_to_compile() -> str:
    if _is_checkout():
        return "run 'pip install -e .' in the checkout"
    return "install the package again, by pip install --force-reinstall --no-deps --no-cache-dir"


@functools.cache
def _load() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))
