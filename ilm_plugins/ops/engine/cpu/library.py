"""The compiled library: where it is, its functions, and its networks by their names."""

import ctypes
import functools
from collections.abc import Callable, Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import NamedTuple

from ..network import Network
from .source_hash import hash_sources

LIBRARY = Path(__file__).with_name("kernels.so")
#: Where the sources are.
FOLDER = Path(__file__).parents[2]

#: The library's functions that take a call.
FUNCTIONS = ("moments", "affine", "sums", "dx", "forward", "backward")


class Member(NamedTuple):
    """An option or a tensor of a network, as the library tells it."""

    name: str
    kind: str  #: "option", "parameter" or "buffer"
    choices: dict[str, int]  #: the numbers of an option's values, if these are names


class Layout(NamedTuple):
    """What the library takes for a network."""

    number: int
    members: list[Member]
    order: (
        list[int] | None
    )  #: indices of its tensors in the description; None if the order is the same


def load_problem() -> str | None:
    """Return why the kernels cannot be loaded, with advice; None if they can.

    Raises:
        RuntimeError: the library was compiled from other sources; or its networks, their options or
            their tensors have other names than in the descriptions.
    """
    if not LIBRARY.exists():
        problem, otherwise = "the package was installed without a C++ compiler", ""
        if _is_checkout():
            problem = "this checkout has no compiled C++ kernels"
            otherwise = ", or run from another folder"
        return f"{problem}; install a compiler, such as g++, and {_how_to_compile()}{otherwise}"
    try:
        layouts()
    except OSError as error:
        return f"the C++ kernels cannot be loaded ({error}); install the package again, here"


@functools.cache
def functions(statistics: str, instructions: str) -> dict[str, Callable[..., int]]:
    """Return name -> function, for statistics in "float" or "double" and an instruction set."""
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    return {name: function(_address(name, f"{statistics}_{instructions}")) for name in FUNCTIONS}


@functools.cache
def layouts() -> dict[type[Network], Layout]:
    """Return what the library takes for each kind of network.

    Raises:
        RuntimeError: as :func:`load_problem`.
    """
    compiled = ctypes.CFUNCTYPE(ctypes.c_char_p)(_address("sources"))().decode()
    # Programs that bundle the package may leave out the sources.
    if any(FOLDER.rglob("*.hpp")) and compiled != hash_sources(FOLDER):
        raise _stale()
    described = _tell()
    check_names(
        {name: {(m.kind, m.name) for m in members} for name, members in described.items()},
        {name: set(_members(kind)) for name, kind in Network.kinds.items()},
    )
    by_network = {}
    for number, (name, members) in enumerate(described.items()):
        network = Network.kinds[name]
        order = [network.tensors.index(m.name) for m in members if m.kind != "option"]
        by_network[network] = Layout(number, members, None if order == sorted(order) else order)
    return by_network


def check_names(of_library: dict[str, set], of_python: dict[str, set]) -> None:
    """Raise RuntimeError if networks, or (kind, name) of their members, are not the same.

    Args:
        of_library, of_python: the names of networks, and their members.
    """
    lacks = [
        f"{side} {', '.join(missing)}"
        for side, missing in (
            ("the kernels lack", _missing(of_library, of_python)),
            ("Python lacks", _missing(of_python, of_library)),
        )
        if missing
    ]
    if lacks:
        raise RuntimeError(
            f"{LIBRARY} and ops/networks/ differ: {'; '.join(lacks)}; use the same names, and "
            f"{_how_to_compile()}"
        )


def _missing(names: dict[str, set], expected: dict[str, set]) -> list[str]:
    """Describe each network, and each member of a known network, that ``names`` lacks."""
    missing = [f"the network {network!r}" for network in expected if network not in names]
    for network in expected.keys() & names.keys():
        members = sorted(expected[network] - names[network])
        missing += [f"the {kind} {name!r} of {network}" for kind, name in members]
    return missing


def _members(network: type[Network]) -> Iterator[tuple[str, str]]:
    """Yield kind and name of the members of a kind of network."""
    kinds = {"option": network._fields, "parameter": network.parameters, "buffer": network.buffers}
    yield from ((kind, name) for kind, names in kinds.items() for name in names)


def _tell() -> dict[str, list[Member]]:
    """Return the members of each network, in the library's order."""
    types = ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64
    function = ctypes.CFUNCTYPE(*types)(_address("tell"))

    def tell(what: str, network: int, member: int = 0) -> str | None:
        answer = function(what.encode(), network, member)
        return answer if answer is None else answer.decode()

    def names(what: str, *numbers: int) -> Iterator[str]:
        return takewhile(bool, (tell(what, *numbers, i) for i in count()))

    def member(name: str, *numbers: int) -> Member:
        choices = tell("choices", *numbers).split()
        return Member(name, tell("kind", *numbers), {c: i for i, c in enumerate(choices)})

    return {
        network: [member(name, n, i) for i, name in enumerate(names("name", n))]
        for n, network in enumerate(names("network"))
    }


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
