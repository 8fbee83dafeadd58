"""Where text becomes numbers and numbers become text. ``GiB`` = 2**30, ``GB`` = 10**9, and never one for the other."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from memcalc.errors import InputError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
MAX_BYTES = 2**63 - 1
"""The largest total memcalc will state: the largest int64, so that no array path can wrap around."""

_BYTE_UNITS = {
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_NUMBER = r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*\Z"


def parse_bytes(text: str | int, path: str = "memory") -> int:
    """Bytes from ``24GiB``, ``80 GB``, ``1.5TiB`` or a plain integer of bytes.

    Raises:
        InputError: an unknown unit, a fraction of a byte, zero or less, or 2**63 and more.

    >>> parse_bytes("24GiB"), parse_bytes("71.3GiB")
    (25769803776, 76557792051)
    >>> parse_bytes("80GB")
    80000000000
    """
    amount, unit = _split(text, path, "is not a size in bytes", "write it as 24GiB, 80GB or a whole number of bytes")
    if unit.lower() not in _BYTE_UNITS and unit != "":
        raise InputError(path, text, f"has the unknown unit {unit!r}", "use B, KiB, MiB, GiB, TiB, KB, MB, GB or TB")
    return _whole(amount, _BYTE_UNITS.get(unit.lower(), 1), text, path, "bytes")


def parse_count(text: str | int | float, path: str = "params") -> int:
    """A count from ``7e9``, ``7B``, ``125M``, ``1_000`` or a whole number.

    >>> parse_count("7e9"), parse_count("1.5B"), parse_count(124439808)
    (7000000000, 1500000000, 124439808)
    """
    amount, unit = _split(text, path, "is not a count", "write it as 7e9, 7B, 125M or a whole number")
    if unit.lower() not in _COUNT_UNITS:
        raise InputError(path, text, f"has the unknown unit {unit!r}", "use K, M, B or T")
    return _whole(amount, _COUNT_UNITS[unit.lower()], text, path, "parameters")


def parse_fraction(text: str | float | int, path: str) -> float:
    """A share from ``5%`` or ``0.05``, at least 0 and below 1.

    >>> parse_fraction("5%", "headroom"), parse_fraction(0.1, "headroom")
    (0.05, 0.1)
    """
    raw = str(text).strip()
    try:
        value = Decimal(raw[:-1]) / 100 if raw.endswith("%") else Decimal(raw)
    except InvalidOperation:
        raise InputError(path, text, "is not a share", "write it as 5% or 0.05") from None
    if not value.is_finite() or not 0 <= value < 1:
        raise InputError(path, text, "is not at least 0 and below 1", "write it as 5% or 0.05")
    return float(value)


def format_gib(count: int, digits: int = 2) -> str:
    """Bytes as text in GiB, or in MiB, KiB or B where GiB would round to nothing.

    >>> format_gib(16 * 2**30), format_gib(3 * 2**20), format_gib(512), format_gib(0)
    ('16.00 GiB', '3.00 MiB', '512 B', '0 B')
    """
    size = abs(count)
    if size >= GIB // 10:
        return f"{count / GIB:,.{digits}f} GiB"
    if size >= MIB // 10:
        return f"{count / MIB:,.{digits}f} MiB"
    if size >= 10 * KIB:
        return f"{count / KIB:,.{digits}f} KiB"
    return f"{count:,} B"


def format_count(count: int) -> str:
    """A count as people say it.

    >>> format_count(8030261248), format_count(124439808), format_count(999)
    ('8.03 B', '124.44 M', '999')
    """
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def checked_bytes(count: int, path: str) -> int:
    """``count`` itself, unless it is 2**63 or more.

    Raises:
        InputError: no machine holds that many bytes, and int64 arrays could not either.
    """
    if count > MAX_BYTES:
        raise InputError(path, f"{count:.3e}", "bytes are 2**63 or more", "check the sizes of the model")
    return count


def _split(text: str | int | float, path: str, rule: str, way_out: str) -> tuple[Decimal, str]:
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise InputError(path, text, rule, way_out)
    match = re.match(_NUMBER, str(text))
    if match is None:
        raise InputError(path, text, rule, way_out)
    digits, unit = match.groups()
    return Decimal(digits.replace("_", "").replace(",", "")), unit


def _whole(written: Decimal, unit: int, text: object, path: str, noun: str) -> int:
    """The nearest whole number: 71.3GiB is no whole number of bytes, and nobody means the fraction; 0.3 bytes is a mistake."""
    amount = written * unit
    if amount <= 0:
        raise InputError(path, text, "is not above zero", f"give a positive number of {noun}")
    if amount > MAX_BYTES:
        raise InputError(path, text, f"is 2**63 {noun} or more", "check the unit")
    if unit == 1 and amount != amount.to_integral_value():
        raise InputError(path, text, f"is not a whole number of {noun}", "round it, or give a unit")
    return int(amount.to_integral_value())
