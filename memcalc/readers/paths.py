"""Paths that name a model: where they start from, and which file a folder means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memcalc.errors import NO_VALUE, InputError
from memcalc.models import Model
from memcalc.readers.files import load_json

CONFIGS = frozenset({".yaml", ".yml", ".json"})
WEIGHTS = frozenset({".safetensors"})
UNREAD = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".ggml", ".h5", ".onnx", ".msgpack"})
"""Weights in formats memcalc does not open, most of them because reading one runs code."""


class Found(NamedTuple):
    """A config, not yet built.

    Attributes:
        config: its keys.
        name: what to call the model.
        strict: whether it was written for memcalc, so that an unknown key is a mistake.
        remarks: what had to be assumed to find it.
    """

    config: Mapping[str, Any]
    name: str
    strict: bool
    remarks: tuple[str, ...] = ()


class Asker(NamedTuple):
    """How a source is to be read.

    Attributes:
        path: what errors call the value.
        allow_code: whether ``py:`` may be followed.
        app_dir: the folder put on the import path for it.
        base_dir: the folder relative paths start from.
        depth: how many configs already stand on this one.
    """

    path: str
    allow_code: bool
    app_dir: Path | None
    base_dir: Path | None
    depth: int = 0


def placed(text: str, asker: Asker) -> Path:
    """The path that a text means, relative ones from the asker's folder."""
    try:
        if "\0" in text:
            raise ValueError
        return (asker.base_dir or Path()) / Path(text).expanduser()
    except (ValueError, RuntimeError):  # expanduser does not know the user that ~name names
        raise InputError(asker.path, repr(text), "is not a path", "check its spelling") from None


def exists(file: Path) -> bool:
    """Whether something lies there; a name too long for the file system names nothing."""
    try:
        return file.exists()
    except OSError:
        return False


def file_in(folder: Path, asker: Asker) -> Path:
    """The file a folder means: its config, else its index, else its one file of weights.

    Raises:
        InputError: it holds none of them, or several and nothing that tells which.
    """
    for name in ("config.json", "model.safetensors.index.json", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    weights = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    if len(weights) == 1:
        return weights[0]
    if weights:
        rule = f"holds {len(weights)} files of weights and neither config.json nor one index"
        raise InputError(asker.path, str(folder), rule, f"name one of them, as {weights[0]}")
    rule = "holds neither a config.json nor .safetensors files"
    raise InputError(asker.path, str(folder), rule, "name a folder that does, or a file")


def from_file(file: Path, asker: Asker) -> Found | Model:
    """The model of a ``config.json``, of an index or of a safetensors file; YAML is read elsewhere.

    Raises:
        InputError: another kind of file, or one that holds something else.
    """
    from memcalc.readers import checkpoint

    suffix = file.suffix.lower()
    if suffix in WEIGHTS:
        return checkpoint.model_from_safetensors(file, path=asker.path)
    if suffix != ".json":
        rule = "is weights in a format memcalc does not open" if suffix in UNREAD else "is not a kind of file memcalc reads"
        raise InputError(asker.path, str(file), rule, "give a config.json, a .yaml, or weights as .safetensors")
    if file.name.endswith(".index.json"):
        return checkpoint.model_from_index(file, path=asker.path)
    config = load_json(file, asker.path)
    if not isinstance(config, dict):
        raise InputError(f"{asker.path} ({file})", NO_VALUE, "holds no mapping of keys", "give a model's config.json")
    if "weight_map" in config:
        return checkpoint.model_from_index(file, path=asker.path)
    written = config.get("_name_or_path")
    folder = file.resolve().parent.name if file.name == "config.json" else file.stem
    return Found(config, written if isinstance(written, str) and written else folder, strict=False)
