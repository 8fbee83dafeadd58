"""Every error a person can cause, said once and in one shape: path, value, rule, way out.

Exit codes follow the contract of the command line: 2 for what could not be judged (bad input, a missing package,
something not modelled); 70 for a fault of memcalc itself, which is any exception that is not one of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

EXIT_YES = 0
EXIT_NO = 1
EXIT_UNJUDGED = 2
EXIT_FAULT = 70


class MemcalcError(Exception):
    """Something a person can mend. ``str(error)`` is one line: ``path: value rule; way out``.

    >>> print(InputError("parallelism.tp", 3, "does not divide num_attention_heads = 32", "use 1, 2, 4, 8, 16 or 32"))
    parallelism.tp: 3 does not divide num_attention_heads = 32; use 1, 2, 4, 8, 16 or 32
    """

    exit_code = EXIT_UNJUDGED

    def __init__(self, path: str, value: object, rule: str, way_out: str = "") -> None:
        self.path = path
        self.value = value
        self.rule = rule
        self.way_out = way_out
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """The error as one line, with the value shortened to what a terminal can bear."""
        twice = isinstance(self.value, str) and self.value == self.path and "." in self.path  # a file that is not there
        shown = "" if self.value is NO_VALUE or twice else f"{_short(self.value)} "
        tail = f"; {self.way_out}" if self.way_out else ""
        head = f"{self.path}: " if self.path else ""
        return f"{head}{shown}{self.rule}{tail}"

    def __reduce__(self) -> tuple[type[MemcalcError], tuple[str, object, str, str]]:
        """Rebuild from the four parts, so that an error crosses a process boundary whole."""
        return type(self), (self.path, self.value, self.rule, self.way_out)


class InputError(MemcalcError):
    """A value that breaks a rule: wrong type, unknown key, absurd size, hostile file."""


class NotModelledError(MemcalcError):
    """A question memcalc understands and cannot answer yet; it never guesses."""


class MissingPackageError(MemcalcError):
    """An optional package is needed and is not installed; the way out names the extra."""

    def __init__(self, path: str, value: object, rule: str = "", way_out: str = "") -> None:
        super().__init__(path, value, rule, way_out)

    @classmethod
    def extra(cls, path: str, package: str, extra: str) -> MissingPackageError:
        """The error for a missing ``package`` that the extra ``extra`` brings."""
        return cls(path, package, "is not installed", f"pip install 'memcalc[{extra}]'")


class _NoValue:
    """Marks an error that is about no value in particular."""

    def __repr__(self) -> str:
        return "NO_VALUE"

    def __reduce__(self) -> str:
        return "NO_VALUE"


NO_VALUE = _NoValue()


def did_you_mean(word: str, known: Iterable[str], *, most: int = 3) -> str:
    """The way out for a word that is not known: its nearest neighbours, or the start of the list.

    >>> did_you_mean("admw", ["adam", "adamw", "sgd"])
    'did you mean adamw or adam?'
    >>> did_you_mean("zzz", ["adam", "sgd"])
    'use adam or sgd'
    """
    names = list(known)
    lowered = {name.lower(): name for name in names}
    near = [lowered[hit] for hit in get_close_matches(word.lower(), list(lowered), n=most, cutoff=0.6)]
    if near:
        return f"did you mean {either(near)}?"
    if len(names) <= 12:
        return f"use {either(names)}"
    return f"there are {len(names)} to choose from"


def either(words: Sequence[str]) -> str:
    """Words as an English choice.

    >>> either(["a", "b", "c"])
    'a, b or c'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _short(value: object, limit: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split()) or repr(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
