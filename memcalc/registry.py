"""A dictionary that refuses a second entry under one name and answers an unknown one with its nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from memcalc.errors import InputError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind.

    >>> fruit = Registry[int]("fruit")
    >>> fruit.add("apple", 1)
    1
    >>> fruit.get("appel", path="job.fruit")
    Traceback (most recent call last):
    ...
    memcalc.errors.InputError: job.fruit: appel is not a known fruit; did you mean apple?
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register ``entry``; a duplicate is a programming error."""
        if name in self._entries:
            raise ValueError(f"{self.noun} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def get(self, name: str, path: str = "") -> T:
        """The entry of that name.

        Raises:
            InputError: nothing is registered under it.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(
                path or self.noun, name, f"is not a known {self.noun}", did_you_mean(name, self._entries)
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> list[tuple[str, T]]:
        """Names and entries, in the order they were registered."""
        return list(self._entries.items())
