"""Published runs, read: one record a run, its free words turned into memcalc's terms where they have one meaning.

A word that is not in the tables here is not guessed at: it comes out as None, and the rule (``scope``) says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.published.kinds import number
from benchmarks.published.optimizers import Optimizer, in_backward, optimizer_of
from memcalc.errors import InputError
from memcalc.readers.yaml import load_yaml
from memcalc.records import dataclass

CASES = Path(__file__).parent / "cases.yaml"
REQUIRED = ("id", "source", "kind", "model", "trainable", "optimizer", "precision", "micro_batch_size", "seq_len", "measured",
            "completeness", "world_size")  # fmt: skip
KINDS = ("train_step", "inference", "model_init", "static_after_step", "optimizer_state", "component", "cuda_context")
GRADES = ("A", "B", "C")

METRICS: Sequence[tuple[str, str]] = (
    (r"nvml|nvidia-smi", "device"),
    (r"active", "active"),
    (r"reserved", "reserved"),
    (r"sum of optimizer state", "tensors"),
    (r"allocated|memory snapshot peak", "allocated"),
)
"""What a metric's words say is counted; the first that matches. ``active`` is allocated, and what waits for its stream."""

IMPLEMENTATIONS: Mapping[str, str] = {
    "Lightning-AI/litgpt": "litgpt", "Lightning-AI/lit-gpt": "litgpt", "pytorch/torchtitan": "torchtitan",
    "meta-pytorch/torchtitan": "torchtitan", "pytorch/torchtune": "torchtune", "pytorch/ao": "timm",
    "huggingface/pytorch-image-models": "timm", "pytorch/tutorials": "torchvision", "pytorch/vision": "torchvision",
    "huggingface/transformers": "transformers", "huggingface/peft": "transformers", "huggingface/accelerate": "transformers",
    "huggingface/trl": "transformers", "bitsandbytes-foundation/bitsandbytes": "transformers",
    "linkedin/Liger-Kernel": "transformers", "NVIDIA/Megatron-LM": "megatron", "deepspeedai/DeepSpeed": "transformers",
    "modelscope/ms-swift": "remote code", "QwenLM/Qwen": "remote code", "AnswerDotAI/fsdp_qlora": "transformers",
}  # fmt: skip
"""Whose model code a repository's runs trained."""

PRECISIONS: Sequence[tuple[str, str | None]] = (
    (r"float8|fp8|int8 weights", None),
    (r"fp32 weights.*autocast bf16", "amp-bf16"),
    (r"^nf4 .*\bbf16", "bf16-pure"),
    (r"bf16-mixed|bf16 AMP", "amp-bf16"),
    (r"fp16 AMP", "amp-fp16"),
    (r"fp32 sharded params|bf16 mixed precision \(fp32 shards\)", "fsdp2-mixed"),
    (r"bf16 with fp32 gradient accumulation", "megatron-bf16"),
    (r"bf16 base weights; adapters fp32", "bf16-pure, adapters fp32"),
    (r"(?:pure|full) bf16|bf16-true|bf16 model|bf16$|torch\.bfloat16", "bf16-pure"),
    (r"fp32", "fp32"),
)
"""From a precision's words to a scheme, None where they have none. A bare ``bf16`` is all in BF16: what mixes says so."""
RUN: Sequence[tuple[str, str | None]] = (
    (r"^bnb\.(?:nf4|fp4)(?:-dq)?(?:$|\b.*bf16)", "bf16-pure"), (r"\b32-true", "fp32"),
    (r"^fp16$|\b16-true|float16$|(?:pure|full) fp16|fp16 (?:weights|model)", "fp16-pure"),
)  # fmt: skip
"""The same of a model that is run and not trained, before the others. Litgpt's scripts take bf16-true where they are told
nothing (utils.py:get_default_supported_precision), and quantise with it."""
FOUR_BITS = re.compile(r"\bbnb\.((?:nf4|fp4)(?:-dq)?)(?![\w-])")
PACKED = re.compile(r"int[48]|[48][ -]?bit|nf4|\bfp4|gptq|awq|fp8|float8|gguf|mxfp", re.IGNORECASE)
"""Words of a base in fewer bits, of which ``FOUR_BITS`` are those that are understood."""

