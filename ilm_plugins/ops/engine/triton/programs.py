"""Sums over the programs of a launch, computed by the last program, without a second launch.

Rows are added in a fixed order, so the result's bits do not depend on which program is last.
"""

import triton
import triton.language as tl

from .vectors import load

#: Rows of a tile of :func:`add_rows`; its columns where programs have different columns, and where
#: one program has all: as many loads at once as its registers take.
ROWS, COLUMNS, MOST_COLUMNS = tl.constexpr(8), tl.constexpr(128), tl.constexpr(512)


@triton.jit
def is_last(counter_ptr, count):
    """Return whether this program is the last of ``count`` that ask, and set the counter to 0.

    The last program can load everything that the others stored before their call.
    """
    # The barrier orders all threads' stores before the atomic addition, which publishes them to the
    # last program.
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == count - 1
    if last:
        tl.store(counter_ptr, 0)  # for the next launch
    tl.debug_barrier()
    return last


@triton.jit
def add_rows(rows_ptr, step, rows, columns, size):
    """Return the sums of columns, offsets in rows of ``size`` values that are ``step`` apart."""
    row = tl.arange(0, ROWS)
    # Added up after the loop: a sum across warps would wait for each tile.
    tile = tl.zeros((ROWS, columns.shape[0]), tl.float32)
    for start in range(0, rows, ROWS):
        at = (start + row).to(tl.int64)[:, None] * step + columns[None, :]
        inside = (start + row < rows)[:, None] & (columns < size)[None, :]
        tile += load(rows_ptr, at, inside)
    return tl.sum(tile, axis=0)


@triton.jit
def _add_all(rows_ptr, step, rows, sums, SIZE: tl.constexpr, PARAMETERS: tl.constexpr):
    """Store the sums of rows, see :func:`sum_rows`, in one program."""
    for first in range(0, SIZE, MOST_COLUMNS):
        columns = first + tl.arange(0, MOST_COLUMNS)
        of_columns = add_rows(rows_ptr, step, rows, columns, SIZE)
        if PARAMETERS is None:
            tl.store(sums + columns, of_columns, mask=columns < SIZE)
        else:
            store_gradients(sums, columns, of_columns, PARAMETERS)


@triton.jit
def sum_rows(
    n, members, rows_ptr, step, groups_ptr, counters_ptr, sums,
    SIZE: tl.constexpr, PARAMETERS: tl.constexpr,
):  # fmt: skip
    """Store the sums of the instances' rows of SIZE values, which are ``step`` values apart.

    They go to ``sums``, a pointer, or with PARAMETERS the gradients of the parameters. The last of
    each group of ``members`` instances adds their rows, to a row of ``groups_ptr``, and the last of
    these the rows of the groups. Instance n calls this at its end.
    """
    instances = tl.num_programs(0).to(tl.int64)
    first = n // members * members
    in_group = tl.minimum(members, instances - first)
    if is_last(counters_ptr + 1 + n // members, in_group):
        groups = (instances + members - 1) // members
        group_ptr = groups_ptr + n // members * SIZE
        _add_all(rows_ptr + first * step, step, in_group, group_ptr, SIZE, None)
        if is_last(counters_ptr, groups):
            _add_all(groups_ptr, SIZE, groups, sums, SIZE, PARAMETERS)


@triton.jit
def store_gradients(gradients, columns, sums, PARAMETERS: tl.constexpr):
    """Store sums of columns to the gradients of the parameters, see ``Sizes.parameters``."""
    for i in tl.static_range(len(PARAMETERS)):
        if gradients[i] is not None:
            at = columns - PARAMETERS[i][0]
            _store_copies(gradients[i], at, sums, PARAMETERS[i][1], PARAMETERS[i][2])


@triton.jit
def _store_copies(ptr, at, sums, SIZE: tl.constexpr, COPIES: tl.constexpr):
    inside = (at >= 0) & (at < SIZE)
    for copy in tl.static_range(COPIES):
        tl.store(ptr + copy * SIZE + at, sums.to(ptr.dtype.element_ty), mask=inside)
