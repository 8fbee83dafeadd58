"""An optimizer's words in a published run, turned into its entry of the registry; None where they do not mean one thing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Optimizer(NamedTuple):
    """As the registry has it."""

    name: str
    arguments: dict[str, Any]


OTHERS = re.compile(r"offload|lpmm|torchao|galore|lomo|deepspeed", re.IGNORECASE)
"""Words of optimizers that are none of those below, whatever class they name besides."""
WHOLE: Sequence[tuple[str, tuple[str, dict[str, Any]]]] = (
    (r"AdamW \(HF Trainer default adamw_hf\)$", ("torch:AdamW", {"foreach": False})),
    (r"torch\.optim\.AdamW \(foreach or fused depending on commit", ("torch:AdamW", {})),
    (r"(?:AdamW \()?adamw_torch\)?$", ("torch:AdamW", {})),
    (r"(?:AdamW \()?adamw_torch_fused\)?$", ("torch:AdamW", {"fused": True})),
    (r"(?!torch).*\badafactor\b", ("transformers:Adafactor", {})),
    (r"Megatron mixed-precision Adam", ("torch:Adam", {})),
)
"""Words that are read as one; ``adamw_hf`` took tensors one by one, as foreach=False does, and ``adamw_torch`` is torch's own
class (transformers training_args.py:OptimizerNames, trainer.py:get_optimizer_cls_and_kwargs)."""
TORCH = re.compile(r"(?:torch\.optim\.|torch )?(AdamW|Adam|SGD|Adagrad|Adamax|NAdam|RAdam|RMSprop|Adadelta)\b(.*)$")
BITSANDBYTES = re.compile(r"\b(Paged)?(AdamW|Adam|Lion|SGD|RMSprop|Adagrad|LAMB|LARS|AdEMAMix)(8bit|32bit)?\b", re.IGNORECASE)
SPELLED = {name.lower(): name for name in ("AdamW", "Adam", "Lion", "SGD", "RMSprop", "Adagrad", "LAMB", "LARS", "AdEMAMix")}
OPTIONS: Mapping[str, dict[str, Any]] = {
    r"\[p\]": {}, r"default foreach|foreach default|foreach=None": {}, r"foreach(?:=True)?": {"foreach": True},
    r"foreach=False|for-loop": {"foreach": False}, r"fused(?:=True)?": {"fused": True}, r"fused=False": {},
    r"amsgrad(?:=True)?": {"amsgrad": True}, r"(?:lr|eps|weight_decay|betas)=(?:\([^)]*\)|[\w.e-]+)": {},
}  # fmt: skip
"""What may stand after a class of torch's, and what it means of its arguments; anything else is not known."""
MOMENTUM = re.compile(r"momentum[ =](\d*\.?\d+)")
_SAID = "fused|stepped|run|applied|updated|optimizer|step|and|one|instance|each|a|per parameter|by|via|with"
IN_BACKWARD = re.compile(
    rf"[\s,;+(]*(?:\b(?:{_SAID})\b\s*)*"
    r"(?:per parameter|(?<!not )(?:\b|\boptim(?:izer)?[_-])in(?:to)?[ _-](?:the )?(?:backward|bwd)\b"
    r"|(?:\bin(?:to)? (?:a )?)?\bpost[ _]accumulate)",
    re.IGNORECASE,
)
"""An update within backward: in a hook on a parameter's gradient, one instance of the class for each parameter (torchtune
1814feb1 recipes/full_finetune_single_device.py:_setup_optimizer, as its optimizer_in_bwd asks; pytorch/tutorials 2a488705
intermediate_source/optimizer_step_in_backward_tutorial.py)."""


def in_backward(words: str) -> bool:
    """Whether parameters are updated as their gradients come.

    >>> in_backward("AdamW fused into backward"), in_backward("torch.optim.AdamW(fused=True)")
    (True, False)
    """
    return IN_BACKWARD.search(words) is not None


def optimizer_of(words: str, *, one_by_one: bool = False) -> Optimizer | None:
    """The entry of the registry that an optimizer's words mean, an update within backward aside.

    Args:
        words: as the record has them.
        one_by_one: whether torch's classes take tensors one by one by default, as they did before 2.0.

    >>> optimizer_of("torch.optim.Adam([p], foreach=False) per parameter in post_accumulate_grad hook")
    Optimizer(name='torch:Adam', arguments={'foreach': False})
    >>> optimizer_of("bnb.optim.PagedAdamW (32-bit paged)").name, optimizer_of("8-bit AdamW fused into backward")
    ('bitsandbytes:PagedAdamW', None)
    """
    if OTHERS.search(words):
        return None
    words = IN_BACKWARD.split(words, maxsplit=1)[0].strip()
    if re.search(r"\bbnb\b|bitsandbytes", words, re.IGNORECASE):
        return _of_bitsandbytes(words)
    for pattern, (name, arguments) in WHOLE:
        if re.match(pattern, words, re.IGNORECASE):
            return Optimizer(name, _dated(name, arguments, one_by_one=one_by_one))
    return _of_torch(words, one_by_one=one_by_one)


def _dated(name: str, arguments: Mapping[str, Any], *, one_by_one: bool) -> dict[str, Any]:
    plain = one_by_one and name.startswith("torch:") and not {"foreach", "fused"} & set(arguments)
    return {**arguments, "foreach": False} if plain else dict(arguments)


def _of_bitsandbytes(words: str) -> Optimizer | None:
    """Its class, in 8 bits or paged where the class's name or the words say so; two classes are no one."""
    found = {(SPELLED[name.lower()], bits.lower(), paged) for paged, name, bits in BITSANDBYTES.findall(words)}
    if len(found) != 1:
        return None
    name, bits, paged = found.pop()
    if not bits and re.search(r"\b8[- ]?bits?\b|optim_bits=8", words, re.IGNORECASE):
        bits = "8bit"
    before = "Paged" if paged or re.search(r"\bpaged\b", words, re.IGNORECASE) else ""
    return Optimizer(f"bitsandbytes:{before}{name}{bits}", {})


def _of_torch(words: str, *, one_by_one: bool) -> Optimizer | None:
    match = TORCH.match(words)
    if match is None:
        return None
    name, rest = f"torch:{match[1]}", match[2]
    arguments: dict[str, Any] = {}
    momentum = MOMENTUM.search(rest)
    if momentum:
        arguments["momentum"] = float(momentum[1])
        rest = rest.replace(momentum[0], "")
    for said in re.findall(r"(?:\w+=\([^)]*\)|[^\s,;()])+(?: (?:default|foreach)\b)?", rest):
        meant = next((value for pattern, value in OPTIONS.items() if re.fullmatch(pattern, said)), None)
        if meant is None:
            return None
        arguments |= meant
    return Optimizer(name, _dated(name, arguments, one_by_one=one_by_one))
