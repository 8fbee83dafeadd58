"""What is asked: a model, how it is trained, over which ranks, on which hardware. Every default is written here.

A job is read from flags, from a mapping or from YAML. Keys may be grouped (``training: {optimizer: adamw}``) or written flat
(``optimizer: adamw``); both mean the same, and the grouped form is what is printed back.
"""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from memcalc.errors import InputError
from memcalc.units import parse_bytes, parse_fraction

Size = Annotated[int, Field(strict=True, gt=0, le=2**40)]
Ranks = Annotated[int, Field(strict=True, gt=0, le=2**20)]
RECOMPUTED = r"none|selective|full|every-[1-9][0-9]{0,3}"
"""Ways of activation checkpointing."""


def _bounded(value: Any) -> Any:
    """The value, if no number in it is beyond every size: floats hold whole numbers exactly up to 2**53."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and not isfinite(one):
            raise ValueError("is not a finite number; give one that is")
        if isinstance(one, int) and abs(one) > 2**53:
            raise ValueError("is beyond 2**53, the largest whole number that an option may be; give a smaller one")
    return value


Argument = Annotated[bool | int | float | str | list[Any] | None, AfterValidator(_bounded)]
EngineArgument = Annotated[bool | int | float, AfterValidator(_bounded)]


class Section(BaseModel):
    """A group of a job's keys: fixed once read, and closed to keys it does not know.

    What pydantic makes of it is made when it is first used; annotations stand as they are, and what defaults are made by are
    functions, for it would look into text, and into the signatures of builtins, at every start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Training(Section):
    """How the model is trained."""

    optimizer: str = "adam"
    """A short name (``adam``, ``adamw8bit``) or ``<PyPI name>:<Class>``; see ``memcalc list optimizers``."""
    optimizer_args: dict[str, Argument] = Field(default_factory=lambda: {})
    """Options of the optimizer's constructor, as ``fused: true``."""
    precision: str = "fp16"
    """A precision scheme; see ``memcalc list precisions``."""
    micro_batch_size: Size | None = None
    """Samples in one forward pass of one rank."""
    sequence_length: Size | None = None
    """Tokens of one sample."""
    source_length: Size | None = None
    """Tokens, or audio frames, that an encoder reads, where the model has both sides."""
    image_size: Size | None = None
    """Pixels of an image's side."""
    gradient_accumulation_steps: Size = 1
    """Forward and backward passes to one optimizer step."""
    activation_checkpointing: Annotated[str, Field(json_schema_extra={"pattern": RECOMPUTED})] = "none"
    """What is recomputed in backward instead of kept: ``none``, ``selective``, ``full``, or ``every-2``: every second layer."""
    compile: bool = False
    """Whether ``torch.compile`` makes the code that runs, which is not modelled."""
    batch: Literal["full", "padded", "packed"] = "full"
    """Rows of tokens: ``full`` ones, ``padded`` ones under an attention mask, or sequences ``packed`` by their positions."""
    packed_sequences: Size | None = None
    """Sequences in each packed row, which the kernels of ``flash_attention_2`` follow; to any other it makes no difference."""
    cross_entropy: Literal["plain", "chunked", "liger", "cce"] = "plain"
    """The loss of a language model's head: transformers' own, or one that never has its logits whole."""
    attention: Literal["auto", "cudnn", "flash", "efficient", "math", "eager", "flash_attention_2"] = "auto"
    """The attention kernel; ``auto`` is resolved from GPU, torch and cuDNN, ``flash_attention_2`` are flash-attn's own."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """The norm gradients are clipped to; none without it."""
    set_to_none: bool = True
    """Whether ``zero_grad`` drops gradients; else it fills them with zeros, and they live from step to step."""
    optimizer_in_backward: bool = False
    """Whether each parameter has an optimizer of its own, stepped as its gradient comes, which is dropped there and then."""
    routing_imbalance: Annotated[float, Field(ge=1, le=1e6)] | None = None
    """How many times its even share the fullest expert of a mixture gets; 1, uniform routing, without it (engine trace)."""
    freeze: list[str] = Field(default_factory=lambda: [])
    """Modules that are not trained, as ``embed_tokens`` or ``layers.0-15``; none without it."""
    lora: dict[str, Argument] | None = None
    """Options of peft's LoraConfig, as ``r: 8``: the model is frozen but for adapters; none without it."""
    quantization: Literal["nf4", "nf4-double"] | None = None
    """Of a frozen base's matrices: 4 bits by bitsandbytes, with its scales in FP32 or quantised in turn."""

    @field_validator("activation_checkpointing", mode="after")
    @classmethod
    def _recomputed(cls, value: str) -> str:
        if not re.fullmatch(RECOMPUTED, value):
            raise InputError(
                "training.activation_checkpointing", value, "is no way to recompute",
                "use none, selective, full, or every-2 (for every second layer)",
            )  # fmt: skip
        return value


class Inference(Section):
    """How keys and values are kept, in a job that does not train."""

    cache: Literal["dynamic", "static", "quantized-fp8", "quantized-quanto", "quantized-hqq"] = "dynamic"
    """Which of transformers' caches: grown by concatenation, of a fixed length, or quantised by a back end."""
    context_length: Size | None = None
    """Tokens in the cache when a step of decoding begins."""
    max_cache_length: Size | None = None
    """Tokens that a static cache holds; all that the step puts into it without it."""
    cache_args: dict[str, Argument] = Field(default_factory=lambda: {})
    """Options of a quantised cache, as ``residual_length: 64``."""


