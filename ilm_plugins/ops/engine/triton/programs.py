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
def add_rows(rows_ptr, step, rows, columns):
    """Return the sums of columns, offsets in a row, of rows that are ``step`` values apart."""
    row = tl.arange(0, ROWS)
    # Added up after the loop: a sum across warps would wait for each tile.
    tile = tl.zeros((ROWS, columns.shape[0]), tl.float32)
    for start in range(0, rows, ROWS):
        at = (start + row).to(tl.int64)[:, None] * step + columns[None, :]
        inside = (start + row < rows)[:, None] & (columns < step)[None, :]
        tile += load(rows_ptr, at, inside)
    return tl.sum(tile, axis=0)


@triton.jit
def add_all(rows_ptr, step, rows, sums_ptr, SIZE: tl.constexpr):
    """Store the sums of the first SIZE columns of rows, in one program."""
    for first in range(0, SIZE, MOST_COLUMNS):
        columns = first + tl.arange(0, MOST_COLUMNS)
        tl.store(sums_ptr + columns, add_rows(rows_ptr, step, rows, columns), mask=columns < SIZE)


@triton.jit
def add_all_gradients(
    rows_ptr, step, rows, gradients, SIZE: tl.constexpr, PARAMETERS: tl.constexpr
):
    """Store the sums of rows to the gradients of the parameters, in one program."""
    for first in range(0, SIZE, MOST_COLUMNS):
        columns = first + tl.arange(0, MOST_COLUMNS)
        store_gradients(gradients, columns, add_rows(rows_ptr, step, rows, columns), PARAMETERS)


@triton.jit
def sum_gradients(
    n, members, work_ptr, counters_ptr, gradients, STEP: tl.constexpr, PARAMETERS: tl.constexpr
):
    """Store the sums of the instances' rows of the work, of STEP values, to the gradients.

    The last of each group of ``members`` instances adds their rows, to a row behind those of the
    instances, and the last of these the rows of the groups. Instance n calls this at its end.
    """
    instances = tl.num_programs(0).to(tl.int64)
    first = n // members * members
    in_group = tl.minimum(members, instances - first)
    if is_last(counters_ptr + 1 + n // members, in_group):
        groups = (instances + members - 1) // members
        groups_ptr = work_ptr + instances * STEP
        add_all(work_ptr + first * STEP, STEP, in_group, groups_ptr + n // members * STEP, STEP)
        if is_last(counters_ptr, groups):
            add_all_gradients(groups_ptr, STEP, groups, gradients, STEP, PARAMETERS)


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
