"""Safe replacements for the numpy functions that a pickle of arrays calls.

numpy's own functions trust a pickle: they would take bytes in it for pointers. The functions here
build arrays and numbers from the bytes and types in the file.
"""

import pickle
import re
from math import prod
from typing import Any

import numpy as np

from .pickles import MIN_BUDGET

#: dtypes without objects or fields, as numpy pickles name them: b1, i4, f8, c16, S3, U3.
PLAIN = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d+")


class Dtype:
    """Replaces ``numpy.dtype`` in a pickle: numpy accepts it as a dtype, and pickles it as its own.

    Args:
        code: the type, a string that matches :data:`PLAIN`.
        align, copy: further arguments of numpy.dtype, which have no effect on these types.

    Raises:
        UnpicklingError: the type is not one of numbers or strings.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not (isinstance(code, str) and PLAIN.fullmatch(code)):
            raise pickle.UnpicklingError(f"Can only have arrays of numbers and strings: {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        """Set the byte order; raise UnpicklingError for a type with fields or subarrays."""
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("Can only have arrays of numbers and strings")
        self.dtype = self.dtype.newbyteorder(order)

    def __reduce__(self) -> tuple:
        return self.dtype.__reduce__()


class Array(np.ndarray):
    """Replaces ``numpy.ndarray`` in a pickle; it is pickled again as a ``numpy.ndarray``.

    It is created empty, and its ``__setstate__`` sets shape, dtype and elements.
    """

    def __new__(cls) -> "Array":
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        """Set shape, dtype and elements, once; raise UnpicklingError if they are invalid.

        ``state`` is numpy's: version, shape, :class:`Dtype`, whether in Fortran's order, bytes.
        """
        if self.size:
            raise pickle.UnpicklingError("Can only fill an array once: others may share its memory")
        _, shape, dtype, fortran, data = state
        whole = array(data, dtype, shape, "F" if fortran else "C")
        super().__setstate__(whole.__reduce__()[2])

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def reconstruct(kind: type, shape: Any, code: Any) -> Array:
    """Return an empty array, which ``Array.__setstate__`` fills; replaces numpy's ``_reconstruct``.

    Args:
        kind: must be :class:`Array`; other classes raise UnpicklingError.
        shape, code: numpy's arguments, which have no effect.
    """
    if kind is not Array:
        raise pickle.UnpicklingError("Can only have arrays of numpy's own class")
    return Array()


def scalar(dtype: Dtype, data: bytes | str) -> np.generic:
    """Return a number or a string of numpy from its bytes; see :func:`array` for errors."""
    return array(data, dtype, (), "C")[()]


def array(data: bytes | bytearray | str, dtype: Dtype, shape: tuple, order: str) -> np.ndarray:
    """Return a new array with the elements in a bytes object.

    Args:
        data: the elements' bytes; a str, as Python 2 pickles bytes, is encoded as latin1.
        dtype: the elements' type.
        shape: the array's shape.
        order: "C" or "F", the order of the elements, as in numpy.

    Raises:
        UnpicklingError: ``data`` or ``dtype`` has the wrong type, the shape is invalid, or the
            number of bytes does not fit the shape.
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
    if elements > (max(len(data), MIN_BUDGET) if dtype.dtype.itemsize else 1):
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
