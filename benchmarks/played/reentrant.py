"""Checkpointing with reentrance, traced: what ``python -m benchmarks.played.reentrant`` prints stands in its test."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.played.against import _steps, heights
from memcalc.engines.trace.estimate import Feed, trace_module
from memcalc.job import read_job

ROWS, WIDTH, WIDE, BLOCKS = 24, 32, 80, 3


def _block(up: torch.nn.Module, down: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: down(torch.nn.functional.gelu(up(x)))


class Blocks(torch.nn.Module):
    """A matrix, and blocks that are recomputed behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.ups = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDE, bias=False) for _ in range(BLOCKS))
        self.downs = torch.nn.ModuleList(torch.nn.Linear(WIDE, WIDTH, bias=False) for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sum of everything."""
        x = self.first(x)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = checkpoint(_block(up, down), x, use_reentrant=True)
        return {"loss": x.float().sum()}


def main() -> None:
    """The highest point, what is left, and what is alive where backward begins."""
    told = {"precision": "bf16-pure", "micro_batch_size": ROWS, "engine": "trace", "optimizer": "sgd"}
    job = read_job({"model": "py:benchmarks:Blocks", **told})
    found = heights(_steps(trace_module(Blocks(), job, Feed(), torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)).tape, 2))
    print((found.top, found.net, found.saved))


if __name__ == "__main__":
    main()
