"""safetensors headers, held to the reference implementation on good files, odd files and damaged ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcalc.errors import InputError, MemcalcError, NotModelledError
from memcalc.readers.checkpoint import model_from_safetensors
from memcalc.readers.safetensors import DTYPES, FOREIGN, PACKED, read_header
from memcalc.tensors import ITEMSIZE

safetensors = pytest.importorskip("safetensors", reason="the oracle is the reference implementation")


def write(file: Path, head: bytes | dict, data: bytes = b"", length: int | None = None) -> Path:
    """A file of these parts, whatever they are."""
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return file


def entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def reference(file: Path) -> dict | None:
    """What the reference implementation reads, name -> (dtype, shape) or None where it refuses."""
    try:
        with safetensors.safe_open(file, "np") as opened:
            return {
                name: (opened.get_slice(name).get_dtype(), tuple(opened.get_slice(name).get_shape()))
                for name in opened.keys()  # noqa: SIM118, it is no dict
            }
    except (safetensors.SafetensorError, OSError, ValueError):
        return None


def ours(file: Path) -> dict:
    codes = {torch_name: code for code, torch_name in DTYPES.items()}
    return {found.name: (codes[found.dtype], found.shape) for found in read_header(file).entries}


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_every_dtype_is_read_as_the_reference_reads_it(tmp_path, code):
    """Each dtype of the format has the size the reference implementation holds files to."""
    size = ITEMSIZE[DTYPES[code]]
    file = write(
        tmp_path / "a.safetensors",
        {"x": entry(0, 6 * size, [2, 3], code), "s": entry(6 * size, 7 * size, [], code)},
        bytes(7 * size),
    )
    assert ours(file) == reference(file) == {"x": (code, (2, 3)), "s": (code, ())}


def test_no_dtype_of_the_format_is_unknown(tmp_path):
    """The dtypes that are read and those that are refused with a reason are all the format has."""
    file = write(tmp_path / "a.safetensors", {"x": entry(0, 4, [1], "NOPE")}, bytes(4))
    with pytest.raises(safetensors.SafetensorError) as refusal, safetensors.safe_open(file, "np"):
        pass
    listed = str(refusal.value).partition("expected one of ")[2].partition(" at line")[0]
    assert {word.strip("`") for word in listed.split(", ")} == {*DTYPES, *PACKED, *FOREIGN}


def test_a_file_written_by_the_library(tmp_path):
    """A model saved by torch comes back with its names, shapes, dtypes and total bytes."""
    torch = pytest.importorskip("torch", reason="writes the file")
    from safetensors.torch import save_file

    tensors = {
        "model.embed_tokens.weight": torch.zeros(11, 4, dtype=torch.bfloat16),
        "model.norm.weight": torch.zeros(4),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.0, dtype=torch.float64),
        "mask": torch.zeros(3, dtype=torch.bool),
        **{f"model.layers.{i}.w.weight": torch.zeros(4, 4, dtype=torch.bfloat16) for i in range(3)},
    }
    file = tmp_path / "m.safetensors"
    save_file(tensors, file, metadata={"format": "pt", "note": "a:b"})
    model = model_from_safetensors(file)
    found = {name: (tensor.shape, tensor.dtype) for tensor in model.tensors for name in tensor.names()}
    assert found == {name: (tuple(tensor.shape), str(tensor.dtype)[6:]) for name, tensor in tensors.items()}
    assert sum(tensor.nbytes * tensor.count for tensor in model.tensors) == sum(t.nbytes for t in tensors.values())
    assert model.num_parameters == sum(t.numel() for t in tensors.values())
    assert (model.family, model.dtype, model.name) == ("safetensors", "bfloat16", "m")
    assert read_header(file).metadata == {"format": "pt", "note": "a:b"}


def test_only_the_header_is_read(tmp_path):
    """A sparse file of a terabyte of weights is read at once, because its weights are not."""
    size = 2**40
    head = json.dumps({"w": entry(0, size, [2**19, 2**19])}).encode()
    file = write(tmp_path / "big.safetensors", head)
    with file.open("r+b") as opened:
        opened.truncate(8 + len(head) + size)
    assert model_from_safetensors(file).num_parameters == 2**38


GOOD = {"a": entry(0, 24, [2, 3]), "b": entry(24, 32, [4], "F16"), "c": entry(32, 32, [0, 9])}


@pytest.mark.parametrize(
    ("head", "data", "length", "reason"),
    [
        (GOOD, bytes(31), None, r"is cut short: 31 bytes of weights where 32 are listed"),
        (GOOD, bytes(33), None, r"has 1 bytes after its last tensor"),
        (GOOD, b"", 10**9, r"header would take 1,000,000,000 bytes"),
        (GOOD, b"", 5000, r"is cut short within its header of 5,000 bytes"),
        (b"[1, 2]", b"", None, r"does not begin with \{"),
        (b'{"a": ', b"", None, r"is cut short at line 1"),
        (b"{'a': 1}", b"", None, r"is not JSON \(line 1, column 2"),
        (b'{"a": \xff}', b"", None, r"is not UTF-8 text"),
        (b'{"a": NaN}', b"", None, r"holds a number that cannot be read \(NaN\)"),
        (b'{"a":' + b"[" * 100_000, b"", None, r"is nested without end"),
        ({"a": entry(0, 24, [2, 3]), "b": entry(28, 36, [2])}, bytes(36), None, r"leaves a gap of 4 bytes at byte 24"),
        ({"a": entry(4, 28, [2, 3])}, bytes(28), None, r"leaves a gap of 4 bytes at byte 0"),
        ({"a": entry(0, 24, [2, 3]), "b": entry(20, 28, [2])}, bytes(28), None, r"two tensors on the same 4 bytes at byte 20"),
        ({"a": entry(24, 0, [2, 3])}, bytes(24), None, r"a: ends at byte 0 before it begins at 24"),
        ({"a": entry(0, 24, [2, 4])}, bytes(24), None, r"a: takes 24 bytes of the file where its shape and dtype need 32"),
        ({"a": entry(0, 24, [-2, -3])}, bytes(24), None, r"\[-2, -3\] is not a shape of whole numbers of at least 0"),
        ({"a": entry(0, 24, [2.0, 3])}, bytes(24), None, r"is not a shape of whole numbers"),
        ({"a": entry(0, 4, [True])}, bytes(4), None, r"\[True\] is not a shape"),
        ({"a": entry(0, 0, [2**40, 2**40, 0])}, b"", None, r"is a shape of 2\*\*63 bytes or more"),
        ({"a": entry(0, 4, [1] * 65)}, bytes(4), None, r"is not a shape of at most 64 whole numbers"),
        ({"a": entry(0, 4, "1")}, bytes(4), None, r"is not a shape of at most 64"),
        ({"a": entry(0, 4, [1], "F33")}, bytes(4), None, r"F33 is not a dtype of the format; did you mean F32"),
        ({"a": entry(0, 4, [1], 7)}, bytes(4), None, r"7 is not a dtype of the format"),
        ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), None, r"a: has no data_offsets of two whole numbers"),
        ({"a": {**entry(0, 4, [1]), "data_offsets": [0, 4.0]}}, bytes(4), None, r"are not data_offsets of two whole numbers"),
        ({"a": {**entry(0, 4, [1]), "data_offsets": [0, True]}}, bytes(1), None, r"are not data_offsets of two whole numbers"),
        ({"a": {**entry(0, 4, [1]), "data_offsets": [-4, 0]}}, bytes(4), None, r"are not data_offsets of two whole numbers"),
        ({"a": {**entry(0, 4, [1]), "data_offsets": [0, 2**70]}}, bytes(4), None, r"are not data_offsets of two whole numbers"),
        ({"a": 5}, b"", None, r"a: is not a mapping of dtype, shape and data_offsets"),
        ({"a": entry(0, 4, [1]), "__metadata__": {"x": 1}}, bytes(4), None, r"__metadata__: is not a mapping"),
        ({"a": entry(0, 4, [1]), "__metadata__": "x"}, bytes(4), None, r"__metadata__: is not a mapping"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_its_reason(tmp_path, head, data, length, reason):
    """Each way a header can break the format is one error that names the file, and the reference refuses it too."""
    file = write(tmp_path / "bad.safetensors", head, data, length)
    with pytest.raises(InputError, match=reason) as refusal:
        read_header(file)
    assert str(refusal.value).startswith("model (bad.safetensors)")
    assert "\n" not in str(refusal.value)
    if "at most 64" not in reason or '"1"' in str(head):
        assert reference(file) is None


def test_a_name_given_twice_is_refused(tmp_path):
    """Two entries of one name are an error, where a plain JSON reader would keep the last and miscount."""
    one = json.dumps(entry(0, 4, [1]))
    file = write(tmp_path / "a.safetensors", f'{{"w": {one}, "w": {one}}}'.encode(), bytes(4))
    with pytest.raises(InputError, match="w is given twice in one object"):
        read_header(file)


@pytest.mark.parametrize("code", sorted({*PACKED, *FOREIGN}))
def test_formats_no_training_keeps_are_not_modelled(tmp_path, code):
    """Floats packed tighter than a byte are refused as not modelled rather than counted wrongly."""
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(code, 8)
    file = write(tmp_path / "a.safetensors", {"x": entry(0, bits, [8], code)}, bytes(bits))
    assert reference(file) == {"x": (code, (8,))}
    with pytest.raises(NotModelledError, match=f"{code} is not modelled: 'x' holds"):
        read_header(file)


@pytest.mark.parametrize("content", [b"", b"\x01", bytes(8), b"GGUF" + bytes(60), b"\x80\x02}q\x00." * 9])
def test_other_files_are_no_safetensors(tmp_path, content):
    """An empty file, a GGUF and a pickle are errors and never read as weights."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model \(x\.safetensors\)"):
        read_header(file)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    """What is not a regular file is an error at once; a pipe would otherwise wait for ever."""
    import os

    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, reason in (("none", "does not exist"), (".", "is a folder"), ("pipe.safetensors", "is not a regular file")):
        with pytest.raises(InputError, match=reason):
            read_header(tmp_path / name)


