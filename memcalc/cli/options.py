"""The options commands share, written once, and the job they spell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.units import parse_bytes, parse_count, parse_fraction

TRAINING, RANKS, HARDWARE, OUTPUT, TRACE = "Training", "Ranks", "Hardware", "Output", "With --engine trace"
CACHE = "Keys and values"


def _option(*names: str, group: str, text: str, metavar: str | None = None, hidden: bool = False) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=group, metavar=metavar, show_default=False, hidden=hidden)


ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Shipped name, path, hf:org/name or py:module:factory.", show_default=False),
]
Params = Annotated[str | None, _option("--params", group=TRAINING, text="A bare size instead of MODEL: 7e9, 7B.", metavar="N")]
Sets = Annotated[
    list[str] | None, _option("--set", group=TRAINING, text="Of the model's config, or training.KEY.", metavar="KEY=VALUE")
]
OptimizerName = Annotated[
    str | None, _option("--optimizer", group=TRAINING, text="See list optimizers (default adam).", metavar="NAME")
]
OptimizerArgs = Annotated[
    list[str] | None,
    _option("--optimizer-arg", group=TRAINING, text="An option of the optimizer: fused=true.", metavar="KEY=VALUE"),
]
Precision = Annotated[
    str | None, _option("--precision", group=TRAINING, text="Scheme (default fp16); see list precisions.", metavar="NAME")
]
MicroBatch = Annotated[
    int | None, _option("--micro-batch-size", group=TRAINING, text="Samples in one forward pass.", metavar="N")
]
Sequence = Annotated[int | None, _option("--sequence-length", group=TRAINING, text="Tokens of one sample.", metavar="N")]
Source = Annotated[
    int | None, _option("--source-length", group=TRAINING, text="Tokens or frames an encoder reads.", metavar="N")
]
Image = Annotated[int | None, _option("--image-size", group=TRAINING, text="Pixels of an image's side.", metavar="N")]
Accumulation = Annotated[
    int | None,
    # without a word for its value it is just short enough to stand on one line with its help
    _option("--gradient-accumulation-steps", group=TRAINING, text="Micro-batches to a step.", metavar=""),
]
Checkpointing = Annotated[
    str | None, _option("--activation-checkpointing", group=TRAINING, text="none, selective, full, every-2.", metavar="")
]
AttentionKernel = Annotated[
    str | None, _option("--attention", group=TRAINING, text="auto, cudnn, flash_attention_2, eager, …", metavar="KERNEL")
]
Clipping = Annotated[float | None, _option("--max-grad-norm", group=TRAINING, text="Clip gradients to this norm.", metavar="X")]
KeepGradients = Annotated[bool, _option("--keep-gradients", group=TRAINING, text="Zeroed, not dropped: set_to_none=False.")]
Lora = Annotated[
    list[str] | None, _option("--lora", group=TRAINING, text="Adapters on a frozen base: r=8.", metavar="KEY=VALUE")
]
Quantization = Annotated[
    str | None, _option("--quantization", group=TRAINING, text="Of that base: nf4, nf4-double.", metavar="NAME")
]
ImplementationName = Annotated[
    str | None, _option("--implementation", group=TRAINING, text="Whose code (default transformers).", metavar="NAME")
]
ModeName = Annotated[
    str | None, _option("--mode", group=CACHE, text="train (default), evaluate, prefill or decode.", metavar="WHAT")
]
ContextLength = Annotated[
    int | None, _option("--context-length", group=CACHE, text="Tokens in the cache when a step begins.", metavar="N")
]
CacheKind = Annotated[
    str | None, _option("--cache", group=CACHE, text="dynamic (default), static, quantized-….", metavar="NAME")
]
CacheArgs = Annotated[
    list[str] | None, _option("--cache-arg", group=CACHE, text="An option of the cache: nbits=4.", metavar="KEY=VALUE")
]
CacheLength = Annotated[
    int | None, _option("--max-cache-length", group=CACHE, text="Tokens that a static cache holds.", metavar="N")
]
Dp = Annotated[int | None, _option("--dp", group=RANKS, text="Data-parallel ranks.", metavar="N")]
Stage = Annotated[int | None, _option("--zero-stage", group=RANKS, text="0, 1, 2 or 3.", metavar="N")]
Backend = Annotated[
    str | None, _option("--zero-backend", group=RANKS, text="deepspeed, fsdp2, megatron, torch.", metavar="NAME")
]
ZeroArgs = Annotated[
    list[str] | None, _option("--zero-arg", group=RANKS, text="An option of it: reduce_bucket_size=2e8.", metavar="KEY=VALUE")
]
Replicate = Annotated[int | None, _option("--dp-replicate", group=RANKS, text="Groups that hold the same.", metavar="N")]
Shard = Annotated[int | None, _option("--dp-shard", group=RANKS, text="Ranks that states are split over.", metavar="N")]
# Known, and refused by every engine so far: kept out of the help until one of them has an answer.
Tp = Annotated[int | None, _option("--tp", group=RANKS, text="Tensor-parallel ranks.", metavar="N", hidden=True)]
Pp = Annotated[int | None, _option("--pp", group=RANKS, text="Pipeline stages.", metavar="N", hidden=True)]
Cp = Annotated[int | None, _option("--cp", group=RANKS, text="Context-parallel ranks.", metavar="N", hidden=True)]
Ep = Annotated[int | None, _option("--ep", group=RANKS, text="Expert-parallel ranks.", metavar="N", hidden=True)]
Gpu = Annotated[
    str | None, _option("--gpu", group=HARDWARE, text="Device to fit (else exit 1); see list gpus.", metavar="NAME")
]
Memory = Annotated[str | None, _option("--memory", group=HARDWARE, text="Or just a size: 24GiB.", metavar="SIZE")]
Headroom = Annotated[str | None, _option("--headroom", group=HARDWARE, text="Share of it to leave free: 5%.", metavar="SHARE")]
Scope = Annotated[str | None, _option("--scope", group=HARDWARE, text="Judge the states or the whole step.", metavar="WHAT")]
Engine = Annotated[str | None, _option("--engine", group=OUTPUT, text="analytic (default), or trace.", metavar="NAME")]
Inputs = Annotated[
    list[str] | None, _option("--input", group=TRACE, text="An input: x=float32[8,3,224,224].", metavar="NAME=DTYPE[SHAPE]")
]
LossName = Annotated[str | None, _option("--loss", group=TRACE, text="mean, sum, mse, cross_entropy, py:….", metavar="NAME")]
StepName = Annotated[
    str | None, _option("--step", group=TRACE, text="Your own (model, batch, optimizer): py:….", metavar="NAME")
]
Routing = Annotated[
    float | None,
    _option("--routing-imbalance", group=TRACE, text="The fullest expert's share (even: 1).", metavar="X"),
]
Allocator = Annotated[
    str | None, _option("--allocator", group=HARDWARE, text="As PYTORCH_CUDA_ALLOC_CONF has it.", metavar="SETTINGS")
]
AppDir = Annotated[str | None, _option("--app-dir", group=OUTPUT, text="Where py: modules are looked for.", metavar="DIR")]
ExactBytes = Annotated[bool, _option("--bytes", group=OUTPUT, text="Figures in bytes, not GiB.")]


def job_mapping(model: str | None, *, params: str | None = None, sets: list[str] | None = None, **flags: Any) -> dict[str, Any]:
    """What the flags say, as the mapping a job file would hold.

    Raises:
        InputError: no model or two, a pair that is not KEY=VALUE, a size that cannot be read.
    """
    mapping = {key: value for key, value in flags.items() if value is not None}
    of_job = [word for word in sets or () if word.startswith(TRAINED)]
    if of_job:
        mapping |= _trained(of_job, mapping)
    mapping["model"] = _model(model, params, [word for word in sets or () if word not in of_job])
    for key in ("optimizer_args", "zero_args", "cache_args"):
        if key in mapping:
            found = pairs(mapping[key], f"--{key[:-1].replace('_', '-')}")
            mapping[key] = {name: numbers(listed(value)) for name, value in found.items()} if key == "optimizer_args" else found
    return {**mapping, **hardware_mapping(memory=mapping.get("memory"), headroom=mapping.get("headroom"))}


def _trained(words: list[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the job's training that ``--set`` gives.

    Raises:
        InputError: a key that training does not have, one that holds pairs and has a flag for them, or one given by a flag too.
    """
    from memcalc.job import Training

    told = {key: listed(value) for key, value in pairs([word.removeprefix(TRAINED) for word in words], "--set").items()}
    for key, value in told.items():
        path = f"--set {TRAINED}{key}"
        if key not in Training.model_fields:
            raise InputError(path, str(value), "is not a key of training", did_you_mean(key, Training.model_fields))
        if key in ("optimizer_args", "lora"):
            raise InputError(path, str(value), "holds pairs", f"write --{key.removesuffix('s').replace('_', '-')} KEY=VALUE")
        if key in flags:
            raise InputError(path, str(value), f"is given twice, here and as --{key.replace('_', '-')}", "give it once")
    return told


