"""Arrays and numbers of numpy in pickles, built here from the bytes and types in the file.

numpy's own functions trust a pickle: they would take bytes in it for pointers.
"""

import pickle
import re
from math import prod
from typing import Any

import numpy as np

from .pickles import LEAST

#: Types without objects or fields, by numpy's names in a pickle: b1, i4, f8, c16, S3, U3.
PLAIN = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d+")


class Dtype:
    """Replaces ``numpy.dtype`` in a pickle; numpy accepts it as a dtype, and pickles it as its own.

    Args:
        code: the type, see :data:`PLAIN`.
        align, copy: numpy's arguments, without a meaning for these types.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not (isinstance(code, str) and PLAIN.fullmatch(code)):
            raise pickle.UnpicklingError(f"Can only have arrays of numbers and strings: {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("Can only have arrays of numbers and strings")
        self.dtype = self.dtype.newbyteorder(order)

    def __reduce__(self) -> tuple:
        return self.dtype.__reduce__()


class Array(np.ndarray):
    """Replaces ``numpy.ndarray`` in a pickle; pickled again, it is numpy's."""

    def __new__(cls) -> "Array":
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        if self.size:
            raise pickle.UnpicklingError("Can only fill an array once: others may share its memory")
        _, shape, dtype, fortran, data = state
        whole = array(data, dtype, shape, "F" if fortran else "C")
        super().__setstate__(whole.__reduce__()[2])

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def reconstruct(kind: type, shape: Any, code: Any) -> Array:
    """Return an empty array, for a call that numpy pickles; ``__setstate__`` fills it."""
    if kind is not Array:
        raise pickle.UnpicklingError("Can only have arrays of numpy's own class")
    return Array()


def scalar(dtype: Dtype, data: bytes | str) -> np.generic:
    """Return a number or a string of numpy."""
    return array(data, dtype, (), "C")[()]


def array(data: bytes | bytearray | str, dtype: Dtype, shape: tuple, order: str) -> np.ndarray:
    """Return a copy of bytes as an array.

    Args:
        data: the elements; Python 2 pickled bytes as text in latin1.
        dtype: their type.
        shape: of the array.
        order: "C" or "F", as in numpy.

    Raises:
        UnpicklingError: ``data`` is not bytes, or their number is not that of the array.
    """
    if isinstance(data, str):
        data = data.encode("latin1")
    if not (isinstance(data, bytes | bytearray) and isinstance(dtype, Dtype)):
        raise pickle.UnpicklingError("Can only have arrays of bytes and a type")
    wrong = pickle.UnpicklingError(f"{len(data)} bytes are not an array of shape {shape}")
    if not (isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)):
        raise wrong
    # numpy copies elements of zero bytes one by one, however many; an empty array becomes large if
    # it is summed over an empty dimension.
    elements = prod(max(size, 1) for size in shape)
    if elements > (max(len(data), LEAST) if dtype.dtype.itemsize else 1):
        raise wrong
    whole = np.ndarray(shape, dtype.dtype, data, order=order)
    if whole.nbytes != len(data):
        raise wrong
    return whole.copy(order)


#: Names in a pickle, as numpy 2 writes them -> their replacements.
REPLACEMENTS = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    "numpy._core.multiarray._reconstruct": reconstruct,
    "numpy._core.multiarray.scalar": scalar,
    "numpy._core.numeric._frombuffer": array,
}
