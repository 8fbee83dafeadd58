"""From a published run to what is asked of memcalc: a job, and what a trace is told beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from benchmarks.published.kinds import arch_of
from benchmarks.published.models import config_of
from benchmarks.published.records import Record
from benchmarks.published.scope import ANALYTIC, engine_of
from benchmarks.published.told import (
    EXPANDABLE,
    FUSED,
    NIGHTLIES,
    PER_OPERATOR,
    builder,
    code_date,
    lengths,
    policy,
    quantization,
    rank,
    sharding,
    targets,
    titan_date,
    weights_alone,
)
from memcalc.errors import InputError
from memcalc.records import dataclass

PIECES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "llama": {
        "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "proj": ("o_proj",), "output_proj": ("o_proj",),
        "mlp": ("gate_proj", "up_proj", "down_proj"), "head": ("lm_head",),
    },
    "phi": {
        "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "proj": ("dense",), "mlp": ("fc1", "fc2"), "head": ("lm_head",),
    },
    "phi3": {
        "q": ("qkv_proj",), "k": ("qkv_proj",), "v": ("qkv_proj",), "proj": ("o_proj",), "mlp": ("gate_up_proj", "down_proj"),
        "head": ("lm_head",),
    },
    "gpt_neox": {
        "q": ("query_key_value",), "k": ("query_key_value",), "v": ("query_key_value",), "proj": ("dense",),
        "mlp": ("dense_h_to_4h", "dense_4h_to_h"), "head": ("embed_out",),
    },
}  # fmt: skip
"""What a run calls the parts it adapts, and transformers' module names for them. A fused matrix is adapted whole."""
SAME = {
    "gemma": "llama", "gemma2": "llama", "qwen3": "llama", "mistral": "llama", "qwen2": "llama", "olmo": "llama",
    "olmo2": "llama", "cohere": "llama", "falcon": "gpt_neox",
}  # fmt: skip
ACCUMULATED = 2
"""Micro-batches to a traced step, where the run has that many or more: the second holds the gradients of the first, and so do
all after it."""
HELD = ("parameters", "parameter_copies", "master_parameters", "buffers", "gradients", "optimizer_states")
"""What is alive once a step is done and its gradients are not dropped yet."""


FAMILIES_OWN = {"transformers", "torchvision"}
"""Implementations that the families themselves are of."""
TORCHTUNE = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "mlp(w1,w2,w3)": "mlp"}
"""What torchtune's runs call the parts they adapt, beside its own words."""
LITGPT = {
    "q": "query", "k": "key", "v": "value", "proj": "projection", "mlp": "mlp", "head": "head",
}  # fmt: skip
"""The same parts in litgpt's words."""


@dataclass
class Question:
    """What is asked of an engine.

    Attributes:
        job: the mapping of a memcalc job.
        lora: options of peft's LoraConfig; None for a model trained whole.
        loss: as ``--loss`` takes it; None for the model's own.
        inputs: as ``--input`` takes them; empty for the family's own.
        adapters: the dtype adapters are kept in, where it is not the base's.
        reading: what of the footprint is the answer: names of its components, or ``peak.allocated`` and the like.
        more: jobs of the same run, of which the highest is the answer.
    """

    job: dict[str, Any]
    lora: dict[str, Any] | None = None
    loss: str | None = None
    inputs: tuple[str, ...] = ()
    adapters: str | None = None
    reading: tuple[str, ...] = field(default=())
    more: tuple[dict[str, Any], ...] = ()


