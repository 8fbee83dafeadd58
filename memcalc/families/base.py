"""What a family is: a validated config, the heads it can carry, and how it is composed from layers.

One file per ``model_type``, named after it (``deberta-v2`` is ``deberta_v2.py``), each with one ``FAMILY``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from memcalc.arrays import Count
from memcalc.errors import InputError, did_you_mean, either
from memcalc.layers.base import Layer
from memcalc.records import dataclass

Size = Annotated[int, Field(strict=True, gt=0, le=2**40)]
"""A dimension: a whole number above zero and below a trillion."""
MaybeZero = Annotated[int, Field(strict=True, ge=0, le=2**40)]
"""A count that may be none, as of token types or shared experts."""
Flag = Annotated[bool, Field(strict=True)]
"""True or false and nothing that merely looks like it."""
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
"""Of a dropout."""
Depth = Annotated[int, Field(strict=True, gt=0, le=100_000)]
"""How many layers, where several kinds alternate and the indices of each are therefore listed."""


class FamilyConfig(BaseModel):
    """The keys of a model's ``config.json`` that decide its tensors, with the defaults of the class in transformers.

    Keys that decide nothing (``rope_theta``, ``bos_token_id``) are not declared and are passed over.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings found on the Hub, each with the key it stands for."""
    divides: ClassVar[tuple[tuple[str, str], ...]] = (
        ("num_attention_heads", "hidden_size"),
        ("num_key_value_heads", "num_attention_heads"),
    )
    """Pairs of keys whose first must divide the second, or the module fails to build or to run; keys that a family lacks or
    a config leaves out are passed over. A family that transformers builds with any number of heads says so here."""

    num_labels: MaybeZero = 2
    """Classes of a classification head (transformers configuration_utils.py: PretrainedConfig.num_labels defaults to 2)."""

    def check(self) -> tuple[str, str, str] | None:
        """The first rule between keys that one job's config breaks, as (key, rule, way out); None where all hold.

        Numbers are ints here: a config is checked before it is stacked with others. A family with further rules adds them.
        """
        for divisor, whole in self.divides:
            part, amount = getattr(self, divisor, None), getattr(self, whole, None)
            if isinstance(part, int) and isinstance(amount, int) and amount % part:
                near = sorted((n for n in range(1, min(amount, 4096) + 1) if amount % n == 0), key=lambda n: abs(n - part))[:2]
                return divisor, f"does not divide {whole} = {amount}", f"use {either([str(n) for n in sorted(near)])}"
        return None


TEXT = frozenset({"sequence_length"})
IMAGE = frozenset({"image_size"})
PAIRS = frozenset({"sequence_length", "source_length"})
"""What a family reads: tokens, an image, or a source that an encoder reads beside the decoder's tokens."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model, built: the tree of layers, and which names share another's storage."""

    root: Layer
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """A ``model_type``.

    Attributes:
        model_type: Hugging Face's key.
        config: the keys that decide the tensors.
        architectures: the class names it can build.
        usual: the one meant when a config names none.
        build: makes the layers of one of them.
        source: where the shapes were read.
        inputs: the settings of a job that size what it reads.
        attends: whether it has attention at all.
        play: runs a training forward on shapes: (machine, architecture's name, config, root, batch) -> (loss, what the output
            holds besides); None where only the tensors are known.
        caches: whether it runs with a cache of keys and values too, where the machine has one: it then gives the logits of the
            last position in place of a loss.
        options: what ``implementation_args`` may say of transformers' code, by key of the config, each with its values.
        idle: the modules that a training step does not reach, whose parameters get no gradient: of (config, architecture's
            name, whether images are read).
        places: how many positions it has, by the setting that sizes a sequence, of (config, architecture's name); None where
            nothing ends: rotary positions and biases are made as far as they are read.
        recast: the modules whose weights autocast casts anew at each use and keeps no copy of, by config.
    """

    model_type: str
    config: type[FamilyConfig]
    architectures: tuple[str, ...]
    usual: str
    build: Callable[[Any, str], Architecture]
    source: str
    inputs: frozenset[str] = TEXT
    attends: bool = True
    play: Callable[..., tuple[Any, Any]] | None = None
    caches: bool = False
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    idle: Callable[[Any, str, bool], tuple[str, ...]] | None = None
    recast: Callable[[Any], tuple[str, ...]] | None = None
    places: Callable[[Any, str], Mapping[str, Count]] | None = None


@cache
def known_families() -> list[str]:
    """Every ``model_type`` there is a file for, without importing any of them."""
    here = Path(__file__).parent
    return sorted(path.stem for path in here.glob("[a-z]*.py") if path.stem != "base")


def load_family(model_type: str, path: str = "model.model_type") -> Family:
    """The family of that ``model_type``.

    Raises:
        InputError: no such family; it is never guessed.
    """
    stem = model_type.replace("-", "_").lower()
    names = known_families()
    if stem not in names:
        way_out = did_you_mean(model_type, names)
        raise InputError(
            path, model_type, "is not a family memcalc knows",
            f"{way_out}{'' if way_out.endswith('?') else ';'} any module can be read with py:package.module:factory",
        )  # fmt: skip
    family: Family = import_module(f"memcalc.families.{stem}").FAMILY
    return family
