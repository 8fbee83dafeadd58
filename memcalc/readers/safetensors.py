"""The header of a safetensors file: every tensor's name, shape and dtype, and never a byte of the weights.

A file is eight bytes of little-endian length, that many bytes of JSON, and the data. The header says where each tensor's
bytes begin and end; together they must cover the data from its first byte to its last, once. A file that breaks a rule of
the format is an error here as it is for the reference implementation; three more rules are memcalc's: no name may stand
twice, a tensor has at most 64 dimensions, and floats packed tighter than a byte are not read, because no training keeps
parameters so.

source: safetensors 0.8.0 safetensors/src/tensor.rs (SafeTensors::read_metadata, Metadata::validate, Dtype)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from memcalc.errors import NO_VALUE, InputError, NotModelledError, did_you_mean
from memcalc.readers.files import parse_json, require_file
from memcalc.tensors import ITEMSIZE

MAX_HEADER = 100_000_000
"""The longest header in bytes (MAX_HEADER_SIZE of the reference implementation)."""
MAX_RANK = 64
"""The most dimensions a tensor may have, PyTorch's own limit (pytorch aten/src/ATen/WrapDimUtilsMulti.h dim_bitset_size)."""

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
"""The format's dtypes under torch's names (safetensors 0.8.0 bindings/python/py_src/safetensors/torch.py, _TYPES)."""
PACKED = {"F4": "4-bit floats", "F6_E2M3": "6-bit floats", "F6_E3M2": "6-bit floats"}
"""Dtypes of less than a byte."""
FOREIGN = {"F8_E4M3FNUZ", "F8_E5M2FNUZ"}
"""8-bit floats of AMD's older kind, which no training keeps parameters in."""


class Entry(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Header(NamedTuple):
    """What a file says of itself."""

    entries: list[Entry]
    metadata: Mapping[str, str]


def read_header(path: Path, where: str = "model") -> Header:
    """The tensors of a file, in the order its header lists them.

    Raises:
        InputError: not a safetensors file, one cut short, or one whose header breaks the format's rules.
        NotModelledError: floats packed tighter than a byte.
    """
    require_file(path, where)
    at = f"{where} ({path.name})"
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8:
                raise InputError(at, NO_VALUE, f"is no safetensors file: it has {size} bytes, not even a length", _AGAIN)
            if length > MAX_HEADER:
                raise InputError(at, NO_VALUE, f"is no safetensors file: its header would take {length:,} bytes", _AGAIN)
            if length > size - 8:
                raise InputError(at, NO_VALUE, f"is cut short within its header of {length:,} bytes", _AGAIN)
            head = file.read(length)
    except OSError as error:
        raise InputError(at, NO_VALUE, f"cannot be read ({error.strerror})", "check its permissions") from None
    return parse_header(head, size - 8 - length, at)


_AGAIN = "fetch it again"


def parse_header(head: bytes, data_size: int, at: str) -> Header:
    """The tensors a header lists, held to the ``data_size`` bytes that follow it."""
    if not head.startswith(b"{"):
        raise InputError(at, NO_VALUE, "is no safetensors file: its header does not begin with {", "check which file it is")
    listed = parse_json(head, f"{at} header")
    metadata = listed.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{at} __metadata__", NO_VALUE, "is not a mapping of words to words", "write the file again")
    entries, spans = [], []
    for name, entry in listed.items():
        begin, end, dtype, shape = _parts(name, entry, at)
        needed = ITEMSIZE[dtype]
        for extent in shape:
            if type(extent) is not int or extent < 0:
                raise InputError(f"{at} {name}", str(shape), "is not a shape of whole numbers of at least 0", _AGAIN)
            needed *= extent
            if needed >= 2**63:  # refused even where a later extent is 0, as the reference implementation does
                raise InputError(f"{at} {name}", str(shape), "is a shape of 2**63 bytes or more", _AGAIN)
        if end - begin != needed:
            rule = f"takes {end - begin:,} bytes of the file where its shape and dtype need {needed:,}"
            raise InputError(f"{at} {name}", NO_VALUE, rule, _AGAIN)
        entries.append(Entry(name, dtype, tuple(shape), needed))
        spans.append((begin, end))
    _require_cover(sorted(spans), data_size, at)
    return Header(entries, metadata)


def _parts(name: str, entry: Any, at: str) -> tuple[int, int, str, list[Any]]:
    """(first byte, byte after the last, dtype, shape as listed) of one tensor."""
    if not isinstance(entry, dict):
        raise InputError(f"{at} {name}", NO_VALUE, "is not a mapping of dtype, shape and data_offsets", _AGAIN)
    offsets, shape = entry.get("data_offsets"), entry.get("shape")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise InputError(f"{at} {name}", NO_VALUE, "has no data_offsets of two whole numbers", _AGAIN)
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise InputError(f"{at} {name}", str(shape), f"is not a shape of at most {MAX_RANK} whole numbers", _AGAIN)
    begin, end = offsets
    if not (type(begin) is int and type(end) is int and 0 <= begin < 2**63 and 0 <= end < 2**63):  # a bool is no offset
        raise InputError(f"{at} {name}", str(offsets), "are not data_offsets of two whole numbers", _AGAIN)
    if begin > end:
        raise InputError(f"{at} {name}", NO_VALUE, f"ends at byte {end} before it begins at {begin}", _AGAIN)
    code = entry.get("dtype")
    if not isinstance(code, str) or code not in DTYPES:
        _no_dtype(name, code, at)
    return begin, end, DTYPES[code], shape


def _no_dtype(name: str, code: Any, at: str) -> NoReturn:
    if isinstance(code, str) and (code in PACKED or code in FOREIGN):
        rule = f"{name!r} holds {PACKED.get(code, 'floats of a dtype')} that no training keeps parameters in"
        raise NotModelledError(at, code, f"is not modelled: {rule}", "name the model before it was quantised")
    raise InputError(f"{at} {name}", str(code), "is not a dtype of the format", did_you_mean(str(code), [*DTYPES, *PACKED]))


def _require_cover(spans: list[tuple[int, int]], data_size: int, at: str) -> None:
    """That the tensors' bytes follow one another without gap or overlap, from the first byte of the data to the last."""
    edges = [(0, 0), *spans]
    for (_, end), (begin, _) in pairwise(edges):
        if begin != end:
            what = "leaves a gap of" if begin > end else "holds two tensors on the same"
            raise InputError(at, NO_VALUE, f"{what} {abs(begin - end):,} bytes at byte {min(begin, end):,} of its data", _AGAIN)
    last = edges[-1][1]
    if last > data_size:
        raise InputError(at, NO_VALUE, f"is cut short: {data_size:,} bytes of weights where {last:,} are listed", _AGAIN)
    if last < data_size:
        raise InputError(at, NO_VALUE, f"has {data_size - last:,} bytes after its last tensor", _AGAIN)