def question(record: Record, engine: str = "trace") -> Question:
    """The job of a record that the rule lets in, or that a stand-in is put in for.

    Args:
        record: a published run.
        engine: who is asked for steps: ``trace`` or ``analytic``.

    Raises:
        InputError: a record without a model or a precision, which the rule keeps out.
    """
    analytic = engine_of(record, engine) == "analytic"
    if record.kind == "inference" and analytic:
        return _run(record)
    config = config_of(record, coded=not analytic)
    if config is None or record.precision is None:
        raise InputError(record.id, record.text("model"), "states too little for a job", "ask scope.why_not first")
    scheme, _, rest = record.precision.partition(", adapters ")
    training: dict[str, Any] = {"precision": scheme}
    options, machine = _launched(record) if analytic else ({}, {})
    if record.optimizer is not None:
        training |= {"optimizer": record.optimizer.name, "optimizer_args": {**record.optimizer.arguments, **options}}
    if record.in_backward:
        training["optimizer_in_backward"] = True
    if record.kind == "train_step":
        training |= _step(record, config, record.accumulation if analytic else min(record.accumulation, ACCUMULATED))
    job: dict[str, Any] = {
        "model": config, "name": record.id, "engine": engine_of(record, engine), "training": training,
        "parallelism": dict(sharding(record) or {}) if analytic else {},
        "behaviour": {key: value for key, value in (("torch", record.torch), ("gpu", record.gpu)) if value} | machine,
    }  # fmt: skip
    # of torchtune a model by itself too: its rotary caches are no tensors of the family's
    asks = analytic and (record.kind == "train_step" or record.implementation == "torchtune")
    lora = _lora(record, analytic=asks)
    if asks and record.implementation in set(ANALYTIC.implementations) - FAMILIES_OWN:
        job["implementation"] = record.implementation
        job["implementation_args"] = _arguments(record)
    if asks and not rest:
        training |= {key: value for key, value in (("lora", lora), ("quantization", quantization(record))) if value}
        lora = None
    image = isinstance(config, str)
    return Question(
        job=job, lora=lora, loss="cross_entropy" if image else None, inputs=_inputs(record),
        adapters={"fp32": "float32"}.get(rest), reading=_reading(record, analytic=analytic),
    )  # fmt: skip


def _run(record: Record) -> Question:
    """A model that is run: its prompt, and the last of its tokens.

    A run's peak is the highest of loading, prompt and answer. Loading is not asked for: weights are made on the GPU and copied
    into one by one (generate/base.py: init_module(empty_init=True), load_checkpoint), and a matrix in 4 bits comes to the GPU
    in FP16 by itself (lightning 2.1.0 fabric/plugins/precision/bitsandbytes.py:_quantize_weight), less than the prompt needs of
    it in FP16 and in BF16.
    """
    config = config_of(record, coded=False)
    if config is None or record.precision is None:
        raise InputError(record.id, record.text("model"), "states too little for a job", "ask scope.why_not first")
    training: dict[str, Any] = {"precision": record.precision}
    job: dict[str, Any] = {
        "model": config, "name": record.id, "engine": "analytic", "training": training,
        "behaviour": {key: value for key, value in (("torch", record.torch), ("gpu", record.gpu)) if value},
    }  # fmt: skip
    if weights_alone(record):
        return Question(job=job, reading=("parameters", "buffers"))
    found = lengths(record)
    assert found is not None
    prompt, total = found
    training["micro_batch_size"] = record.raw["micro_batch_size"]
    if record.implementation not in FAMILIES_OWN:
        job |= {"implementation": record.implementation, "implementation_args": _arguments(record)}
        job["inference"] = {"max_cache_length": total}
        training |= {key: value for key, value in (("quantization", quantization(record)),) if value}
    if "eager" in record.text("attention"):
        training["attention"] = "eager"
    jobs = []
    if prompt is not None:
        jobs.append({**job, "mode": "prefill", "training": {**training, "sequence_length": prompt}})
    if prompt is None or total > prompt + 1:
        more = {**job.get("inference", {}), "context_length": total - 1}
        jobs.append({**job, "mode": "decode", "inference": more})
    return Question(job=jobs[0], more=tuple(jobs[1:]), reading=_reading(record, analytic=True))


def _arguments(record: Record) -> dict[str, Any]:
    """What an implementation is told: litgpt's and torchtune's date, and what else of its own a run is said to have."""
    if record.implementation == "timm":
        return _of_timm(record)
    if record.implementation == "torchtune":
        return _of_torchtune(record)
    if record.implementation == "torchtitan":
        return _of_torchtitan(record)
    if record.implementation != "litgpt":
        return {}
    told: dict[str, Any] = {"version": code_date(record)}
    return {**told, "script": "pretrain"} if "extensions/thunder" in str(record.raw["source"]) else told


def _of_timm(record: Record) -> dict[str, Any]:
    """DINOv2's ViTs have layer scale (vision_transformer.py:vit_*_dinov2), and a gated feed-forward where that is said."""
    told = {"init_values": 1e-5} if "dinov2" in str(record.raw["model"]["name"]) else {}
    gated = "SwiGLU packed" in str(record.raw["model"]["intermediate_size"])
    return {**told, **({"mlp_layer": "SwiGLUPacked"} if gated else {})}


