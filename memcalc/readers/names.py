"""What a stored tensor is, guessed from its name and shape alone: which operator reads it, and whether it is a buffer.

A checkpoint says neither. The guesses follow how PyTorch modules name what they register, and where a name says nothing the
kind is ``other``; they are held to the modules themselves, for every family memcalc knows, by a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from memcalc.tensors import Kind, Tensor

BUFFERS = frozenset(
    {
        "cos_cached", "sin_cached", "embed_positions",  # rotary and sinusoidal tables; *inv_freq besides
        "embed_scale",  # transformers, models/gemma/modeling_gemma.py
        "masked_bias", "causal_mask", "relative_position_index",  # masks and what they are built from
        "position_ids", "token_type_ids",  # constant inputs (transformers, models/bert/modeling_bert.py)
        "running_mean", "running_var", "num_batches_tracked",  # torch/nn/modules/batchnorm.py
        "final_logits_bias",  # transformers, models/bart/modeling_bart.py
        "e_score_correction_bias",  # transformers, models/deepseek_v3/modeling_deepseek_v3.py
    }
)  # fmt: skip
"""Last words of the names of buffers."""
_NORM = re.compile(r"norm|(?:^|_)(?:ln|bn|gn)(?:_|\d|$)", re.IGNORECASE)
_EMBEDDING = re.compile(r"(?:^|_)(?:embed(?:s|dings?)?|wte|wpe)(?:_tokens|_positions|_in)?$|^shared$|^relative_attention_bias$")
_HEAD = re.compile(r"head|predict|decoder|project|classifier")
"""Words for the module whose matrix is tied to the embedding, so that a checkpoint holds its bias alone."""
_MATRIX = re.compile(r"(?:^|_)proj(?:ection)?_(?:weight|bias)$")
"""Matrices registered bare (torch/nn/modules/activation.py MultiheadAttention ``in_proj_weight``; transformers gemma3)."""
_RECURRENT = frozenset({"A_log", "D", "dt_bias"})
"""A state-space layer's own parameters (transformers, models/mamba/modeling_mamba.py)."""


class Stored(NamedTuple):
    """A tensor as a checkpoint lists it, or all that share a name but for its indices, which are then ``*``."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def ambiguous_owners(listed: Iterable[Stored]) -> set[str]:
    """Names of modules, ``*`` for their indices, of which some may hold a weight of one kind and some of another."""
    kinds: dict[str, set[Kind]] = {}
    for stored in listed:
        if stored.name.endswith(".running_mean"):  # which of them are batch norms only the full names tell
            kinds.setdefault(stored.name.rpartition(".")[0], set()).add("batch_norm")
        for owner, kind in _owners([stored]).items():
            kinds.setdefault(owner, set()).add(kind)
    return {owner for owner, found in kinds.items() if len(found) > 1}


def described(stored: Iterable[Stored]) -> list[Tensor]:
    """Each stored tensor with the kind and role its name and shape suggest; only floating-point parameters train.

    >>> [(t.kind, t.role) for t in described([Stored("h.0.ln_1.weight", (8,), "float32")])]
    [('norm', 'parameter')]
    >>> [(t.kind, t.role) for t in described([Stored("h.0.attn.bias", (1, 1, 16, 16), "float32")])]
    [('other', 'buffer')]
    """
    listed = list(stored)
    owners = _owners(listed)
    tensors = []
    for name, shape, dtype in listed:
        if is_buffer(name, shape, dtype):
            tensors.append(Tensor(name, shape, dtype, role="buffer"))
            continue
        trainable = dtype.startswith(("float", "bfloat", "complex"))
        tensors.append(Tensor(name, shape, dtype, kind=kind_of(name, shape, owners), trainable=trainable))
    return tensors


def is_buffer(name: str, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor of that name is one modules register as a buffer."""
    owner, _, leaf = name.rpartition(".")
    if leaf in BUFFERS or leaf.endswith("inv_freq") or name == "rope.freqs":
        return True
    # gpt2, gpt_neo and gpt_bigcode keep a causal mask under the name ``bias``
    square = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return leaf == "bias" and (dtype == "bool" or (square and owner.endswith(("attn", "attention"))))


def kind_of(name: str, shape: tuple[int, ...], owners: dict[str, Kind]) -> Kind:
    """The operator that reads a parameter."""
    owner, _, leaf = name.rpartition(".")
    if leaf in _RECURRENT:
        return "recurrent"
    if re.search(r"(?:^|\.)experts$", owner):
        return "expert" if len(shape) >= 2 else "other"
    if _MATRIX.search(leaf):
        return "linear"
    if leaf == "bias" and owner not in owners and _HEAD.search(owner.rpartition(".")[2]):
        return "linear"
    if leaf in ("weight", "bias"):
        return owners.get(owner, "other")
    return "other"


def _owners(listed: list[Stored]) -> dict[str, Kind]:
    """The kind of each module that holds a ``weight``, by the module's name."""
    counted = {name.rpartition(".")[0] for name, _, _ in listed if name.endswith("running_mean")}
    kinds: dict[str, Kind] = {}
    for name, shape, _ in listed:
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight":
            kinds[owner] = "batch_norm" if owner in counted else _module_kind(owner, len(shape))
    return kinds


def _module_kind(owner: str, rank: int) -> Kind:
    # in a list of modules the list's name speaks
    word = next((part for part in reversed(owner.split(".")) if part != "*" and not part.isdigit()), "")
    if rank <= 2 and _NORM.search(word):
        return "norm"
    if rank <= 1:
        return "other"
    if rank == 2:
        return "embedding" if _EMBEDDING.search(word) else "linear"
    if "conv" in word or rank >= 4:
        return "conv"
    return "other"
