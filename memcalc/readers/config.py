"""From a ``config.json`` mapping to a model: spellings settled, family found, values checked, layers composed.

Complete configs (``to_dict``), configs reduced to what differs from the defaults (``to_diff_dict``) and the older
spellings on the Hub read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from memcalc.errors import InputError, did_you_mean
from memcalc.families.base import Family, FamilyConfig, load_family
from memcalc.models import Model


def model_from_config(config: Mapping[str, Any], *, name: str = "", path: str = "model") -> Model:
    """The model a Hugging Face config describes.

    Raises:
        InputError: no ``model_type``, an unknown one, an architecture the family does not have, a value that breaks a rule.

    >>> model_from_config({"model_type": "llama", "num_hidden_layers": 1}).num_parameters
    464531456
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{path}.model_type", model_type, "is not the name of a family", "name one, as model_type: llama")
    family = load_family(model_type, f"{path}.model_type")
    validated = validate(family, config, path)
    architecture, assumptions = chosen_architecture(family, config, path)
    return build_model(family, validated, architecture, name=name or str(config.get("_name_or_path") or model_type),
                       dtype=stored_dtype(config), assumptions=assumptions)  # fmt: skip


def build_model(
    family: Family, config: FamilyConfig, architecture: str, *, name: str, dtype: str | None, assumptions: tuple[str, ...] = ()
) -> Model:
    """The model of a validated config; its numbers may be arrays."""
    built = family.build(config, architecture)
    return Model(
        name=name, family=family.model_type, architecture=architecture, tensors=tuple(built.root.tensors()), tied=built.tied,
        root=built.root, config=config, dtype=dtype, assumptions=assumptions,
    )  # fmt: skip


def validate(family: Family, config: Mapping[str, Any], path: str) -> FamilyConfig:
    """The family's own view of the config, older spellings translated."""
    values = dict(config)
    for alias, key in family.config.aliases.items():
        if alias in values and (values.get(key) is None or key not in values):
            values[key] = values[alias]
    if "num_labels" not in values and isinstance(values.get("id2label"), Mapping):
        # transformers writes the labels' names and not their number (configuration_utils.py: PretrainedConfig.num_labels)
        values["num_labels"] = len(values["id2label"])
    try:
        return family.config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (path, *first["loc"]))
        raise InputError(
            where, first["input"], f"breaks a rule: {first['msg'].lower()}", "see the model's config.json"
        ) from None


def chosen_architecture(family: Family, config: Mapping[str, Any], path: str) -> tuple[str, tuple[str, ...]]:
    """The class that ``architectures`` names, or the family's usual one with a word on having assumed it."""
    named = config.get("architectures") or ()
    if not named:
        return family.usual, (f"architecture {family.usual}, the usual one of {family.model_type}: the config names none",)
    if named[0] not in family.architectures:
        raise InputError(
            f"{path}.architectures", named[0], f"is not one memcalc builds for {family.model_type}",
            did_you_mean(str(named[0]), family.architectures),
        )  # fmt: skip
    return str(named[0]), ()


def stored_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype the checkpoint is stored in (``torch_dtype`` before transformers 5, ``dtype`` since)."""
    dtype = config.get("dtype", config.get("torch_dtype"))
    return dtype.removeprefix("torch.") if isinstance(dtype, str) else None
