"""A sweep is a single estimate many times over: an entry over arrays of sizes against itself over each size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from memcalc.optimizers.base import Optimizer, Param
from memcalc.optimizers.step import step_bytes

SIZES = [0, 1, 7, 64, 128, 300, 4095, 4096, 4097, 16384, 99_999, 100_000, 100_001, 2**20]
"""Both sides of every threshold an entry knows, and blocks whole and ragged."""


def grids() -> list[list[tuple[int, ...]]]:
    """Shapes of 0 to 4 dimensions, each list of one rank."""
    rest = [3, 32, 128, 256, 3, 1, 5, 64, 2, 16, 48, 100, 9, 2]
    return [
        [()],
        [(size,) for size in SIZES],
        list(zip(SIZES, rest, strict=True)),
        list(zip(rest, SIZES, strict=True)),
        [(a, b, 4) for a, b in zip(rest, SIZES, strict=True)],
        [(2, a, b, 3) for a, b in zip(SIZES, rest, strict=True)],
    ]


def assert_arrays_equal_scalars(entry: Optimizer, arguments: Mapping[str, Any], **told: Any) -> None:
    """States, shared tables and the step's bytes, in parameters of two dtypes, equal element by element.

    Of any number of dimensions in FP32, and of one, two and four in BF16.
    """
    options = entry.resolve(arguments)
    for dtype, several in (("float32", grids()), ("bfloat16", grids()[1::2])):
        for shapes in several:
            singles = [Param(shape, dtype, dtype, **told) for shape in shapes]
            if not entry.accepts(singles[0]):
                continue
            columns = tuple(np.array(column, dtype=np.int64) for column in zip(*shapes, strict=True))
            many = Param(columns, dtype, dtype, **told)
            beside = Param((64, 64), dtype, dtype, **told)
            assert_same([list(entry.states(one, options)) for one in singles], list(entry.states(many, options)), entry.name)
            if entry.shared:
                tables = [list(entry.shared([one, beside], options)) for one in singles]
                assert_same(tables, list(entry.shared([many, beside], options)), entry.name)
            needs = [step_bytes(entry, [beside, one, beside], options) for one in singles]
            together = step_bytes(entry, [beside, many, beside], options)
            if together is None:
                assert needs == [None] * len(singles)
            else:
                assert np.broadcast_to(together, len(singles)).tolist() == needs, entry.name


def assert_same(each: list[list[Any]], together: list[Any], name: str) -> None:
    """One list of states for each size against one list of states over all sizes."""
    for index, states in enumerate(each):
        assert len(states) == len(together), name
        for one, many in zip(states, together, strict=True):
            assert (one.name, one.part, one.dtype, one.place) == (many.name, many.part, many.dtype, many.place), name
            for field in ("numel", "count", "nbytes"):
                column = np.broadcast_to(getattr(many, field), len(each))
                assert int(column[index]) == getattr(one, field), f"{name}: {one.name}.{field}"
