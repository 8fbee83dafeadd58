"""One rank of DeepSpeed's step on the CPU, a process of its own: every byte PyTorch's CPU allocator hands out in one step.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python -m tests.engine.zero_worker CASES.json OUT.json

By hand of torch, transformers and DeepSpeed alone: what it finds owes nothing to what is predicted. The profiler sees what its
own threads allocate and free; gloo's threads hold a tensor for an instant longer than the call that hands it over, so that the
worker waits for them to let go.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "deepspeed-bf16": torch.bfloat16}
COLLECTIVES = ("all_reduce", "all_gather_into_tensor")


def waiting(function: Any) -> Any:
    """A collective, and the instant until gloo's threads have let go of its tensors."""

    def waited(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        if hasattr(out, "wait"):
            out.wait()
        time.sleep(0.02)
        return out

    return waited


def scattered(output: torch.Tensor, whole: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """A reduce-scatter in its input's own memory, as NCCL's is; gloo's works on a clone."""
    dist.all_reduce(whole)
    output.copy_(whole.chunk(dist.get_world_size())[dist.get_rank()])


def engine_of(case: dict[str, Any]) -> Any:
    """The case's engine around a small model; under stage 3 one that is built under zero.Init.

    Its activation functions are functions there, not modules, for a machine of shapes is not told of them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {key: value for key, value in case["model"].items() if key != "model_type"}
    config = AutoConfig.for_model(case["model"]["model_type"], **settings)
    config.use_cache = False
    asked: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": case["micro_batch_size"], "steps_per_print": 2**31,
        "gradient_accumulation_steps": case["gradient_accumulation_steps"],
        "zero_optimization": {"stage": case["zero_stage"], **case["zero_args"]}, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    if case["precision"] != "fp32":
        asked["bf16"] = {"enabled": True}
    if case["precision"] == "deepspeed-bf16":
        asked["data_types"] = {"grad_accum_dtype": "fp32"}
    if "max_grad_norm" in case:
        asked["gradient_clipping"] = case["max_grad_norm"]
    dtype = DTYPES[case["precision"]]
    if case["zero_stage"] == 3:
        batch = {"train_micro_batch_size_per_gpu": 1}
        with deepspeed.zero.Init(config_dict_or_path={**asked, **batch}, dtype=dtype):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for module in model.modules():
            if "act_fn" in module._modules:
                del module._modules["act_fn"]
                module.act_fn = torch.nn.functional.silu
    else:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    if case.get("activation_checkpointing") == "full":
        # the generator's state is a tensor of the CPU's, which would be counted here
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=asked, dist_init_required=False)[0]


def step(engine: Any, case: dict[str, Any], tokens: torch.Tensor) -> None:
    """One step, in memcalc's words."""
    batches = case["gradient_accumulation_steps"]
    for batch in range(batches):
        with record_function("phase forward"):
            loss = engine(input_ids=tokens, labels=tokens).loss
        if batches > 1:
            loss = loss / batches
        with record_function("phase backward"):
            engine.backward(loss, scale_wrt_gas=False)
        del loss
        if batch < batches - 1:
            engine.step()
    with record_function("phase optimizer_step"):
        engine.step()


def measured(case: dict[str, Any], rank: int) -> list[list[Any]]:
    """(phase, bytes at its start, highest, at its end) of every phase of a steady step, above what is there between steps.

    Of two steps that are profiled it is the second, for the profiler sees no deaths of what was born before it.
    """
    engine = engine_of(case)
    shape = (case["micro_batch_size"], case["sequence_length"])
    tokens = torch.randint(0, case["model"]["vocab_size"], shape, generator=torch.Generator().manual_seed(rank))
    for _ in range(2):
        step(engine, case, tokens)
    gc.collect()
    gc.disable()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        for _ in range(2):
            step(engine, case, tokens)
    gc.enable()
    events: list[tuple[int, Any]] = []
    for event in profiled.profiler.kineto_results.events():
        start = event.start_ns()
        if event.name() == "[memory]":
            events.append((start, event.nbytes()))
        elif event.name().startswith("phase "):
            events += [(start, event.name()[6:]), (start + event.duration_ns(), "")]
    rows = phases(event for _, event in sorted(events, key=lambda pair: pair[0]))
    rows = rows[len(rows) // 2 :]
    return [[phase, *(at - rows[0][1] for at in rest)] for phase, *rest in rows]


def phases(events: Any) -> list[list[Any]]:
    """Bytes and phases' names (empty at their ends) as rows."""
    live, rows, inside = 0, [], False
    for event in events:
        if isinstance(event, str):
            inside = bool(event)
            if inside:
                rows.append([event, live, live, live])
            rows[-1][3] = live
            continue
        live += event
        if inside:
            rows[-1][2] = max(rows[-1][2], live)
    return rows


def main() -> None:
    """Every case, in order."""
    told, out = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    # the shared-memory all-reduce would be compiled here and now; gloo's is what every machine has
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in COLLECTIVES:
        setattr(dist, name, waiting(getattr(dist, name)))
    dist.reduce_scatter_tensor = scattered
    Path(out).write_text(json.dumps([measured(case, rank) for case in json.loads(Path(told).read_text())]))


if __name__ == "__main__":
    main()
