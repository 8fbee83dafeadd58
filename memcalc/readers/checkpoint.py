"""A checkpoint as a model: one safetensors file, or the shards an index lists; headers only, never a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memcalc.errors import NO_VALUE, InputError, MemcalcError
from memcalc.models import Model
from memcalc.readers.files import MAX_INDEX, load_json, printable
from memcalc.readers.grouping import gather, group_tensors, split_name, spread
from memcalc.readers.names import Stored, ambiguous_owners, described
from memcalc.readers.safetensors import Entry, read_header
from memcalc.tensors import Tensor

_FETCH = "fetch the index and every shard of one revision"


def model_from_safetensors(file: Path, *, name: str = "", path: str = "model") -> Model:
    """The model stored in one file; ``file.stem`` or a ``config.json`` beside it names it.

    Raises:
        InputError: not a safetensors file, or a damaged one.
    """
    entries = read_header(file, path).entries
    return _model(entries, file, name=name, path=path)


def model_from_index(file: Path, *, name: str = "", path: str = "model") -> Model:
    """The model whose tensors an index (``model.safetensors.index.json``) spreads over shards in its own folder.

    Raises:
        InputError: a shard that is missing or damaged, an entry that leads out of the folder, a tensor that lies in another
            shard than the index says or in none, or a ``total_size`` that is not the shards' sum.
    """
    index = load_json(file, path, MAX_INDEX)
    at = f"{path} ({file.name})"
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(at, NO_VALUE, "holds no weight_map", "name a model.safetensors.index.json")
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        listed = shards.get(shard) if isinstance(shard, str) else None
        if listed is None:
            _require_plain(tensor, shard, at)
            listed = shards.setdefault(shard, set())
        listed.add(tensor)
    held: dict[str, list[Entry]] = {}
    for shard in sorted(shards):
        if not (file.parent / shard).is_file():
            raise InputError(at, shard, f"is a shard that is not in {file.parent}", _FETCH)
        held[shard] = read_header(file.parent / shard, path).entries
    _require_agreement(shards, held, at)
    entries = [entry for shard in sorted(held) for entry in held[shard]]
    _require_total(index.get("metadata"), entries, at)
    return _model(entries, file, name=name, path=path)


def _require_plain(tensor: str, shard: Any, at: str) -> None:
    """That a shard is a file's name and nothing that leads elsewhere."""
    if not isinstance(shard, str):
        raise InputError(f"{at} {tensor}", shard, "is not the name of a shard", _FETCH)
    if shard in ("", ".", "..") or any(sign in shard for sign in "/\\:\0"):
        raise InputError(f"{at} {tensor}", shard, "is not the name of a file in the index's own folder", _FETCH)
    if not shard.endswith(".safetensors"):
        way_out = "convert the checkpoint to safetensors: memcalc opens no file whose reading runs code"
        raise InputError(f"{at} {tensor}", shard, "is not a safetensors file", way_out)


def _require_agreement(shards: Mapping[str, set[str]], held: Mapping[str, list[Entry]], at: str) -> None:
    """That every tensor lies in the shard the index names, and nowhere else."""
    if all({entry.name for entry in held[shard]} == tensors for shard, tensors in shards.items()):
        return
    found: dict[str, str] = {}
    for shard, entries in held.items():
        for entry in entries:
            if entry.name in found:
                raise InputError(at, entry.name, f"lies in both {found[entry.name]} and {shard}", _FETCH)
            found[entry.name] = shard
    for shard, tensors in shards.items():
        for tensor in sorted(tensors):
            if found.get(tensor) != shard:
                where = f"lies in {found[tensor]}" if tensor in found else "lies in no shard"
                raise InputError(at, tensor, f"{where}, not in {shard} as the index says", _FETCH)
    stray = min(name for name, shard in found.items() if name not in shards[shard])
    raise InputError(at, stray, f"lies in {found[stray]} and is not in the index", _FETCH)


def _require_total(metadata: Any, entries: Iterable[Entry], at: str) -> None:
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    held = sum(entry.nbytes for entry in entries)
    if total is not None and total != held:  # older writers stored a float, which is equal where it is right
        raise InputError(f"{at} metadata.total_size", total, f"is not the {held} bytes its shards hold", _FETCH)


def _model(entries: list[Entry], file: Path, *, name: str, path: str) -> Model:
    if not entries:
        raise InputError(f"{path} ({file.name})", NO_VALUE, "holds no tensors", "name the file with the weights")
    tensors = _grouped(entries, path)
    assumptions = ["kinds of tensors are guessed from their names and shapes, which is all a checkpoint says of them"]
    buffers = sorted({tensor.name.rpartition(".")[2] for tensor in tensors if tensor.role == "buffer"})
    if buffers:
        assumptions.append(f"tensors named {', '.join(buffers)} are buffers")
    if any(not tensor.trainable and tensor.role == "parameter" for tensor in tensors):
        assumptions.append("parameters of whole numbers or truth values receive no gradient")
    called, architecture, remark = _beside(file)
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.dtype] += int(tensor.nbytes * tensor.count)
    return Model(
        name=printable(name or called), family="safetensors", architecture=architecture, tensors=tensors,
        dtype=weights.most_common(1)[0][0], assumptions=(*assumptions, *remark),
    )  # fmt: skip


def _grouped(entries: list[Entry], path: str) -> tuple[Tensor, ...]:
    """The tensors counted. Names are told apart by their patterns first, so that each kind is guessed once and not for every
    layer; where one pattern hides modules of several kinds, each name is looked at alone.
    """
    groups = gather(((entry.name, (entry.shape, entry.dtype)) for entry in entries), path)
    patterns = {Stored(pattern, *alike): indices for (pattern, alike), indices in groups.items()}
    mixed = ambiguous_owners(patterns)
    plain = [stored for stored in patterns if stored.name.rpartition(".")[0] not in mixed]
    counted = [
        tensor
        for stored, alike in zip(plain, described(plain), strict=True)
        for tensor in spread(alike, stored.name, patterns[stored])
    ]
    apart = [
        Stored(entry.name, entry.shape, entry.dtype)
        for entry in (entries if mixed else ())
        if split_name(entry.name)[0].rpartition(".")[0] in mixed
    ]
    return (*counted, *group_tensors(described(apart), path))


def _beside(file: Path) -> tuple[str, str | None, tuple[str, ...]]:
    """(name, architecture, remark) from the config beside a checkpoint; the file's own or its folder's name without one."""
    generic = file.name.startswith(("model.", "model-", "adapter_model."))
    called = file.resolve().parent.name if generic else file.name.split(".")[0]
    config = file.parent / "config.json"
    if not config.is_file():
        return called or file.stem, None, ()
    try:
        said = load_json(config, "config.json")
    except MemcalcError as error:
        return called, None, (f"the config beside the checkpoint is passed over: {error}",)
    said = said if isinstance(said, dict) else {}
    named = said.get("architectures")
    architecture = printable(named[0]) if isinstance(named, list) and named and isinstance(named[0], str) else None
    written = said.get("_name_or_path")
    return written if isinstance(written, str) and written else called, architecture, ()
