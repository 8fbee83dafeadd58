"""The YAML that shipped configs are written in, read without PyYAML, whose import alone takes a sixth of a cold command.

Keys at the margin with plain words, numbers, ``true``, ``false``, ``null``, quoted text without an escape, or a list of these.
Whatever else YAML can say is left to ``memcalc.readers.yaml``, errors and their words included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
UNLIKE = frozenset(["yes", "no", "on", "off", "y", "n", "true", "false", "null"])
"""Words that YAML readers disagree on, in any capitals; the three above are taken as they are written there."""
LARGEST = 64 * 1024


class _OtherError(Exception):
    """More than plain text."""


def plain_mapping(file: Path) -> dict[str, Any] | None:
    """The mapping in a file of the plain kind; None for any other file."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
        text = data.decode("ascii")
    except (OSError, ValueError):
        return None
    return None if len(data) > LARGEST else plain_text(text)


def plain_text(text: str) -> dict[str, Any] | None:
    r"""The same of a text.

    >>> plain_text("name: gpt2\nlayers: 12\nepsilon: 1e-5\nheads: [a, b]\nsource:\n- 'a table, 3.1'")
    {'name': 'gpt2', 'layers': 12, 'epsilon': 1e-05, 'heads': ['a', 'b'], 'source': ['a table, 3.1']}
    >>> plain_text("a: &anchor 1") is None
    True
    """
    if not text.replace("\n", "").isprintable():
        return None
    found: dict[str, Any] = {}
    try:
        listed: list[Any] | None = None
        for line in text.split("\n"):
            if line.startswith("- ") and listed is not None:
                listed.append(_scalar(line[2:]))
            elif line:
                key, colon, value = line.partition(":")
                if not (colon and key.isidentifier() and key not in found and key.lower() not in UNLIKE):
                    return None
                listed = None if value else []
                found[key] = _value(value) if value else listed
    except _OtherError:
        return None
    return found if found and all(value != [] for value in found.values()) else None


def _value(text: str) -> Any:
    """What stands after a key's colon."""
    if not text.startswith(" "):
        raise _OtherError
    text = text[1:]
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(part) for part in text[1:-1].split(", ")]
    return _scalar(text)


def _scalar(text: str) -> Any:
    """One value."""
    if text in WORDS:
        return WORDS[text]
    if text[:1] == "'" == text[-1:] and len(text) > 1 and "'" not in text[1:-1]:
        return text[1:-1]
    if (
        text[:1].isalpha()
        and text.replace("-", "").replace(".", "").replace("/", "").isidentifier()
        and text.lower() not in UNLIKE
    ):
        return text
    return _number(text)


def _number(text: str) -> int | float:
    """A whole number, or one with a point or an exponent, as JSON has them."""
    digits = text.removeprefix("-")
    whole, point, rest = digits.partition(".")
    mantissa, exponent, power = (rest if point else whole).partition("e")
    if point:
        fine = whole.isdigit() and mantissa.isdigit()
    else:
        whole, fine = mantissa, mantissa.isdigit()
    if not fine or (len(whole) > 1 and whole[0] == "0") or len(digits) > 30:
        raise _OtherError
    if exponent and not power.removeprefix("-").removeprefix("+").isdigit():
        raise _OtherError
    return float(text) if point or exponent else int(text)