GPUS: Sequence[tuple[str, str]] = (
    (r"A100.*40", "a100-40gb"), (r"A100", "a100-80gb"), (r"A10G", "a10g-24gb"), (r"A10\b", "a10-24gb"), (r"A40\b", "a40"),
    (r"A5000", "a5000-24gb"), (r"A6000", "a6000-48gb"), (r"H200", "h200-141gb"), (r"B200", "b200"),
    (r"H100 NVL|H100.*94", "h100-94gb"), (r"H100 9", "h100-96gb"), (r"H100", "h100-80gb"), (r"L40S", "l40s-48gb"),
    (r"L40\b", "l40"), (r"L4\b", "l4-24gb"), (r"V100.*16", "v100-16gb"), (r"V100.*32", "v100-32gb"), (r"P100.*12", "p100-12gb"),
    (r"P100", "p100-16gb"), (r"\bT4\b", "t4-16gb"), (r"Titan RTX", "titan-rtx"), (r"RTX 8000", "quadro-rtx-8000"),
    (r"RTX 6000 Ada", "rtx-6000-ada"), (r"2080 ?Ti", "rtx-2080-ti"), (r"3060", "rtx-3060-12gb"), (r"3080(?! ?Ti)", "rtx-3080"),
    (r"3090", "rtx-3090"), (r"4070 Ti SUPER", "rtx-4070-ti-super-16gb"), (r"4080 ?SUPER", "rtx-4080-super"),
    (r"4080", "rtx-4080"), (r"4090", "rtx-4090"), (r"5090", "rtx-5090"),
)  # fmt: skip

BEFORE_2 = re.compile(r"\(20(?:1\d|2[0-2])\)|torch 1\.")
"""Software from before torch 2.0: foreach was no default on CUDA yet, and zero_grad filled gradients with zeros (its release
notes, "Backwards Incompatible Changes", March 2023)."""


@dataclass
class Record:
    """One published run. ``raw`` is the record as written; the rest is what its words mean, None where that is not known.

    Attributes:
        metric: ``allocated``, ``active``, ``reserved``, ``device``, ``tensors``.
        measured: bytes.
        halfwidth: bytes within which the published figure was rounded.
        method: ``full``, ``lora``, or what the record says.
        quantized: whether matrices are said to be in fewer bits.
        checkpointing: ``none``, ``full``, or the record's own word for another policy.
        in_backward: whether each parameter is updated within backward, as its gradient comes.
        gpu: by memcalc's name; ``""`` where none is stated; None where it is no NVIDIA GPU.
        torch: a version, where one is stated.
        before_2: whether its software is said to be from before torch 2.0 of March 2023.
        accumulation: micro-batches to a step; 0 where that is said, and no number.
    """

    raw: Mapping[str, Any]
    id: str
    kind: str
    grade: str
    repo: str
    implementation: str | None
    metric: str | None
    measured: int | None
    halfwidth: int
    method: str
    quantized: bool
    optimizer: Optimizer | None
    in_backward: bool
    precision: str | None
    checkpointing: str
    gpu: str | None
    torch: str | None
    before_2: bool
    accumulation: int

    def text(self, key: str) -> str:
        """A field's words; empty for none."""
        value = self.raw.get(key)
        return "" if value is None or value is False else str(value)

    @property
    def source(self) -> str:
        """What errors are grouped by: the repository and the kind of number."""
        return f"{self.repo} {self.kind}"


def load(path: Path = CASES) -> list[Record]:
    """Every record of a file.

    Raises:
        InputError: a record without an id, a kind or a measured value, or one id twice.
    """
    found, wrong = readable(path)
    if wrong:
        raise wrong[0]
    return found


def readable(path: Path) -> tuple[list[Record], list[InputError]]:
    """The records of a file that can be read, and what is wrong with each other.

    Raises:
        InputError: a file without records.
    """
    listed = load_yaml(path)
    records = listed.get("records") if isinstance(listed, Mapping) else listed
    if not isinstance(records, list):
        raise InputError(str(path), type(listed).__name__, "has no list of records", "write records: [...]")
    found: dict[str, Record] = {}
    wrong = []
    for index, raw in enumerate(records, 1):
        try:
            record = read(raw, f"{path.name} record {index}")
            if record.id in found:
                raise InputError(f"{path.name} {record.id}", record.id, "is given twice", "give each run an id of its own")
            found[record.id] = record
        except InputError as error:
            wrong.append(error)
    return list(found.values()), wrong


