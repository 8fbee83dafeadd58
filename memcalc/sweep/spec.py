"""A sweep as people write it: a base job, axes that multiply, lists of points, and points to leave out.

    name: optimizers
    base: {model: llama-3.1-8b, precision: fp16, zero_stage: 1}
    grid:
      optimizer: [adam, adamw8bit]
      dp: {from: 1, to: 64, factor: 2}
    exclude:
      - {optimizer: adamw8bit, dp: 1}

Axes multiply, and the later vary faster; ``list`` is one further axis, the slowest, whose values are patches of several keys.
``include`` appends points, each a patch of ``base``; ``exclude`` drops the points of the grid that match all keys of one of
its patches, and leaves what ``include`` appends alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memcalc.errors import InputError
from memcalc.validation import explain

MAX_AXIS = 2**24
"""The most values of one axis: they are kept in tables, and this many take 128 MiB."""
MAX_POINTS = 2**40
"""The most points of a sweep."""
Whole = Annotated[int, Field(strict=True, ge=0, le=2**62)]


class Closed(BaseModel):
    """Fixed once read, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Range(Closed):
    """Whole numbers from one to another, both included where they are met: 1, 2, 4, … 64."""

    start: Annotated[Whole, Field(alias="from")]
    """The first."""
    to: Whole
    """The last, if it is met."""
    step: Annotated[int, Field(strict=True, ge=1)] | None = None
    """What is added from one to the next; 1 without ``factor``."""
    factor: Annotated[int, Field(strict=True, ge=2)] | None = None
    """What each is multiplied by for the next, in place of ``step``."""

    @model_validator(mode="after")
    def _sound(self) -> Range:
        if self.step is not None and self.factor is not None:
            raise ValueError("has both step and factor; give one of the two")
        if self.to < self.start:
            raise ValueError("runs backwards, so that it is empty; let from be the smaller")
        if self.factor is not None and self.start == 0:
            raise ValueError("stays at 0 whatever it is multiplied by; let from be above 0")
        return self

    def values(self) -> Sequence[int]:
        """The numbers, not held in memory where they are evenly spaced.

        >>> list(Range(**{"from": 1, "to": 64, "factor": 4}).values()), list(Range(**{"from": 8, "to": 10}).values())
        ([1, 4, 16, 64], [8, 9, 10])
        """
        if self.factor is None:
            return range(self.start, self.to + 1, self.step or 1)
        numbers = [self.start]
        while numbers[-1] * self.factor <= self.to:
            numbers.append(numbers[-1] * self.factor)
        return numbers


class SweepFile(Closed):
    """A grid of jobs."""

    name: str | None = None
    """What to call the sweep."""
    base: dict[str, Any] = Field(default_factory=dict)
    """The job that every point starts from; its keys grouped or flat."""
    grid: dict[str, list[Any] | Range] = Field(default_factory=dict)
    """Axes: a key of a job (``optimizer``, ``parallelism.dp``, ``model.hidden_size``, ``params``) and its values."""
    points: Annotated[list[dict[str, Any]] | None, Field(min_length=1, alias="list")] = None
    """Patches that vary together, as one axis slower than all of ``grid``."""
    include: Annotated[list[dict[str, Any]] | None, Field(min_length=1)] = None
    """Further points, each a patch of ``base``."""
    exclude: Annotated[list[dict[str, Any]] | None, Field(min_length=1)] = None
    """Patches; a point of the grid that matches every key of one is dropped."""


def read_sweep(mapping: Any, path: str = "") -> SweepFile:
    """A validated sweep from a mapping.

    Raises:
        InputError: an unknown key, or a value of the wrong type; keys of jobs are checked when the points are laid out.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(path or "sweep", mapping, "is not a mapping", "write base and grid")
    mapping = dict(mapping)
    if isinstance(grid := mapping.get("grid"), Mapping):
        mapping["grid"] = {key: _axis(values, f"{path}.grid.{key}".lstrip(".")) for key, values in grid.items()}
    for key in ("list", "include", "exclude"):
        if mapping.get(key) == []:
            raise InputError(f"{path}.{key}".lstrip("."), "[]", "has no values", "give it one, or leave it out")
    try:
        return SweepFile.model_validate(mapping)
    except ValidationError as error:
        raise explain(error, path, ("name", "base", "grid", "list", "include", "exclude")) from None


def load_sweep(file: Path) -> SweepFile:
    """The sweep in a YAML (or JSON) file."""
    from memcalc.readers.yaml import load_yaml

    return read_sweep(load_yaml(file))


def _axis(values: Any, path: str) -> list[Any] | Range:
    """One axis, told apart here so that an error speaks of the form that was meant."""
    if isinstance(values, Mapping):
        try:
            return Range.model_validate(values)
        except ValidationError as error:
            raise explain(error, path, ("from", "to", "step", "factor")) from None
    if not isinstance(values, list):
        raise InputError(path, values, "is not a list of values", "write [a, b], or {from: 1, to: 64, factor: 2}")
    if not values:
        raise InputError(path, "[]", "has no values", "give it one, or leave the axis out")
    return values


def sweep_schema() -> dict[str, Any]:
    """The JSON Schema of a sweep file."""
    document = SweepFile.model_json_schema()
    return {"title": "memcalc sweep", **{key: value for key, value in document.items() if key != "title"}}
