"""numpy's arrays and numbers out of a pickle, made anew of the bytes and the types that it names.

What numpy itself has for this believes a pickle, even that bytes in it are pointers.
"""

import pickle
import re
from math import prod
from typing import Any

import numpy as np

from .pickles import LEAST

#: What is no object and has no parts, as numpy pickles its name: b1, i4, f8, c16, S3, U3.
PLAIN = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d+")


class Dtype:
    """What a pickle gets for ``numpy.dtype``; numpy takes it for its ``dtype``.

    Pickled again, it is numpy's.

    Args:
        code: the type, as :data:`PLAIN` has it.
        align, copy: numpy's, without a meaning for these types.
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
    """What a pickle gets for ``numpy.ndarray``; pickled again, it is numpy's."""

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
    """What numpy pickles the call of; the array's state follows."""
    if kind is not Array:
        raise pickle.UnpicklingError("Can only have arrays of numpy's own class")
    return Array()


def scalar(dtype: Dtype, data: bytes | str) -> np.generic:
    """A number or a string of numpy's."""
    return array(data, dtype, (), "C")[()]


def array(data: bytes | bytearray | str, dtype: Dtype, shape: tuple, order: str) -> np.ndarray:
    """The array that bytes are, in numpy's order "C" or "F"; Python 2 has strings for bytes.

    Raises:
        UnpicklingError: the bytes are none, or not as many as the array has.
    """
    if isinstance(data, str):
        data = data.encode("latin1")
    if not (isinstance(data, bytes | bytearray) and isinstance(dtype, Dtype)):
        raise pickle.UnpicklingError("Can only have arrays of bytes and a type")
    wrong = pickle.UnpicklingError(f"{len(data)} bytes are no array of shape {shape}")
    if not (isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)):
        raise wrong
    # numpy copies any number of elements of no bytes one by one; an empty array becomes large if it
    # is summed over an empty dimension.
    elements = prod(max(size, 1) for size in shape)
    if elements > (max(len(data), LEAST) if dtype.dtype.itemsize else 1):
        raise wrong
    whole = np.ndarray(shape, dtype.dtype, data, order=order)
    if whole.nbytes != len(data):
        raise wrong
    return whole.copy(order)


#: Names in a pickle, as numpy 2 has them, -> what they mean here.
MEANT = {
    "numpy.ndarray": Array,
    "numpy.dtype": Dtype,
    "numpy._core.multiarray._reconstruct": reconstruct,
    "numpy._core.multiarray.scalar": scalar,
    "numpy._core.numeric._frombuffer": array,
}
