"""Records on disk: read whole and validated, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from memcalc.errors import NO_VALUE, InputError
from memcalc.measurement import Measurement, measurement_from
from memcalc.readers.files import parse_json, read_bytes
from memcalc.units import MIB

MAX_RECORD = 256 * MIB
"""The largest record read, in bytes of JSON text: about 200 bytes for each of a million tensors."""
SUFFIXES = (".json", ".json.gz")


def read_measurement(path: Path) -> Measurement:
    """The record in a file, validated.

    Raises:
        InputError: not there, cut short, not JSON, of another schema version, or a value that breaks a rule.
    """
    data = read_bytes(path, "measurement", MAX_RECORD)
    if path.suffix == ".gz":
        data = _unzipped(data, path)
    return measurement_from(parse_json(data, f"measurement ({path})"), str(path))


def write_measurement(measurement: Measurement, path: Path) -> None:
    """Write a record whole or not at all: beside its place, flushed to the disk, then renamed.

    Raises:
        InputError: it cannot be written, as on a full disk; nothing is left behind.
    """
    text = dumps(measurement.model_dump(mode="json")).encode()
    # no time stamp inside, so that equal records are equal files
    data = gzip.compress(text, 9, mtime=0) if path.suffix == ".gz" else text
    write_atomically(path, data)


def write_atomically(path: Path, data: bytes, asked: str = "--out") -> None:
    """``path`` holds all of ``data`` or what it held before; ``asked`` is the option that named it.

    Raises:
        InputError: the folder or the disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InputError(asked, str(path), f"cannot be written ({error.strerror})", "name a place with room") from None


def records_in(path: Path) -> list[Path]:
    """The record files of a folder and the folders in it, sorted; a file is itself.

    Raises:
        InputError: nothing there.
    """
    if path.is_file():
        return [path]
    found = sorted(file for suffix in SUFFIXES for file in path.rglob(f"*{suffix}") if not file.name.startswith("."))
    if not found:
        raise InputError("measurements", str(path), "holds no records", "run memcalc measure --out there first")
    return found


def dumps(value: Any, indent: int = 0) -> str:
    """JSON with one line for each row of plain values, so that a record is short and a change in it shows.

    >>> print(dumps({"a": 1, "rows": [{"x": 1, "y": [2, 3]}]}))
    {
     "a": 1,
     "rows": [
      {"x": 1, "y": [2, 3]}
     ]
    }
    """
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(value, dict) and not _flat(value):
        rows = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {dumps(each, indent + 1)}" for key, each in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    if isinstance(value, list) and not _flat(value):
        return "[\n" + ",\n".join(inner + dumps(each, indent + 1) for each in value) + f"\n{outer}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _flat(value: Any) -> bool:
    """Whether a value goes on one line: plain, or a mapping or list of plain values and short lists of them."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_plain(entry) or (isinstance(entry, list) and all(map(_plain, entry))) for entry in entries)


def _plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _unzipped(data: bytes, path: Path) -> bytes:
    where = f"measurement ({path})"
    unzip = zlib.decompressobj(wbits=31)
    try:
        text = unzip.decompress(data, MAX_RECORD + 1)
    except zlib.error as error:
        raise InputError(where, NO_VALUE, f"is not a gzip file ({error})", "write it again") from None
    if len(text) > MAX_RECORD:
        raise InputError(where, NO_VALUE, f"is larger than {MAX_RECORD // MIB} MiB unpacked", "that is no record")
    if not unzip.eof:
        raise InputError(where, NO_VALUE, "is cut short", "write it again")
    return text