class Parallelism(Section):
    """The ranks, and what is split over them."""

    dp: Ranks | None = None
    """Data-parallel ranks, the short way: replicas under stage 0, shards under stages 1 to 3."""
    zero_stage: Annotated[int, Field(strict=True, ge=0, le=3)] = 0
    """0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
    zero_backend: Literal["deepspeed", "fsdp2", "megatron", "torch"] | None = None
    """Whose implementation; unless the precision decides, DeepSpeed's from stage 1 on, torch's DDP below."""
    zero_args: dict[str, EngineArgument] = Field(default_factory=lambda: {})
    """The engine's options, as ``reduce_bucket_size: 200000000``."""
    dp_replicate: Ranks | None = None
    """Groups that hold the same (hybrid sharding)."""
    dp_shard: Ranks | None = None
    """Ranks that states are split over."""
    tp: Ranks = 1
    """Tensor-parallel ranks."""
    pp: Ranks = 1
    """Pipeline stages."""
    cp: Ranks = 1
    """Context-parallel ranks."""
    ep: Ranks = 1
    """Expert-parallel ranks."""


class Hardware(Section):
    """What the job must fit."""

    gpu: str | None = None
    """A device by name; see ``memcalc list gpus``."""
    memory: Annotated[int, Field(strict=True, gt=0, le=2**62)] | None = None
    """Bytes a rank may use, in place of a device; written as 24GiB, 80GB or a number."""
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the memory to leave free."""

    @field_validator("memory", mode="before")
    @classmethod
    def _memory(cls, value: Any) -> Any:
        return parse_bytes(value, "hardware.memory") if isinstance(value, str) else value

    @field_validator("headroom", mode="before")
    @classmethod
    def _headroom(cls, value: Any) -> Any:
        return parse_fraction(value, "hardware.headroom") if isinstance(value, str) else value


class Behaviour(Section):
    """The software and device whose behaviour is assumed; null where nothing depends on it yet."""

    torch: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    gpu: str | None = None
    allocator: str | None = None
    """Settings of PyTorch's allocator, as PYTORCH_CUDA_ALLOC_CONF has them; its defaults without it."""


class Job(Section):
    """One question: what does a step of this model take on one rank, and does it fit?"""

    model: str | dict[str, Any]
    """A shipped name, a path, ``hf:org/name``, ``py:module:factory``, ``{params: 7B}``, or a config with its ``model_type``."""
    name: str | None = None
    """What to call the job in output."""
    scope: Literal["states", "step"] = "step"
    """``states``: parameters, gradients and optimizer; ``step``: everything up to the peak of the step."""
    engine: Literal["analytic", "trace"] = "analytic"
    """How the answer is found: from the config, or by running the step on tensors without data (needs torch)."""
    mode: Literal["train", "evaluate", "prefill", "decode"] = "train"
    """``train``: a training step; ``evaluate``: a forward without gradients; ``prefill``: a prompt into an empty cache;
    ``decode``: one token more."""
    training: Training = Field(default_factory=lambda: Training.model_construct())
    parallelism: Parallelism = Field(default_factory=lambda: Parallelism.model_construct())
    hardware: Hardware = Field(default_factory=lambda: Hardware.model_construct())
    inference: Inference = Field(default_factory=lambda: Inference.model_construct())
    behaviour: Behaviour = Field(default_factory=lambda: Behaviour.model_construct())
    implementation: str = "transformers"
    """Whose code of the model runs; see ``memcalc.implementations``."""
    implementation_args: dict[str, Argument] = Field(default_factory=lambda: {})
    """What that implementation is told, as ``version: 2024-03-14``."""


SECTIONS: dict[str, type[Section]] = {
    "training": Training, "parallelism": Parallelism, "hardware": Hardware, "inference": Inference,
}  # fmt: skip
"""The groups whose keys may also stand flat; ``behaviour`` may not, for its ``gpu`` is another."""
FLAT: dict[str, str] = {key: section for section, kind in SECTIONS.items() for key in kind.model_fields}
"""Every key that may stand flat, with the group it belongs to."""
KEYS = [*Job.model_fields, *FLAT, *Behaviour.model_fields]


def grouped(mapping: Mapping[str, Any], path: str = "job") -> dict[str, Any]:
    """Flat keys moved into their groups; nothing is validated but that no key is given twice.

    >>> grouped({"model": "gpt2", "optimizer": "adamw", "dp": 8})
    {'model': 'gpt2', 'training': {'optimizer': 'adamw'}, 'parallelism': {'dp': 8}}
    """
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise InputError(path, key, "is not a key", "keys are words")
        if key in FLAT:
            section = result.setdefault(FLAT[key], {})
            if isinstance(section, dict):
                if key in section:
                    raise InputError(f"{path}.{key}", value, f"is given twice, here and under {FLAT[key]}", "give it once")
                section[key] = value
        elif key in SECTIONS and isinstance(value, Mapping):
            section = result.setdefault(key, {})
            for inner, what in value.items():
                if inner in section:
                    raise InputError(
                        f"{path}.{key}.{inner}", what, "is given twice, here and without its group", "give it once"
                    )
                section[inner] = what
        else:
            result[key] = value
    return result


def read_job(mapping: Mapping[str, Any], path: str = "") -> Job:
    """A validated job from a mapping.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of range, a number that is not finite.
    """
    try:
        return Job.model_validate(grouped(mapping, path or "job"))
    except ValidationError as error:
        from memcalc.validation import explain

        raise explain(error, path, KEYS) from None