TRAINED = "training."
"""What a key of the job's training begins with, where ``--set`` names one."""


def listed(value: Any) -> Any:
    """A value in brackets is a list of words, as ``[embed_tokens,layers.0-15]``.

    >>> listed("[embed_tokens,layers.0-15]"), listed("packed")
    (['embed_tokens', 'layers.0-15'], 'packed')
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        return [scalar(word.strip()) for word in value[1:-1].split(",") if word.strip()]
    return value


def numbers(value: Any) -> Any:
    """A value of numbers with commas between is a list of them, as ``0.9,0.95``.

    >>> numbers("0.9,0.95"), numbers("exp_avg,exp_avg_sq"), numbers(0.9)
    ([0.9, 0.95], 'exp_avg,exp_avg_sq', 0.9)
    """
    found = [scalar(word.strip()) for word in value.split(",")] if isinstance(value, str) else []
    return found if len(found) > 1 and all(type(each) in (int, float) for each in found) else value


def hardware_mapping(**flags: str | None) -> dict[str, Any]:
    """The hardware's flags that were given, sizes and shares read."""
    mapping: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    if "memory" in mapping:
        mapping["memory"] = parse_bytes(mapping["memory"], "--memory")
    if "headroom" in mapping:
        mapping["headroom"] = parse_fraction(mapping["headroom"], "--headroom")
    return mapping


