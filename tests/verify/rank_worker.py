"""One rank of a real data-parallel step, in the process that a launcher started for it: every tensor it holds, as a record's.

By hand of torch and DeepSpeed alone: what it finds owes nothing to what is predicted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from memcalc.runtime.walk import plain_parts, storages_of

PARTS = {"exp_avg": "momentum", "exp_avg_sq": "variance", "step": "step"}


def build(config: dict) -> torch.nn.Module:
    """The same small Llama on every rank."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {key: value for key, value in config.items() if key != "model_type"}
    return LlamaForCausalLM(LlamaConfig(**settings))


def row(component: str, name: str, tensor: torch.Tensor, owner: str | None, part: str = "") -> dict:
    """One tensor as a record lists it."""
    return {
        "component": component, "name": name, "part": part, "owner": owner, "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape), "nbytes": tensor.untyped_storage().nbytes(), "device": "cpu",
    }  # fmt: skip


def states(component: str, state: dict, owner: str) -> list[dict]:
    """An optimizer's states of one parameter."""
    host = {"step": "host_optimizer_states"}
    return [row(host.get(key, component), f"{owner} {key}", value, owner, PARTS[key]) for key, value in state.items()]


def torch_zero(tokens: torch.Tensor, config: dict) -> list[dict]:
    """DistributedDataParallel and ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = torch.nn.parallel.DistributedDataParallel(build(config))
    optimizer = ZeroRedundancyOptimizer(model.module.parameters(), optimizer_class=torch.optim.Adam)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    rows = [row("buffers", name, buffer, name) for name, buffer in model.module.named_buffers()]
    for name, param in model.module.named_parameters():
        rows += [row("parameters", name, param, name), row("gradients", f"{name}.grad", param.grad, name)]
        # the inner optimizer's, for the outer one's keep what other ranks hold empty
        rows += states("optimizer_states", dict(optimizer.optim.state.get(param, {})), name)
    return rows


def deepspeed_zero(tokens: torch.Tensor, config: dict) -> list[dict]:
    """DeepSpeed's stage 1 around torch's Adam."""
    import deepspeed

    # the shared-memory all-reduce would be compiled here and now; gloo's is what every machine has
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = build(config)
    settings = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1, "reduce_bucket_size": 10_000_000},
        "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.Adam(model.parameters()), config=settings, dist_init_required=False
    )
    zero = engine.optimizer
    kept: list[torch.Tensor] = []
    for step in range(2):
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        if step == 1:
            kept = [tensor for group in zero.averaged_gradients.values() if group for tensor in group]
        rows = _held(engine, zero, kept)
        engine.step()
    return rows


def _held(engine, zero, averaged: list[torch.Tensor]) -> list[dict]:
    """Every storage once: the flat parameters, the flat masters, the states, and the gradients kept for the step."""
    rows, seen = [], set()
    for component, name, tensor, owner in _named(engine, zero, averaged):
        for part in plain_parts(tensor):
            key = part.untyped_storage()._cdata
            if key not in seen and part.untyped_storage().nbytes():
                seen.add(key)
                rows.append(row(component, name, part, owner))
    assert {storage.key for storage in storages_of(zero.optimizer)} <= seen, "the walk finds a storage that is not listed"
    return rows


def _named(engine, zero, averaged: list[torch.Tensor]) -> Iterator[tuple[str, str, torch.Tensor, str | None]]:
    for name, param in engine.module.named_parameters():
        yield "parameters", name, param, name
    for name, buffer in engine.module.named_buffers():
        yield "buffers", name, buffer, name
    for at, master in enumerate(zero.single_partition_of_fp32_groups):
        yield "master_parameters", f"group {at} (master)", master, None
        for key, value in zero.optimizer.state.get(master, {}).items():
            component = "host_optimizer_states" if key == "step" else "optimizer_states"
            yield component, f"group {at} {key}", value, None
    for name, param in engine.module.named_parameters():
        if param.grad is not None:
            yield "gradients", f"{name}.grad", param.grad, name
    for at, tensor in enumerate(averaged):
        yield "gradients", f"averaged gradient {at}", tensor, None


def rank_of(engine: str, config: dict) -> dict:
    """Take two real steps and tell what this rank holds."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    tokens = torch.randint(0, config["vocab_size"], (1, 16), generator=torch.Generator().manual_seed(rank))
    run = {"torch": torch_zero, "deepspeed": deepspeed_zero}[engine]
    held = {"index": rank, "tensors": run(tokens, config)}
    torch.distributed.destroy_process_group()
    return held
