"""A config with some keys replaced, however either side spells them: ``{base: gpt2, num_hidden_layers: 24}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.errors import InputError
from memcalc.families.base import Family, FamilyConfig
from memcalc.readers.keys import nested_config, settled, unknown_keys

_ABOUT = ("num_parameters", "hub", "source", "note", "name", "_name_or_path")
"""What a base says of itself as it stands, which no longer holds once a key is replaced."""


def overlaid(family: Family, base: Mapping[str, Any], changes: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The base's keys with the changes laid over them, each as it was written.

    Raises:
        InputError: a change to a key the family does not have, or to another family.
    """
    if changes.get("model_type", base.get("model_type")) != base.get("model_type"):
        rule = f"is not the base's, which is {family.model_type}"
        raise InputError(f"{path}.model_type", changes["model_type"], rule, "leave model_type out, or take another base")
    for error in unknown_keys(family.config, changes, path, family.model_type):
        raise error
    kept = {key: value for key, value in base.items() if not changes or key not in _ABOUT}
    for given, ruled_out in (("id2label", "num_labels"), ("torch_dtype", "dtype")):
        if given in changes:  # of two keys that speak of one thing, the newly written one is meant
            kept.pop(ruled_out, None)
    return _laid(family.config, kept, changes, path)


def _laid(config: type[FamilyConfig], base: Mapping[str, Any], changes: Mapping[str, Any], path: str) -> dict[str, Any]:
    below, _ = settled(config, base, path)
    above, _ = settled(config, changes, path, strict=True)
    result = {key: value for key, value in below.items() if key not in above}
    for key, value in changes.items():
        field = config.model_fields.get(key)
        inner = nested_config(field) if field is not None else None
        if inner is not None and isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            result[key] = _laid(inner, below[key], value, f"{path}.{key}")
        else:
            result[key] = value
    return result