@st.composite
def heads(draw):
    """A header whose tensors follow one another, then perhaps one number or word of it changed; and the size of the data."""
    parts = draw(
        st.lists(st.tuples(st.sampled_from(["F32", "F16", "U8", "F4"]), st.lists(st.integers(0, 3), max_size=3)), max_size=4)
    )
    head, at = {}, 0
    for index, (dtype, shape) in enumerate(parts):
        numel = 1
        for extent in shape:
            numel *= extent
        size = numel // 2 if dtype == "F4" else numel * {"F32": 4, "F16": 2, "U8": 1}[dtype]
        head[f"t{index}"] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    if head and draw(st.booleans()):
        victim = head[draw(st.sampled_from(sorted(head)))]
        change = draw(st.sampled_from(["dtype", "shape", "data_offsets", "gone"]))
        if change == "dtype":
            victim["dtype"] = draw(st.sampled_from(["F64", "BOOL", "X"]))
        elif change == "gone":
            del victim[draw(st.sampled_from(sorted(victim)))]
        else:
            victim[change] = draw(st.lists(st.integers(-1, 40), min_size=1, max_size=3))
    return head, at + draw(st.sampled_from([0, 0, 0, 1, -1]))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=heads())
def test_headers_are_accepted_exactly_where_the_reference_accepts_them(tmp_path, drawn):
    """Over good headers and slightly changed ones, the two accept the same files and read the same from them."""
    head, size = drawn
    file = write(tmp_path / "x.safetensors", head, bytes(max(size, 0)))
    expected = reference(file)
    try:
        found = ours(file)
    except NotModelledError:
        assert "F4" in str(head)
    except InputError:
        assert expected is None
    else:
        assert found == expected


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_a_corrupted_file_is_never_a_crash(tmp_path, place, byte, cut):
    """A good file with one byte changed or its end cut off is read or refused; what is read, the reference reads alike."""
    raw = bytearray(write(tmp_path / "good.safetensors", GOOD, bytes(32)).read_bytes())
    raw[place % len(raw)] = byte
    file = tmp_path / "x.safetensors"
    file.write_bytes(bytes(raw[: max(0, len(raw) - cut % len(raw))]) if cut % 3 == 0 else bytes(raw))
    try:
        found = ours(file)
    except MemcalcError:
        return
    assert found == reference(file)
