"""Litgpt's own model with its cache of keys and values, traced: what played prompts and steps of decoding are held against.

    python -m benchmarks.played.litgpt_cases CLONE

traces small models of each family that litgpt has a config for, of commits that differ, and keeps what they come to in a file.
What stands around the model is that of generate/base.py: a cache made beforehand, positions, and Fabric's cast of the logits.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.played.forwards import height
from benchmarks.played.others import default
from benchmarks.published.litgpt import modules, of_commit

FILE = Path(__file__).with_name("litgpt_generating.json")
COMMITS = {"2023-10-16": "8641822b", "2023-10-27": "0cc02afa", "2024-03-28": "3cf6493c", "2024-08-02": "2b195c7f"}
"""By the date that a job says."""
CAPACITY = 61
"""Tokens the cache holds: no multiple of 8, so that its mask is padded for the kernel."""
ROTARY = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 128}
OWN = {"n_embd": 64, "n_layer": 5, "n_head": 4, "padded_vocab_size": 128, "block_size": 128}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama-2-7b-hf", {"intermediate_size": 176}, {"model_type": "llama", **ROTARY}),
    "llama, grouped": (
        "Llama-2-7b-hf", {"intermediate_size": 176, "n_query_groups": 2},
        {"model_type": "llama", **ROTARY, "num_key_value_heads": 2},
    ),
    "phi": ("phi-1_5", {"intermediate_size": 176}, {"model_type": "phi", **ROTARY, "partial_rotary_factor": 0.5}),
    "gpt_neox": (
        "pythia-70m", {"intermediate_size": 176},
        {"model_type": "gpt_neox", **ROTARY, "rotary_pct": 0.25, "use_parallel_residual": True},
    ),
    "falcon": (
        "falcon-7b", {"intermediate_size": 256},
        {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 128,
         "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False},
    ),
    "falcon, grouped": (
        "falcon-40b", {"intermediate_size": 256, "n_query_groups": 2},
        {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 128,
         "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False, "alibi": False},
    ),
    "gemma": (
        "Gemma-2b", {"intermediate_size": 176, "head_size": 16, "n_query_groups": 1},
        {"model_type": "gemma", **ROTARY, "num_key_value_heads": 1, "head_dim": 16},
    ),
    "gemma2": (
        "Gemma-2-2b", {"intermediate_size": 176, "head_size": 16, "n_query_groups": 2, "n_layer": 6, "sliding_window_size": 32},
        {"model_type": "gemma2", **ROTARY, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 6,
         "sliding_window": 32},
    ),
}  # fmt: skip
"""By name: litgpt's config, what of it is another here, and the same model as a config of Hugging Face's."""
SINCE = {"gemma": "2024-03-28", "gemma2": "2024-08-02"}
"""Of those that were not there from the first commit on."""


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the model, job): each model and mode of the newest commit, and of older ones where they differ."""
    newest = max(COMMITS)
    for name, (_, _, config) in MODELS.items():
        for version in COMMITS:
            if version < SINCE.get(name, ""):
                continue
            usual = {"model": config, "implementation": "litgpt", "implementation_args": {"version": version},
                     "max_cache_length": CAPACITY}  # fmt: skip
            for precision in ("bf16-pure", "fp32", "amp-bf16") if version == newest else ("bf16-pure",):
                yield name, {**usual, "precision": precision, "mode": "prefill", "sequence_length": 24}
                yield name, {**usual, "precision": precision, "mode": "decode", "context_length": 40}


def name_of(name: str, job: dict[str, Any]) -> str:
    """What tells the jobs apart."""
    return f"{name} {job['implementation_args']['version']} {job['precision']} {job['mode']}"


def traced(name: str, job: dict[str, Any], load: Callable[[str], Any]) -> dict[str, int]:
    """What the second of two forwards comes to: height, allocated peak, and what the cache holds."""
    import torch

    import memcalc

    own, changes, _ = MODELS[name]
    base = torch.bfloat16 if job["precision"] == "bf16-pure" else torch.float32
    mixed = job["precision"].startswith("amp")
    with memcalc.tracing(name=name) as session:
        with torch.device(session.device), default(base):
            model = load("model").GPT(load("config").Config.from_name(own, **{**OWN, **changes})).eval()
            model.max_seq_length = CAPACITY
        session.watch(model)
        with torch.device(session.device), default(base):
            model.set_kv_cache(batch_size=1)
        caches = [block.attn.kv_cache for block in model.transformer.h]
        session.keep([("mask_cache", model.mask_cache)], "buffer")
        _told(session, caches)
        tokens = job.get("sequence_length", 1)
        ids = torch.zeros((1, tokens), dtype=torch.int64, device=session.device)
        places = torch.arange(tokens, dtype=torch.int64, device=session.device)
        session.keep([("input_ids", ids), ("input_pos", places)], "input")
        with torch.no_grad():  # under inference_mode a mode sees composite operators whole, and not their kernels
            if job["mode"] == "decode":  # whatever came before has cast the cache
                for cache in caches:
                    dtype = torch.bfloat16 if mixed else base
                    cache.k, cache.v = cache.k.to(dtype), cache.v.to(dtype)
                _told(session, caches)
            for iteration in (1, 2):
                session.mark("forward", iteration)
                with torch.autocast("cuda", torch.bfloat16) if mixed else contextlib.nullcontext():
                    logits = model(ids, places)
                logits = logits.to(torch.float32)
                chosen = logits[0, -1]
                del logits, chosen
                _told(session, caches)  # autocast's first forward casts them
    found = session.traced
    cache, allocated = found.footprint.components.cache, found.footprint.peak.allocated
    top, kept = height(found.tape)
    return {"top": top, "allocated": int(allocated or 0), "cache": kept, "most": int(cache or 0)}


def _told(session: Any, caches: list[Any]) -> None:
    for cache in caches:
        session.keep([("keys", cache.k), ("values", cache.v)], "cache")


def recorded() -> dict[str, dict[str, int]]:
    """By job what its trace came to."""
    found: dict[str, dict[str, int]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def main(clone: str) -> None:
    """Trace every job and keep what it comes to."""
    found = {}
    for version, commit in COMMITS.items():
        with of_commit(commit, Path(clone)) as (folder, package), modules(package, folder) as load:
            for name, job in jobs():
                if job["implementation_args"]["version"] == version:
                    found[name_of(name, job)] = traced(name, job, load)
                    print(name_of(name, job), found[name_of(name, job)], flush=True)
    FILE.write_text(json.dumps(found, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
