"""From a published run to what its peers are told: one plain mapping, in no tool's words.

A case is all that the record states and a tool might want. What a tool has no word for is its adapter's to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.published.convert import PIECES, SAME, question
from benchmarks.published.models import config_of
from benchmarks.published.records import Record
from benchmarks.published.scope import why_not
from benchmarks.published.told import sharding
from memcalc import api
from memcalc.errors import InputError
from memcalc.job import read_job

KINDS = ("train_step", "model_init")
NOBODYS = ("grade", "unit", "kind", "metric", "sizes", "compile", "offload", "optimizer in backward", "model", "method")
"""Reasons of the published rule that leave a run out for all alike: it is not told, or no tool here has a word for it."""
SCHEMES: Mapping[str, tuple[str, str, str, bool]] = {
    "bf16-pure": ("bf16", "bf16", "bf16", False), "bf16-pure, adapters fp32": ("bf16", "bf16", "fp32", False),
    "fp32": ("fp32", "fp32", "fp32", False), "amp-bf16": ("fp32", "bf16", "fp32", False),
    "amp-fp16": ("fp32", "fp16", "fp32", False), "fsdp2-mixed": ("fp32", "bf16", "fp32", False),
    "megatron-bf16": ("bf16", "bf16", "fp32", True),
}  # fmt: skip
"""A scheme's parameters, computation and gradients, and whether it keeps an FP32 copy of the parameters besides."""
GROUPS = ("LoRA", "QLoRA", "whole model, one GPU", "whole model, one GPU, by nvidia-smi", "several GPUs", "the model alone")


def chosen(records: list[Record]) -> list[Record]:
    """The runs put to every tool: grade A and B, stated whole, and asking for nothing that none of the tools has a word for."""
    return [
        record for record in records
        if record.kind in KINDS and not any(reason.feature in NOBODYS for reason in why_not(record))
        and isinstance(config_of(record), dict) and scheme(record) is not None
    ]  # fmt: skip


def group(record: Record) -> str:
    """What errors are gathered by.

    >>> from benchmarks.published.records import load
    >>> {group(record) for record in chosen(load())} == set(GROUPS)
    True
    """
    if record.kind == "model_init":
        return "the model alone"
    if record.raw["world_size"] > 1:
        return "several GPUs"
    if record.method != "full":
        return "QLoRA" if record.quantized else "LoRA"
    return "whole model, one GPU" + (", by nvidia-smi" if record.metric == "device" else "")


def scheme(record: Record) -> tuple[str, str, str, bool] | None:
    """Its dtypes; of a quantised base, those of what is not quantised."""
    if record.precision is None:
        quantized = record.quantized and re.search(r"bf16", record.text("precision"))
        return SCHEMES["bf16-pure"] if quantized else None
    return SCHEMES.get(record.precision)


def case(record: Record) -> dict[str, Any]:
    """What is told of a run.

    Returns:
        ``config`` with Hugging Face's keys; ``parameters`` (all of them, counted tensor by tensor); sizes; ``dtypes``;
        ``optimizer`` in one word, and whether its states are ``paged``; ``lora`` or None; ``quantized`` (``nf4``,
        ``nf4-dq``) or None; ``ranks`` with ``dp``, ``tp``, ``pp`` and ``zero``; ``job``, the same for memcalc, or None
        where it has no job for it.

    Raises:
        InputError: a record that :func:`chosen` leaves out.
    """
    config, dtypes = config_of(record), scheme(record)
    if not isinstance(config, dict) or dtypes is None:
        raise InputError(record.id, record.text("model"), "states too little for a case", "ask chosen() first")
    model = api.model_of(read_job({"model": config}))
    words = str(record.raw["trainable"].get("base_quantization")) if record.quantized else ""
    return {
        "id": record.id, "kind": record.kind, "metric": record.metric, "config": config,
        "parameters": int(model.num_parameters),
        "tensors": [[tensor.name, list(map(int, tensor.shape)), int(tensor.count)] for tensor in model.parameters],
        "micro_batch_size": record.raw["micro_batch_size"], "sequence_length": record.raw["seq_len"],
        "dtypes": dict(zip(("parameters", "compute", "gradients", "master"), dtypes, strict=True)),
        "optimizer": optimizer(record), "paged": "aged" in record.text("optimizer"), "checkpointing": record.checkpointing,
        "eager": bool(re.search("eager|unfused", record.text("attention"))),
        "lora": _lora(record), "quantized": ("nf4-dq" if "dq" in words else "nf4") if record.quantized else None,
        "ranks": ranks(record),
        "job": None if why_not(record, "analytic") else job(record, "analytic"),
    }  # fmt: skip


def job(record: Record, engine: str) -> dict[str, Any]:
    """The fields of the question that memcalc is asked."""
    asked = question(record, engine)
    return {"job": asked.job, "lora": asked.lora, "adapters": asked.adapters, "reading": asked.reading}


def optimizer(record: Record) -> str | None:
    """In one word: ``adamw``, ``adamw8bit``, ``adafactor``; None for none of these.

    Which kernels a step runs with (foreach, fused) is no tool's question, so that the words need not say.
    """
    words = record.text("optimizer")
    for pattern, name in ((r"8.?bit", "adamw8bit"), (r"[Aa]dafactor", "adafactor"), (r"adam", "adamw")):
        if re.search(pattern, words, re.IGNORECASE):
            return name
    return None


def ranks(record: Record) -> dict[str, int] | None:
    """How many ranks of each kind, and the ZeRO stage that the words amount to; None for words that say something else."""
    if record.raw["world_size"] == 1:
        return {"dp": 1, "tp": 1, "pp": 1, "zero": 0}
    words = record.text("sharding")
    if record.implementation == "megatron":
        ways = {name.lower(): int(many) for name, many in re.findall(r"(TP|PP|CP|EP) (\d+)", words)}
        if ways.get("cp", 1) > 1 or ways.get("ep", 1) > 1:
            return None
        dp = int(record.raw["world_size"]) // (ways["tp"] * ways["pp"])
        return {"dp": dp, "tp": ways["tp"], "pp": ways["pp"], "zero": 1 if "distributed optimizer" in words else 0}
    found = re.fullmatch(r"FSDP[12]? ?(?:\(dp_shard |FULL_SHARD |full shard )?(\d+)\)?(?: x TP(?:/SP)? (\d+))?(?:,.*)?", words)
    if found:
        return {"dp": int(found[1]), "tp": int(found[2] or 1), "pp": 1, "zero": 3}
    told = sharding(record)
    return {"dp": int(str(told["dp"])), "tp": 1, "pp": 1, "zero": int(str(told["zero_stage"]))} if told else None


def _lora(record: Record) -> dict[str, Any] | None:
    """Rank, and the modules by transformers' names; ``pieces`` says them as a separate-matrix Llama has them."""
    if record.method not in ("lora", "qlora"):
        return None
    told, arch = record.raw["trainable"], str(record.raw["model"].get("arch"))
    words = [re.sub(r"_proj$", "", str(target)) for target in told["targets"]]
    own = PIECES[SAME.get(arch, arch)]
    return {"rank": told["rank"], "modules": _names(words, own), "pieces": _names(words, PIECES["llama"])}


def _names(words: list[str], pieces: Mapping[str, tuple[str, ...]]) -> list[str]:
    other = {"up": ("up_proj",), "down": ("down_proj",), "gate": ("gate_proj",), "output": pieces["proj"],
             "mlp(w1,w2,w3)": pieces["mlp"]}  # fmt: skip
    return list(dict.fromkeys(name for word in words for name in {**other, **pieces}.get(word, (word,))))
