"""Files as a person hands them over: bounded in size, plain text, and JSON that says one thing only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memcalc.errors import NO_VALUE, InputError
from memcalc.units import MIB

MAX_CONFIG = 16 * MIB
"""The largest config read, in bytes: the largest on the Hub list tens of thousands of labels and stay under 4 MiB."""
MAX_INDEX = 128 * MIB
"""The largest index of a checkpoint read, in bytes: about 100 bytes for each of a million tensors."""


class _RepeatedKeyError(ValueError):
    """A key that stands twice in one object."""


def require_file(path: Path, where: str) -> None:
    """Nothing, if ``path`` is a regular file that is there.

    Raises:
        InputError: it is missing, a folder, or a pipe or device that could keep a reader waiting for ever.
    """
    try:
        if path.is_file():
            return
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, or one with a NUL in it
        there, folder = False, False
    if folder:
        raise InputError(where, str(path), "is a folder", "name a file in it")
    if there:
        raise InputError(where, str(path), "is not a regular file", "copy it to a file first")
    raise InputError(where, str(path), "does not exist", "check the spelling of the path")


def read_bytes(path: Path, where: str, limit: int) -> bytes:
    """The whole of a regular file of at most ``limit`` bytes."""
    require_file(path, where)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(where, str(path), f"cannot be read ({error.strerror})", "check its permissions") from None
    if len(data) > limit:
        raise InputError(where, str(path), f"is larger than {limit // MIB} MiB", "that is no config: check which file it is")
    return data


def load_json(path: Path, where: str, limit: int = MAX_CONFIG) -> Any:
    """The value in a JSON file.

    ``Infinity`` is read, because transformers writes it (mamba2's ``time_step_limit``); ``NaN`` is refused.

    Raises:
        InputError: not there, too large, not UTF-8, cut short, not JSON, a key given twice, nested without end.
    """
    return parse_json(read_bytes(path, where, limit), f"{where} ({path})")


def parse_json(data: bytes, where: str) -> Any:
    """The value in JSON text, in UTF-8 with or without a byte order mark.

    >>> parse_json(b'{"a": [1, 2.5, true, null]}', "config.json")
    {'a': [1, 2.5, True, None]}
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(where, NO_VALUE, f"is not UTF-8 text (line {line})", "save it as a UTF-8 text file") from None
    if not text.strip():
        raise InputError(where, NO_VALUE, "is empty", "fetch or write it again")
    try:
        value = json.loads(text, parse_constant=_constant)
        if text.count(":") != _keys(value):
            # more colons than keys came out: one inside a string, or a key that stood twice, which only a slower look tells
            value = json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
        return value
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        if not rest or error.msg.startswith("Unterminated string"):
            raise InputError(where, NO_VALUE, f"is cut short at line {error.lineno}", "fetch or write it again") from None
        at = f"line {error.lineno}, column {error.colno}: {error.msg.lower()}"
        raise InputError(where, NO_VALUE, f"is not JSON ({at})", "mend it there") from None
    except RecursionError:
        raise InputError(where, NO_VALUE, "is nested without end", "check which file it is") from None
    except _RepeatedKeyError as error:
        raise InputError(where, str(error), "is given twice in one object", "keep one of the two") from None
    except ValueError as error:  # NaN, or an integer of thousands of digits
        raise InputError(where, NO_VALUE, f"holds a number that cannot be read ({error})", "mend it") from None


def printable(name: str, limit: int = 200) -> str:
    """A name from a file as a terminal may show it: no control characters, no halves of characters, no more than ``limit``.

    >>> printable("org/" + chr(27) + "[31mname")
    'org/?[31mname'
    """
    return "".join(sign if sign.isprintable() else "?" for sign in name[:limit])


def _keys(value: Any) -> int:
    """The keys of a mapping and of the mappings directly inside it, level by level; at most as many as were written."""
    total, level = 0, [value]
    while level:
        mappings = [entry for entry in level if type(entry) is dict]
        total += sum(map(len, mappings))
        level = [entry for mapping in mappings for entry in mapping.values()]
    return total


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) == len(pairs):
        return built
    seen: set[str] = set()
    repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise _RepeatedKeyError(repeated)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN")
    return float(name)