def read(raw: Mapping[str, Any], path: str = "record") -> Record:
    """One record.

    Raises:
        InputError: a missing key, or a kind or grade that is none.
    """
    if not isinstance(raw, Mapping):
        raise InputError(path, type(raw).__name__, "is no record", f"give {', '.join(REQUIRED)}")
    for key in REQUIRED:
        if key not in raw:
            raise InputError(f"{path}.{key}", None, "is missing", f"give {', '.join(REQUIRED)}")
    raw = _plain(raw)
    for key in ("source", "model", "measured"):
        if not isinstance(raw[key], Mapping):
            raise InputError(f"{path}.{key}", type(raw[key]).__name__, "has no keys", "give a mapping")
    if raw["kind"] not in KINDS:
        raise InputError(f"{path}.kind", raw["kind"], "is not a kind", f"use {', '.join(KINDS)}")
    if raw["completeness"] not in GRADES:
        raise InputError(f"{path}.completeness", raw["completeness"], "is not a grade", "use A, B or C")
    source, measured, trained = raw["source"], raw["measured"], raw["trainable"]
    method = trained.get("method", "?") if isinstance(trained, Mapping) else str(trained)
    precision = str(raw["precision"] or "")
    if raw["kind"] == "inference":
        quantized, tables = bool(PACKED.search(precision)), (*RUN, *PRECISIONS)
    else:
        quantized, tables = isinstance(trained, Mapping) and bool(trained.get("base_quantization")), PRECISIONS
    repo = str(source.get("repo") or source.get("title") or source.get("locator") or "?")
    repo = re.sub(r"^(?:https?://)?(?:www\.)?github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?(?:/.*)?$", r"\1", repo)
    accumulation = raw.get("gradient_accumulation_steps")
    gpu_words = str(raw.get("gpu") or "")
    stated = "" if gpu_words.lower() in ("", "not stated") else gpu_words
    return Record(
        raw=raw, id=str(raw["id"]), kind=raw["kind"], grade=raw["completeness"], repo=repo,
        implementation=_implementation(repo, str(raw["id"])), metric=_first(METRICS, str(measured.get("metric", ""))),
        measured=_bytes(measured.get("bytes")), halfwidth=_bytes(measured.get("rounding_halfwidth_bytes")) or 0,
        method=method, quantized=quantized,
        optimizer=optimizer_of(str(raw["optimizer"] or ""), one_by_one=bool(BEFORE_2.search(str(raw.get("software") or "")))),
        in_backward=in_backward(str(raw["optimizer"] or "")),
        precision=_first(tables, precision),
        checkpointing=_checkpointing(str(raw.get("activation_checkpointing") or "none")),
        gpu=_first(GPUS, stated) if stated else "", torch=_torch(str(raw.get("software") or "")),
        before_2=bool(BEFORE_2.search(str(raw.get("software") or ""))),
        accumulation=1 if accumulation is None else accumulation if isinstance(accumulation, int) else 0,
    )  # fmt: skip


NUMBERS = ("micro_batch_size", "seq_len", "world_size", "gradient_accumulation_steps")
KINDS_SPELLED = {"train": "train_step", "training": "train_step", "training_step": "train_step", "generation": "inference",
                 "generate": "inference", "infer": "inference"}  # fmt: skip


def _plain(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The record with whole numbers for those that are written as words, and a kind and a grade as they are spelled here."""
    told = {**raw, **{key: number(raw[key]) for key in NUMBERS if key in raw}}
    if isinstance(raw["source"], str):
        told["source"] = {"title": raw["source"]}
    told["kind"] = KINDS_SPELLED.get(str(raw["kind"]), raw["kind"])
    told["completeness"] = str(raw["completeness"]).strip().upper()
    told["trainable"] = raw["trainable"] or "none"
    return told


def _bytes(value: Any) -> int | None:
    """A whole number of bytes, written as a number or in words."""
    found = number(value)
    if isinstance(found, float):
        found = round(found)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _first(table: Sequence[tuple[str, str | None]], words: str) -> str | None:
    return next((value for pattern, value in table if re.search(pattern, words, re.IGNORECASE)), None)


def _implementation(repo: str, name: str) -> str | None:
    if "torchtune" in repo:
        return "torchtune"
    if name.startswith("liger-") and "-liger-" in name:
        return "liger"
    return IMPLEMENTATIONS.get(repo)


def _checkpointing(words: str) -> str:
    if words.startswith("none"):
        return "none"
    if "offload" in words or "selective" in words:
        return words
    return "full" if re.match(r"full|timm set_grad_checkpointing", words) else words


def _torch(words: str) -> str | None:
    match = re.search(r"(?:PyTorch|torch) (\d+\.\d+)", words)
    return match[1] if match else None