def _of_torchtune(record: Record) -> dict[str, Any]:
    """The date of its commit, the builder of its model, and whether samples are packed and which loss, as the notes say."""
    words = f"{record.text('notes')} {record.text('source')}"
    whole = re.search(r"loss=CrossEntropyLoss", words)
    return {
        "version": code_date(record), "builder": builder(record),
        "packed": bool(re.search(r"packed(?:=True|:| to)", words)), **({"loss": "CrossEntropyLoss"} if whole else {}),
    }  # fmt: skip


def _of_torchtitan(record: Record) -> dict[str, Any]:
    """The date of its commit, whether the loss is chunked, as the notes say, and whether the last units are let go of too."""
    told: dict[str, Any] = {"version": date} if (date := titan_date(record)) else {}
    if "with chunked CE" in record.text("notes"):
        told["loss"] = "chunked"
    if record.text("sharding").endswith("reshard_after_forward=always"):
        told["reshard_after_forward"] = "always"
    return told


def _launched(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """What torchtitan's script and config of a run's date say: options of the optimizer; the allocator and torch."""
    date = titan_date(record) if record.implementation == "torchtitan" and record.kind == "train_step" else None
    if date is None:
        return {}, {}
    return (
        {"fused": True} if date >= FUSED else {"foreach": True},
        {
            "torch": record.torch or next(version for first, version in NIGHTLIES if date >= first),
            **({"allocator": "expandable_segments:True"} if date >= EXPANDABLE else {}),
        },
    )


def _step(record: Record, config: str | dict[str, Any], accumulation: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "micro_batch_size": record.raw["micro_batch_size"],
        "activation_checkpointing": "selective" if policy(record) == PER_OPERATOR else record.checkpointing,
        "gradient_accumulation_steps": accumulation,
    }
    if isinstance(config, dict) and config["model_type"] != "vit":
        told["sequence_length"] = record.raw["seq_len"]
    elif record.raw["model"].get("image_size") and not str(config).startswith("py:"):
        told["image_size"] = record.raw["model"]["image_size"]
    if "eager" in record.text("attention") or record.text("attention") == "unfused":  # as Megatron-LM calls it
        told["attention"] = "eager"
    if record.before_2:
        told["set_to_none"] = False
    if record.implementation == "torchtitan":
        told["max_grad_norm"] = 1.0  # train_configs/*.toml:training.max_norm, which is also config_manager.py's default
    return told


def _inputs(record: Record) -> tuple[str, ...]:
    """Images of a model that is built by code; their dtype is that of its parameters, as the run casts them."""
    if record.implementation != "timm":
        return ()
    side = record.raw["model"]["image_size"]
    dtype = {"bf16-pure": "bfloat16"}.get(str(record.precision), "float32")
    return (f"args0={dtype}[{record.raw['micro_batch_size']},3,{side},{side}]",)


def _lora(record: Record, *, analytic: bool) -> dict[str, Any] | None:
    if record.method not in ("lora", "qlora"):
        return None
    told, arch = record.raw["trainable"], arch_of(record.raw["model"])
    own = {"litgpt": LITGPT, "torchtune": TORCHTUNE}.get(str(record.implementation)) if analytic else None
    pieces = PIECES.get(SAME.get(arch, arch), {}) if own is None else {part: (word,) for part, word in own.items()}
    names = [name for target in targets(record) or () for name in pieces.get(target, (target,))]
    usual = 0.05 if own is LITGPT else 0.0  # finetune/lora.py:lora_dropout
    return {
        "r": rank(record), "lora_alpha": told.get("alpha", 16), "lora_dropout": told.get("dropout", usual),
        "target_modules": list(dict.fromkeys(names)),
    }  # fmt: skip


def _reading(record: Record, *, analytic: bool) -> tuple[str, ...]:
    if record.kind == "optimizer_state":
        return ("optimizer_states",)
    if record.kind == "model_init":
        return ("parameters", "buffers")
    if record.kind == "static_after_step":
        return HELD
    if record.metric == "device" and analytic:
        return ("peak.device",)
    return ("peak.reserved",) if record.metric in ("reserved", "device") else ("peak.allocated",)
