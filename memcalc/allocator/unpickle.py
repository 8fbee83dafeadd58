"""Pickles of plain data, from anyone: no class is looked up, no function called, and memory is bounded before it is taken.

The whole file is walked first, opcode by opcode: only what makes numbers, strings, None, lists, tuples and dicts may be in it.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

from memcalc.errors import InputError

LARGEST = 2**29
"""Bytes of a file that are read at most."""
CONTAINERS = 10_000_000
"""Lists and dicts in it at most: each takes one byte of a file and some 60 bytes of memory."""
WAY_OUT = "give a file that torch.cuda.memory._dump_snapshot() wrote"

# How many bytes follow an opcode (python Lib/pickletools.py); those of text protocols and of protocol 1's are left out.
FIXED = {
    b"\x80": 1, b"\x95": 8, b"(": 0, b"0": 0, b"1": 0, b"2": 0, b"\x94": 0, b"q": 1, b"r": 4, b"h": 1, b"j": 4, b"N": 0,
    b"\x88": 0, b"\x89": 0, b"J": 4, b"K": 1, b"M": 2, b"G": 8, b"]": 0, b"l": 0, b"a": 0, b"e": 0, b")": 0, b"t": 0,
    b"\x85": 0, b"\x86": 0, b"\x87": 0, b"}": 0, b"d": 0, b"s": 0, b"u": 0,
}  # fmt: skip
"""PROTO FRAME MARK POP POP_MARK DUP MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2
BINFLOAT EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS."""
COUNTED = {b"\x8a": 1, b"\x8c": 1, b"X": 4, b"\x8d": 8}
"""LONG1 SHORT_BINUNICODE BINUNICODE BINUNICODE8: so many bytes that say how many follow."""
STOP, LONG_BINPUT, MAKERS = ord("."), ord("r"), b"]}ld"
SKIP = {code[0]: count + 1 for code, count in FIXED.items()}
LENGTHS = {code[0]: count for code, count in COUNTED.items()}


class _Plain(pickle.Unpickler):
    """Refuses every name, should one ever get past the first check."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def load(path: Path, largest: int = LARGEST) -> Any:
    """What a pickle of plain data holds.

    Raises:
        InputError: it cannot be read, is too large or broken, or holds anything else.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise InputError(str(path), size, f"bytes are more than the {largest} that are read", "record fewer events")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), path.name, f"cannot be read: {error.strerror}", WAY_OUT) from None
    _walk(data, str(path))
    try:
        return _Plain(BytesIO(data)).load()
    except (MemoryError, RecursionError):
        raise InputError(str(path), path.name, "is nested too deeply or too large to read", WAY_OUT) from None
    except Exception as error:
        # a broken pickle fails in many ways: ValueError, EOFError, IndexError, KeyError, TypeError, UnpicklingError
        said = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise InputError(str(path), path.name, f"is broken ({said})", WAY_OUT) from None


def _walk(data: bytes, where: str) -> None:
    """Every opcode, from the first to STOP, which must be the last byte."""
    at, end, made = 0, len(data), 0
    while at < end:
        code = data[at]
        skip = SKIP.get(code)
        if skip is not None:
            if code in MAKERS:
                made += 1
            elif code == LONG_BINPUT and int.from_bytes(data[at + 1 : at + 5], "little") > end:
                # the unpickler makes room for every number up to it
                raise InputError(where, f"byte {at}", "notes more objects than the file can have", WAY_OUT)
            at += skip
        elif code in LENGTHS:
            width = LENGTHS[code]
            at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
        elif code == STOP:
            if at + 1 < end:
                raise InputError(where, end - at - 1, "bytes follow its end", WAY_OUT)
            if made > CONTAINERS:
                raise InputError(
                    where, made, f"lists and dicts are more than the {CONTAINERS} that are read", "record fewer events"
                )
            return
        else:
            rule = "is no opcode of plain numbers, strings, lists and dicts, which are all that is read"
            raise InputError(where, f"byte {at} ({code:#04x})", rule, WAY_OUT)
    raise InputError(where, f"{end} bytes", "end before the data does: it is cut short or no pickle", WAY_OUT)