def words(text: str, needed: str, example: str = "adam,adamw8bit,sophia") -> list[str]:
    """Words with commas between; at least one where ``needed`` names the flag.

    >>> words("adam, sgd", "--optimizers")
    ['adam', 'sgd']
    """
    found = [word.strip() for word in text.split(",") if word.strip()]
    if needed and not found:
        raise InputError(needed, NO_VALUE, "is missing", f"give names with commas between, as {needed} {example}")
    return found


def _model(model: str | None, params: str | None, sets: list[str] | None) -> str | dict[str, Any]:
    if params is not None:
        if model is not None:
            raise InputError("--params", params, "is given beside a model", "give one of the two")
        if sets:
            raise InputError(
                "--set", sets[0], "is a key of a config, and --params is a bare size", "leave it out, or name a model"
            )
        return {"params": parse_count(params, "--params")}
    if model is None:
        raise InputError("MODEL", NO_VALUE, "is missing", "name one (memcalc list models), or give --params 7e9")
    return {"base": model, **pairs(sets, "--set")} if sets else model


def pairs(words: list[str] | None, flag: str) -> dict[str, Any]:
    """``KEY=VALUE`` words as a mapping, the values read as YAML scalars are.

    >>> pairs(["fused=true", "rank=8", "proj=std"], "--optimizer-arg")
    {'fused': True, 'rank': 8, 'proj': 'std'}
    """
    result: dict[str, Any] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(flag, word, "is not KEY=VALUE", "write it as fused=true")
        result[key] = scalar(value)
    return result


def lora_options(words: list[str] | None) -> dict[str, Any] | None:
    """What ``--lora`` says; names of modules with commas between, or in brackets, are a list. None where nothing is said.

    >>> lora_options(["r=8", "target_modules=q_proj,v_proj"])
    {'r': 8, 'target_modules': ['q_proj', 'v_proj']}
    >>> lora_options(["target_modules=[c_attn]"])
    {'target_modules': ['c_attn']}
    """
    found = {key: listed(value) for key, value in pairs(words, "--lora").items()}
    names = found.get("target_modules")
    split = names.split(",") if isinstance(names, str) and names != "all-linear" else []
    if split and all(part.replace(".", "_").isidentifier() for part in split):
        found["target_modules"] = split
    return found or None


def scalar(text: str) -> Any:
    """A word as the number, truth value or null it spells; itself otherwise."""
    constants = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
