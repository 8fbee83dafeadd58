"""What there is to choose from, as rows: models, optimizers, GPUs, precisions, implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.errors import InputError, did_you_mean

Row = dict[str, Any]


def rows(kind: str, containing: str = "") -> list[Row]:
    """Every entry of a kind whose row contains the text, in any column.

    Raises:
        InputError: no such kind.
    """
    if kind not in KINDS:
        raise InputError("list", kind, "is not something memcalc lists", did_you_mean(kind, KINDS))
    wanted = containing.lower()
    return [row for row in KINDS[kind]() if wanted in " ".join(str(value) for value in row.values()).lower()]


def _models() -> list[Row]:
    """Every shipped model; its count is the one its file states, which reading the model holds it to, else it is built."""
    from memcalc.catalog import shipped
    from memcalc.readers.source import read_model
    from memcalc.readers.yaml import load_yaml

    listed = []
    for name, path in sorted(shipped("models").items()):
        stated = load_yaml(path)
        count = stated.get("num_parameters") or int(read_model(name).num_parameters)
        kind = {"family": stated["model_type"], "architecture": stated["architectures"][0]}
        listed.append({"name": name, **kind, "parameters": count})
    return listed


def _optimizers() -> list[Row]:
    from memcalc.optimizers.names import SHORT_NAMES, all_optimizers

    short: dict[str, list[str]] = {}
    for name, full in SHORT_NAMES.items():
        short.setdefault(full, []).append(name)
    return [
        {"name": entry.name, "short": ", ".join(short.get(entry.name, ())), "keeps": entry.summary, "source": entry.source}
        for entry in all_optimizers().values()
    ]


def _gpus() -> list[Row]:
    from memcalc.devices import all_devices

    return [
        {"name": device.name, "vendor": device.vendor, "total": device.total_bytes, "usable": device.usable_bytes}
        for device in all_devices()
    ]


def _precisions() -> list[Row]:
    from memcalc.precision import SCHEMES

    return [
        {
            "name": scheme.name,
            "parameters": scheme.parameter or "as stored",
            "masters": scheme.master or "none",
            "copies": scheme.copy or "none",
            "what": scheme.summary,
        }
        for _, scheme in SCHEMES.items()
    ]


def _implementations() -> list[Row]:
    from memcalc.implementations import KNOWN, USUAL, load_implementation

    usual = {"name": USUAL, "arguments": "", "what": "every family's own code", "source": "transformers 5.23.0"}
    found = [load_implementation(name) for name in KNOWN]
    return [usual, *({"name": each.name, "arguments": ", ".join(each.arguments), "what": each.summary, "source": each.source}
                     for each in found)]  # fmt: skip


KINDS: dict[str, Callable[[], list[Row]]] = {
    "optimizers": _optimizers,
    "models": _models,
    "gpus": _gpus,
    "precisions": _precisions,
    "implementations": _implementations,
}
