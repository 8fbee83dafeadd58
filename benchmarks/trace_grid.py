"""The steps of well-known models, traced: peaks with AMP in FP16 and BF16, with and without activation checkpointing.

    python benchmarks/trace_grid.py [--models gpt2 llama-3.1-8b …] [--markdown]

Each row is one trace, in this process: micro-batch 1 (8 images), 1024 tokens or the model's most, AdamW, an H100. ``own`` is a
module of this file, ``+lora`` peft's adapters of rank 8. What fails says why in its row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch

from memcalc.api import trace_read, trace_whole
from memcalc.errors import MemcalcError
from memcalc.job import read_job

GIB = 2**30
MODELS = (
    "own", "gpt2", "bert-base-uncased", "t5-base", "vit-base-patch16-224", "llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b-v0.1",
    "resnet-50", "gpt2+lora",
)  # fmt: skip
SIZES: dict[str, dict[str, int]] = {
    "bert-base-uncased": {"sequence_length": 512},
    "t5-base": {"sequence_length": 512, "source_length": 512},
    "vit-base-patch16-224": {"micro_batch_size": 8},
    "resnet-50": {"micro_batch_size": 8},
}


class Own(torch.nn.Module):
    """Two inputs, a tied weight, a frozen part and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(1000, 256)
        self.mix = torch.nn.Linear(512, 256)
        self.frozen = torch.nn.Linear(256, 256).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(256)
        self.head = torch.nn.Linear(256, 1000, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Scores of 1000 classes."""
        both = torch.cat([self.table(ids).mean(1), x], dim=-1)
        return self.head(self.norm(self.frozen(torch.nn.functional.gelu(self.mix(both)))))


def trace(model: str, precision: str, checkpointing: str) -> Any:
    """One cell of the grid."""
    keys = {"optimizer": "adamw", "precision": precision, "activation_checkpointing": checkpointing, "gpu": "h100-80gb"}
    if model == "own":
        inputs = {"ids": "ids=int64[64,32]<1000", "x": "x=float32[64,256]"}
        return trace_whole(Own(), list(inputs.values()), loss="cross_entropy", **{**keys, "activation_checkpointing": "none"})
    name, _, lora = model.partition("+")
    sizes = SIZES.get(name, {"micro_batch_size": 1, "sequence_length": 1024})
    job = read_job({"model": name, "engine": "trace", **keys, **sizes})
    return trace_read(job, lora={"r": 8} if lora else None)


def rows(models: list[str]) -> Iterator[list[str]]:
    """Each cell as words."""
    for model in models:
        for precision in ("amp-fp16", "amp-bf16"):
            for checkpointing in ("none", "full"):
                if model in ("own", "resnet-50") and checkpointing == "full":
                    continue  # neither has a list of layers to recompute
                begun = time.process_time()
                head = [model, precision, checkpointing]
                try:
                    found = trace(model, precision, checkpointing)
                except MemcalcError as error:
                    yield [*head, str(error).replace("\n", " "), "", "", "", "", ""]
                    continue
                peak, components = found.footprint.peak, found.footprint.components
                sizes = (components.activations, peak.requested, peak.allocated, peak.reserved)
                figures = [f"{(size or 0) / GIB:.3f}" for size in sizes]
                yield [*head, *figures, peak.phase or "", f"{time.process_time() - begun:.1f}"]


def main() -> None:
    """The table, as it comes."""
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("--models", nargs="+", default=list(MODELS))
    reader.add_argument("--markdown", action="store_true")
    told = reader.parse_args()
    heads = ["model", "precision", "checkpointing", "activations", "requested", "allocated", "reserved GiB", "peak in", "CPU s"]
    widths = [24, 10, 14, 12, 10, 10, 13, 15, 6]
    for row in [heads, *([["---"] * len(heads)] if told.markdown else [])]:
        _print(row, widths, markdown=told.markdown)
    for row in rows(told.models):
        _print(row, widths, markdown=told.markdown)


def _print(row: list[str], widths: list[int], *, markdown: bool) -> None:
    line = f"| {' | '.join(row)} |" if markdown else "".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
    print(line, flush=True)


if __name__ == "__main__":
    main()
