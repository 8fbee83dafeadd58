"""What a record tells in words, read as what a job takes: lengths, dates of code, adapters, bits, ranks; else None."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.published.commits import date_of
from benchmarks.published.kinds import number
from benchmarks.published.records import FOUR_BITS, Record

PER_OPERATOR = "selective, per operator"
"""Torchtitan's checkpointing operator by operator, in the rule's own word."""

PAGES = {
    "tutorials/resource-tables.md": "2023-10-16", "tutorials/quantize.md": "2023-10-05",
    "tutorials/finetune_lora.md": "2023-10-05",
}  # fmt: skip
"""Litgpt's pages with figures of generate/base.py, and the date of the code that these are of: of 8641822b, which the first
page names, and of 982abcbc, which put those of the other two where they stand (git log -S)."""
PROMPT = 6
"""Tokens of a prompt of which no number is told: generate/base.py's own, "Hello, my name is", is five to Falcon's, GPT-NeoX'
and Phi's tokenizers, and six to Llama's, which begins with <s>. A token more or less is a row of the cache and of the logits:
of Llama-2-7B half a MB."""
PROMPTED = re.compile(
    r"prompt(?: of)?(?:[ ~]*(\d+)(?:\s*[-–]\s*(\d+))?(?: tokens)?)? ?\+ ?(\d+)(?: new)? tokens?", re.IGNORECASE
)

BOTH = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(\d+)[ -](?:tokens? )?prompt(?: tokens?)? ?[+,/&] ?(\d+)(?: (?:new|generated|output))?(?: tokens?)?\b",
        r"(?:input|prompt|prefill)[ =:]*(\d+)[^\d]+?(?:output|new|generat\w*|decode)[ =:]*(\d+)\b",
        r"(\d+) ?\+ ?(\d+)(?: tokens?)?$",
    )
)
"""Other ways to say both lengths."""


def lengths(record: Record) -> tuple[int | None, int] | None:
    """(tokens of the prompt, tokens in all) of a model that is run; None where they are not told.

    A prompt of "5-6" tokens is of the longer; a bare number is of one forward over so many, or, where it is said to be
    generated, of tokens that came one by one, and of no prompt.
    """
    told = record.raw["seq_len"]
    if isinstance(told, bool):
        return None
    if isinstance(told, int):
        words = f"{record.text('notes')} {record.raw['measured'].get('metric')}"
        return None if told <= 0 else (None if re.search("generat", words) else told, told)
    words = str(told or "").strip()
    found = PROMPTED.match(words)
    if found is not None:
        prompt = int(found[2] or found[1] or PROMPT)
        return prompt, prompt + int(found[3])
    both = next((match for pattern in BOTH if (match := pattern.match(words))), None)
    return None if both is None else (int(both[1]), int(both[1]) + int(both[2]))


def weights_alone(record: Record) -> bool:
    """Whether a model was loaded, and nothing run yet."""
    words = " ".join(record.text(key) for key in ("assumptions", "notes"))
    return record.kind == "inference" and record.raw["seq_len"] is None and bool(re.search("after load", words))


def code_date(record: Record) -> str | None:
    """The date of the code that a run is of, as its implementation is told it; None where that is not known.

    Litgpt's is that of the commit that is told, or, of a run that does not train, of the one behind its page; torchtune's that
    of the page's own commit, whose recipes made its figures.
    """
    source = record.raw["source"]
    if record.implementation == "torchtitan":
        return titan_date(record)
    if record.implementation == "torchtune":
        return date_of("torchtune", source.get("commit"))
    if source.get("code_commit"):
        return date_of(record.implementation, source["code_commit"])
    return PAGES.get(str(source.get("path"))) if record.kind == "inference" else None


def targets(record: Record) -> list[str] | None:
    """What a run adapts, in its own words; None where it does not say."""
    trained = record.raw["trainable"]
    found = (trained.get("targets") or trained.get("target_modules")) if isinstance(trained, Mapping) else None
    if isinstance(found, str):
        found = [part for part in re.split(r"[\s,+/]+", found) if part]
    return [str(part) for part in found] if isinstance(found, list) and found else None


def rank(record: Record) -> int | None:
    """Of a run's adapters; None where it does not say."""
    trained = record.raw["trainable"]
    found = number(trained.get("rank", trained.get("r"))) if isinstance(trained, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def builder(record: Record) -> str | None:
    """What builds a model of torchtune's; None where its name does not say."""
    return next((name for part, name in BUILDERS.items() if part in str(record.raw["model"].get("name"))), None)


BUILDERS = {
    "Llama-3.2": "llama3_2", "Llama-3.1": "llama3_1", "Llama-3-": "llama3", "Llama-2": "llama2", "Qwen2-": "qwen2",
}  # fmt: skip
"""Torchtune's builder by a part of the model's name."""

EXPANDABLE = "2024-10-22"
"""From when torchtitan's script starts its runs with expandable segments (a5e57e4a run_llama_train.sh, later run_train.sh)."""
FUSED = "2025-02-24"
"""From when its AdamW is fused unless told otherwise; foreach before (6e498855 config_manager.py:optimizer.implementation)."""

NIGHTLIES = (
    ("2025-09-10", "2.10"), ("2025-06-27", "2.9"), ("2025-03-17", "2.8"), ("2025-01-01", "2.7"), ("2024-09-10", "2.6"),
    ("2024-06-13", "2.5"), ("2024-03-13", "2.4"),
)  # fmt: skip
"""By a date from which on nightlies are known to have had that number (2.10.0.dev20250910, 2.8.0.dev20250317, …), the newest
first: torchtitan's runs are of the nightly of their time, as its README asks."""


def titan_date(record: Record) -> str | None:
    """The date of the code of a run that a commit's own message tells of, or that names its commit; None for another."""
    source = record.raw["source"]
    if source.get("path") == "commit message":
        return date_of("torchtitan", source.get("commit"))
    named = re.search(r"run with torchtitan ([0-9a-f]{8})", str(source.get("locator")))
    return date_of("torchtitan", named[1]) if named else None


def policy(record: Record) -> str:
    """How a run recomputes: ``none``, ``full``, torchtitan's operator by operator, or the record's own words."""
    by_operator = record.implementation == "torchtitan" and re.match(r"selective,? per-op", record.checkpointing)
    return PER_OPERATOR if by_operator else record.checkpointing


def quantization(record: Record) -> str | None:
    """The job's word for a base in 4 bits by bitsandbytes, of which FP4 takes what NF4 does; None for another.

    source: bitsandbytes 0.41.1 functional.py:quantize_4bit, whose ``quant_type`` decides values and no size
    """
    if not record.quantized:
        return None
    if record.kind == "inference":
        found = FOUR_BITS.search(record.text("precision"))
        words = found[1] if found else ""
    else:
        words = str(record.raw["trainable"].get("base_quantization")).lower().removeprefix("bnb.")
    return {"nf4": "nf4", "nf4-dq": "nf4-double", "fp4": "nf4", "fp4-dq": "nf4-double"}.get(words)


FP32_REDUCED = re.compile(r"reduce_dtype=fp32|fp32 reduce-scatter")
"""How a run says that gradients are reduced in FP32."""


def sharding(record: Record) -> dict[str, object] | None:
    """The keys of a job for a way of sharding whose statics are modelled; None for another."""
    words = record.text("sharding")
    ranks = record.raw["world_size"]
    if not isinstance(ranks, int):
        return None
    if ranks == 1:
        return {}
    policies = "default|never|always" if record.implementation == "torchtitan" else "default|never"
    match = re.fullmatch(rf"FSDP2 (?:\d+|\(dp_shard \d+\))(?:, reshard_after_forward=({policies}))?", words)
    if match:  # under ``never`` every unit stays gathered; under ``always`` its implementation lets go of the last ones too
        wide = {"zero_args": {"reduce_in_float32": True}} if FP32_REDUCED.search(record.text("precision")) else {}
        return {"dp": ranks, "zero_stage": 2 if match[1] == "never" else 3, "zero_backend": "fsdp2", **wide}
    match = re.fullmatch(r"TP 1 x PP 1 x CP 1 x EP 1( \+ distributed optimizer)?", words)
    if match and record.implementation == "megatron":
        return {"dp": ranks, "zero_stage": 1 if match[1] else 0, "zero_backend": "megatron"}
    return None
