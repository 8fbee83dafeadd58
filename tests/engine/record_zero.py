"""Record DeepSpeed's real steps over gloo, which ``test_zero_steps.py`` holds predictions against.

    python -m tests.engine.record_zero

writes ``zero_steps.json``: of every case and rank, what each phase of a steady step holds at its start, at its highest and at
its end.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILE = HERE / "zero_steps.json"
MODEL = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 99, "tie_word_embeddings": False,
}  # fmt: skip


def case(name: str, world: int = 2, *, stage: int, steps: int = 1, precision: str = "fp32", **keys: Any) -> dict[str, Any]:
    """One case, as both sides read it."""
    model = {**MODEL, **keys.pop("model", {})}
    clip = {key: keys.pop(key) for key in ("max_grad_norm", "activation_checkpointing") if key in keys}
    return {
        "name": name, "world": world, "model": model, "precision": precision, "micro_batch_size": 2, "sequence_length": 24,
        "gradient_accumulation_steps": steps, "zero_stage": stage, "zero_args": keys, **clip,
    }  # fmt: skip


NARROW = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
          "stage3_prefetch_bucket_size": 0}  # fmt: skip
AHEAD = {"stage3_param_persistence_threshold": 200, "stage3_max_live_parameters": 60_000, "stage3_max_reuse_distance": 25_000,
         "stage3_prefetch_bucket_size": 15_000}  # fmt: skip
CASES = [
    case("stage 1", stage=1, reduce_bucket_size=30_000),
    case("stage 2", stage=2, reduce_bucket_size=30_000),
    case("stage 1, overlapped, 3 micro-batches", stage=1, steps=3, reduce_bucket_size=5000, overlap_comm=True),
    case("stage 2, gradients over the bucket's size, 3 micro-batches", stage=2, steps=3, reduce_bucket_size=5000),
    case("stage 1, 2 micro-batches", stage=1, steps=2, reduce_bucket_size=20_000, precision="bf16"),
    case("stage 2, clipped", stage=2, reduce_bucket_size=30_000, precision="bf16", max_grad_norm=0.5),
    case("stage 2, tied and overlapped", stage=2, reduce_bucket_size=9000, overlap_comm=True, precision="bf16",
         model={"tie_word_embeddings": True}),
    case("stage 1, reduced in place", stage=1, reduce_bucket_size=5000, reduce_scatter=False, precision="bf16"),
    case("BF16_Optimizer, 2 micro-batches", stage=1, steps=2, precision="deepspeed-bf16"),
    case("stage 1 on 3 ranks, dealt out", 3, stage=1, reduce_bucket_size=9000, round_robin_gradients=True, precision="bf16"),
    case("stage 3, everything kept", stage=3, stage3_param_persistence_threshold=200, reduce_bucket_size=20_000,
         precision="bf16"),
    case("stage 3, as little as can be", stage=3, **NARROW, reduce_bucket_size=20_000, precision="bf16"),
    case("stage 3, ahead, 3 micro-batches", stage=3, steps=3, **AHEAD, reduce_bucket_size=9000, precision="bf16"),
    case("stage 3, tied, in sub-groups, clipped", stage=3, **AHEAD, reduce_bucket_size=5000, sub_group_size=20_000,
         model={"tie_word_embeddings": True}, max_grad_norm=0.5, precision="bf16"),
    case("stage 3, checkpointed", stage=3, **AHEAD, reduce_bucket_size=20_000, precision="bf16",
         activation_checkpointing="full"),
    case("stage 3 on 3 ranks", 3, stage=3, **AHEAD, reduce_bucket_size=20_000, precision="bf16"),
    case("stage 2 on 3 ranks", 3, stage=2, reduce_bucket_size=12_000, precision="bf16"),
]  # fmt: skip


def run(cases: list[dict[str, Any]], world: int) -> list[list[Any]]:
    """What each rank of so many measured, case by case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "cases.json"
        told.write_text(json.dumps(cases))
        command = [sys.executable, "-m", "tests.engine.zero_worker", str(told)]
        running = [
            subprocess.Popen([*command, f"{folder}/{rank}.json"], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(world)
        ]
        for process in running:
            if process.wait():
                raise SystemExit("a rank has failed")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def main() -> None:
    """Run every case."""
    found = []
    for world in sorted({one["world"] for one in CASES}):
        mine = [one for one in CASES if one["world"] == world]
        ranks = run(mine, world)
        found += [{**one, "ranks": [rank[place] for rank in ranks]} for place, one in enumerate(mine)]
    lines = ",\n".join(json.dumps(one) for one in found)
    FILE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
