"""Every way a person can name a model, as one function.

======================================  ==========================================================================
``gpt2``                                a shipped config
``configs/mine.yaml``, ``config.json``  a file; so are ``model.safetensors`` and ``model.safetensors.index.json``
``checkpoints/llama``                   a folder holding one of those
``hf:org/name@revision``                the config of a repository on the Hub
``py:package.module:factory``           a live module
``params:7e9``                          a bare number of parameters
``{model_type: gpt2, …}``               a config, inline
``{base: gpt2, num_hidden_layers: 24}`` a config with some of its keys replaced
``{params: 7B}``                        a bare number of parameters
======================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from memcalc.arrays import Count
from memcalc.catalog import shipped
from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.models import Model
from memcalc.readers.config import family_of, model_from_config
from memcalc.readers.files import load_json, printable
from memcalc.readers.parsed import parsed
from memcalc.readers.paths import CONFIGS, UNREAD, WEIGHTS, Asker, Found, exists, file_in, from_file, placed
from memcalc.records import replace
from memcalc.tensors import Tensor
from memcalc.units import parse_count

_WAYS = "a path, hf:org/name or py:package.module:factory"
_MAX_BASES = 8
"""How many configs may stand on one another; more is a circle."""


def read_model(
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    path: str = "model",
    allow_code: bool = True,
    app_dir: Path | None = None,
    base_dir: Path | None = None,
) -> Model:
    """The model a source names; see the table above.

    Args:
        source: a name, a path, a prefixed reference, or a mapping.
        path: what errors call the value.
        allow_code: whether ``py:``, which runs code, may be followed.
        app_dir: the folder put on the import path for ``py:``; the current one by default.
        base_dir: the folder relative paths start from; the current one by default.

    Raises:
        InputError: nothing of that name, or something that breaks a rule.
        MissingPackageError: the source needs a package that is not installed.
        NotModelledError: tensors of a kind memcalc cannot count.

    >>> read_model({"params": "7B"}).num_parameters
    7000000000
    """
    found = _find(source, Asker(path, allow_code, app_dir, base_dir))
    if isinstance(found, Model):
        return found
    model = model_from_config(found.config, name=found.name, path=path, strict=found.strict)
    return replace(model, assumptions=(*model.assumptions, *found.remarks))


def _find(source: object, asker: Asker) -> Found | Model:
    if isinstance(source, Mapping):
        return _from_mapping(source, asker)
    if isinstance(source, PathLike):
        return _from_path(placed(fspath(source), asker), asker)
    if not isinstance(source, str) or not source.strip():
        shown = NO_VALUE if source is None or source == "" else repr(source)
        raise InputError(asker.path, shown, "is not the name of a model", f"give a shipped name, {_WAYS}")
    text = source.strip()
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "params":
        return _flat(rest, text, asker.path)
    if colon and scheme == "hf":
        return _from_hub(rest, asker)
    if colon and scheme == "py":
        return _from_code(text, asker)
    if rest.startswith("//"):
        raise InputError(asker.path, text, "is a web address, and memcalc fetches the Hub's configs alone", "write hf:org/name")
    return _from_name(text, asker)


def _from_name(text: str, asker: Asker) -> Found | Model:
    """A shipped config, else a path that exists, else a shipped config by its name on the Hub."""
    known = shipped("models")
    name = text.lower()
    file = placed(text, asker)
    if name in known:
        found = _from_yaml(known[name], asker, name)
        if isinstance(found, Found) and exists(file):
            return found._replace(remarks=(*found.remarks, f"{text} is the shipped config; the path of that name is ./{text}"))
        return found
    if exists(file):
        return _from_path(file, asker)
    stem = name.rpartition("/")[2]
    if "/" in name and stem in known:
        found = _from_yaml(known[stem], asker, stem)
        if isinstance(found, Found) and str(found.config.get("hub", "")).lower() == name:
            return found
    if file.suffix.lower() in CONFIGS | WEIGHTS | UNREAD or text.startswith((".", "~", "/")):
        raise InputError(asker.path, text, "does not exist", "check the spelling of the path")
    near = did_you_mean(stem, known)
    hint = near if near.startswith("did you mean") else "see `memcalc list models`,"
    if text.count("/") == 1:
        hint += f" write hf:{text} if it is on the Hub,"
    raise InputError(asker.path, text, "is neither a shipped model nor a path", f"{hint} or give {_WAYS}")


def _from_path(file: Path, asker: Asker) -> Found | Model:
    if exists(file) and file.is_dir():
        file = file_in(file, asker)
    if file.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(file, asker, file.stem)
    return from_file(file, asker)


def _from_yaml(file: Path, asker: Asker, name: str) -> Found | Model:
    written: Any = parsed(file)
    if written is None:
        from memcalc.readers.yaml import load_yaml

        written = load_yaml(file, str(file))
    if not isinstance(written, dict):
        raise InputError(str(file), NO_VALUE, "holds no mapping of keys", "write model_type and the keys of its config.json")
    return _from_mapping(written, asker._replace(base_dir=file.parent), name)


def _from_mapping(written: Mapping[str, Any], asker: Asker, name: str = "") -> Found | Model:
    """A mapping that says ``params``, ``base`` or ``model_type``."""
    called = written.get("name", name)
    if not isinstance(called, str):
        raise InputError(f"{asker.path}.name", called, "is not text", "put it in quotes")
    if "params" in written:
        extra = [str(key) for key in written if key not in ("params", "name")]
        if extra:
            raise InputError(f"{asker.path}.{extra[0]}", NO_VALUE, "is not a key beside params", "a bare size has name alone")
        return _flat(written["params"], called or f"params:{written['params']}", f"{asker.path}.params")
    if "base" in written:
        return _on_base(written, called, asker)
    if "model_type" not in written:
        keys = f", but {', '.join(str(key) for key in list(written)[:4])}" if written else ""
        way_out = "give model_type and the keys of its config.json, base and what differs from it, or params"
        if "model" in written or "jobs" in written:
            way_out = f"{way_out}; a file of jobs is for memcalc check"
        raise InputError(asker.path, NO_VALUE, f"says neither model_type nor base nor params{keys}", way_out)
    # transformers signs what it writes, and what it writes holds whatever a training script put there
    called = called or str(written.get("_name_or_path") or written["model_type"])
    return Found(written, called, strict="transformers_version" not in written)


def _on_base(written: Mapping[str, Any], called: str, asker: Asker) -> Found:
    """The config of ``base`` with the other keys laid over it."""
    where, named = f"{asker.path}.base", written["base"]
    if asker.depth >= _MAX_BASES:
        raise InputError(where, named, "is part of a circle of bases", "let one of them stand alone")
    bare = isinstance(named, str) and named.strip().startswith(("py:", "params:"))  # no code runs to find that out
    base = None if bare else _find(named, asker._replace(path=where, depth=asker.depth + 1))
    if base is None or isinstance(base, Model):
        raise InputError(where, named, "has no config whose keys could be replaced", "name a config")
    changes = {key: value for key, value in written.items() if key not in ("base", "name")}
    from memcalc.readers.overlay import overlaid

    config = overlaid(family_of(base.config, where), base.config, changes, asker.path)
    changed = ", ".join(f"{key}={value}" for key, value in changes.items() if key not in ("hub", "source", "note"))
    return base._replace(config=config, name=called or (f"{base.name} with {changed}" if changed else base.name))


def _from_hub(reference: str, asker: Asker) -> Found:
    from memcalc.readers.hub import fetch_config

    config = load_json(fetch_config(reference, asker.path), asker.path)
    if not isinstance(config, dict):
        raise InputError(asker.path, f"hf:{reference}", "has a config.json that holds no mapping of keys", "name another")
    return Found(config, reference.partition("@")[0], strict=False)


def _from_code(text: str, asker: Asker) -> Model:
    if not asker.allow_code:
        raise InputError(asker.path, text, "runs code, which a file may not ask for by itself", "trust it with --allow-code")
    from memcalc.runtime.module import model_from_module
    from memcalc.runtime.target import load_target

    loaded = load_target(text, asker.app_dir, path=asker.path)
    return model_from_module(loaded.module, name=loaded.name, assumptions=loaded.assumptions, path=asker.path)


def find_config(
    source: object, *, path: str = "model", allow_code: bool = True, app_dir: Path | None = None, base_dir: Path | None = None
) -> Found | Model:
    """The config a source names, not yet built; the model itself where it has no config. As :func:`read_model`."""
    return _find(source, Asker(path, allow_code, app_dir, base_dir))


def _flat(count: Any, name: str, path: str) -> Model:
    """A model of which only the number of parameters is known."""
    return bare_model(parse_count(count, path), name)


def bare_model(count: Count, name: str) -> Model:
    """A model of which only the number of parameters is known, which may be an array: one flat tensor."""
    tensor = Tensor("parameters", (count,), kind="linear")
    return Model(
        name=printable(name), family="params", tensors=(tensor,), shapes_known=False,
        assumptions=("a bare size is one flat tensor, read by matrix multiplications: no shapes, no buffers, no activations",),
    )  # fmt: skip
