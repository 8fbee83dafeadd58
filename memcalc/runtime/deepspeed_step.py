"""DeepSpeed's engine as the step: ZeRO 1 to 3 with its flat buffers, read where it keeps them.

source: deepspeed 0.19.8 runtime/engine.py, runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py; attribute names are theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch

from memcalc.errors import MissingPackageError, NotModelledError
from memcalc.runtime.optimizers import Trained, real_optimizer
from memcalc.runtime.step_base import Holding, Recipe, Step

FLAT = {1: "bit16_groups_flat", 2: "bit16_groups_flat", 3: "fp16_partitioned_groups_flat"}
MASTERS = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_partitioned_groups_flat"}


class DeepSpeedStep(Step):
    """An engine around the module and the optimizer; it clips, zeroes and scales by itself."""

    def __init__(self, recipe: Recipe, trained: Sequence[Trained], module: Any) -> None:
        self.trained, self.notes, self.stage = list(trained), [], recipe.stage
        deepspeed = _deepspeed(recipe.device)
        optimizer = real_optimizer(recipe.entry, recipe.arguments, recipe.options, trained, module)
        self.engine, self.wrapper, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=_config(recipe))
        self.module, self.optimizer = self.engine, self.wrapper.optimizer
        # stage 3 hands its optimizer one sub-group at a time, and none in between
        three = self.stage == 3
        groups = [self.wrapper.fp32_partitioned_groups_flat] if three else [g["params"] for g in self.optimizer.param_groups]
        flats = [flat for group in groups for flat in group]
        self.keyed = [Trained("flat partition", flat, "other") for flat in flats]
        self.masters = []

    def backward(self, loss: torch.Tensor) -> None:
        """By the engine, which reduces gradients as they come."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def next_micro_batch(self) -> None:
        """The engine counts micro-batches by its own step."""
        self.engine.step()

    def clip(self, max_norm: float) -> float | None:
        """Left to the engine's step, which was told."""
        return None

    def update(self) -> bool:
        """The engine's step, which also drops the gradients."""
        self.engine.step()
        return not self.engine.was_step_applied()

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Done by the engine's step."""

    def kept(self, module: Any) -> Iterator[Holding]:
        """Flat parameters, buffers, the partition's masters; in stage 3 also what stays gathered and the bucket."""
        if self.stage < 3:
            for name, param in module.named_parameters(remove_duplicate=False):
                yield Holding("parameters", name, param, name, FLAT[self.stage])
        else:
            yield from self._stage_3(module)
        for name, buffer in module.named_buffers(remove_duplicate=False):
            yield Holding("buffers", name, buffer)
        for each in self.keyed:
            yield Holding("master_parameters", MASTERS[self.stage], each.tensor)

    def _stage_3(self, module: Any) -> Iterator[Holding]:
        for group in self.wrapper.fp16_partitioned_groups:
            for piece in group:
                yield Holding("parameters", FLAT[3], piece)
        for name, param in module.named_parameters():
            if param.data.numel():
                yield Holding("parameter_copies", f"{name} (persistent)", param.data, name)
        for bucket in self.wrapper.ipg_buckets.values():
            if bucket.buffer is not None:
                yield Holding("communication", "ipg bucket", bucket.buffer)

    def gradients(self) -> Iterator[Holding]:
        """The partition's share of the reduced gradients."""
        if self.stage == 3:
            yield Holding("gradients", "grad_partitions_flat_buffer", self.wrapper.grad_partitions_flat_buffer)
            return
        for group in self.wrapper.averaged_gradients.values():
            for piece in group or ():
                yield Holding("gradients", "averaged_gradients", piece, None, "averaged_gradients")


def _deepspeed(device: str) -> Any:
    """The package, told which device to use.

    Raises:
        MissingPackageError: it is not installed.
    """
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, alone in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, alone)  # without a launcher it refuses to start
    try:
        deepspeed = import_module("deepspeed")
    except ImportError:
        rule = "needs a package that is not installed"
        raise MissingPackageError("parallelism.zero_backend", "deepspeed", rule, "pip install deepspeed") from None
    if device == "cpu":
        # else every rank waits for minutes while one compiles a shared-memory reduction, or for ever on the lock of one that
        # was killed meanwhile (comm/torch.py:build_shm_op); gloo does the same, and no tensor of training knows of it
        getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


def _config(recipe: Recipe) -> dict[str, Any]:
    """The engine's configuration, as a person would write it in ds_config.json.

    Raises:
        NotModelledError: a precision or a stage this loop does not run.
    """
    switches = {"float16": "fp16", "bfloat16": "bf16", "float32": None}
    scheme = recipe.scheme
    plain = scheme.name in ("fp16", "bf16", "fp32", "deepspeed-fp16")
    if not plain or scheme.parameter is None or recipe.stage == 0:
        what = scheme.name if not plain else f"zero_stage {recipe.stage}"
        raise NotModelledError(
            "training.precision", what, "is not run under DeepSpeed by this loop", "use bf16 and zero_stage 1"
        )
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "zero_optimization": {"stage": recipe.stage, **recipe.engine_args},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if recipe.max_norm is not None:
        config["gradient_clipping"] = recipe.max_norm
    switch = switches[scheme.parameter]
    return config if switch is None else {**config, switch: {"enabled": True}}
