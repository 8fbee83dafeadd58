"""litgpt's own model and loop, traced: the code of the commit a run was made with, from a checkout that is not part of this.

    git clone https://github.com/Lightning-AI/litgpt
    git -C litgpt worktree add ../litgpt-2023 8641822b3249bb94f068c254aa5d13decbc9f0a0   # package lit_gpt
    git -C litgpt worktree add ../litgpt-2024 2b195c7f                                   # package litgpt

The model is that code's; the few lines around it are those of finetune/lora.py, finetune/full.py and extensions/thunder/pretrain.py.
Lightning is not needed: what the model takes from it is stood in for, and what Fabric does to a step is done here.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.published.convert import ACCUMULATED, question
from benchmarks.published.records import Record
from memcalc.errors import InputError, MissingPackageError

CHUNK = 128
"""Tokens to a call of lm_head, and to one of cross_entropy (finetune/lora.py lm_head_chunk_size, utils.py chunk_size)."""
NAMES = {"TinyLlama-1.1B": "tiny-llama-1.1b"}
"""Hub names that litgpt's configs have by another."""
PARTS = {"q": "query", "k": "key", "v": "value", "proj": "projection", "mlp": "mlp", "head": "head"}
ABSENT = (
    "lightning", "lightning.fabric", "lightning.fabric.loggers", "lightning.fabric.strategies", "lightning.fabric.utilities",
    "lightning.fabric.utilities.load", "lightning.pytorch", "lightning.pytorch.loggers", "lightning.pytorch.cli",
    "lightning_utilities", "lightning_utilities.core", "lightning_utilities.core.imports",
)  # fmt: skip


def package_of(record: Record) -> str:
    """The package of the run's time: ``lit_gpt`` of 2023, where torch was 2.1, else ``litgpt`` of 2024."""
    return "lit_gpt" if record.torch == "2.1" else "litgpt"


def trace(record: Record, folder: Path) -> Any:
    """A record's step, traced.

    Args:
        record: one of litgpt's.
        folder: the checkout that holds the record's package.

    Raises:
        MissingPackageError: the checkout does not hold the package.
    """
    import torch

    import memcalc

    asked = question(record)
    training = asked.job["training"]
    behaviour = asked.job["behaviour"]
    with _modules(package_of(record), folder) as load, memcalc.tracing(name=record.id, behaviour=behaviour) as session:
        base = torch.float32 if training["precision"].startswith("amp") else torch.bfloat16
        with torch.device(session.device), _default(base):
            model = _model(record, load)
        session.watch(model)
        params = [param for param in model.parameters() if param.requires_grad]
        options = {"foreach": None, **(record.optimizer.arguments if record.optimizer else {})}
        optimizer = torch.optim.AdamW(params, lr=3e-4, weight_decay=0.01, **options)
        shape = (training["micro_batch_size"], training["sequence_length"])
        ids = torch.zeros(shape, dtype=torch.int64, device=session.device)
        targets = torch.zeros(shape, dtype=torch.int64, device=session.device)
        steps = min(record.accumulation, ACCUMULATED)
        context: Callable[[], Any] = contextlib.nullcontext
        if base is torch.float32:
            context = lambda: torch.autocast("cuda", torch.bfloat16)  # noqa: E731
        chunked = load("utils").chunked_cross_entropy
        even = "thunder" in record.id  # pretrain.py: every sample is as long as the next, and targets are shifted in the data
        for _ in range(2):
            for _ in range(steps):
                logits = _logits(record, model, ids, context)
                if even:
                    loss = chunked(logits, targets, chunk_size=0)
                elif isinstance(logits, list):
                    logits[-1] = logits[-1][..., :-1, :]
                    loss = chunked(logits, targets[..., 1:])
                else:
                    loss = chunked(logits[..., :-1, :], targets[..., 1:])
                loss.div(steps).backward()
                if not even:  # the script holds them until the next are there; a padded batch's neighbours are shorter, and by
                    del logits  # how much is not told, so that they are left out
            optimizer.step()
            optimizer.zero_grad()
    return session.traced


def _logits(record: Record, model: Any, ids: Any, context: Callable[[], Any]) -> Any:
    """What Fabric's module gives: cast to FP32 (lightning 2.1.0 fabric/wrappers.py:_FabricModule.forward, convert_output)."""
    import torch

    with context():
        output = model(ids, lm_head_chunk_size=CHUNK) if record.method == "lora" else model(ids)
    return [chunk.to(torch.float32) for chunk in output] if isinstance(output, list) else output.to(torch.float32)


def _model(record: Record, load: Callable[[str], Any]) -> Any:
    name = str(record.raw["model"]["name"]).rpartition("/")[2]
    name, told = NAMES.get(name, name), record.raw["trainable"]
    if record.method != "lora":
        code = load("model")
        model = code.GPT(load("config").Config.from_name(name))
        model.max_seq_length = record.raw["seq_len"]
        return model
    code = load("lora")
    new = package_of(record) == "litgpt"
    options = {"r": told["rank"], "alpha": told.get("alpha", 16), "dropout": told.get("dropout", 0.05)}
    options |= {f"{'' if new else 'to_'}{word}": part in told["targets"] for part, word in PARTS.items()}
    model = code.GPT(code.Config.from_name(name, **{f"lora_{key}" if new else key: value for key, value in options.items()}))
    code.mark_only_lora_as_trainable(model)
    model.max_seq_length = record.raw["seq_len"]
    return model


@contextlib.contextmanager
def _default(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Stand(ModuleType):
    """A package that is imported and not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _Nothing:
    """Whatever is asked of it; as a requirement, one that is not met."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __bool__(self) -> bool:
        return False


@contextlib.contextmanager
def _modules(package: str, folder: Path) -> Iterator[Callable[[str], Any]]:
    """Modules of a package, without what its ``__init__`` loads."""
    if not (folder / package / "model.py").is_file():
        raise MissingPackageError("--litgpt", str(folder), f"has no {package}", "check out the commit this module names")
    before = dict(sys.modules)
    for name in ABSENT:
        if name not in sys.modules:
            sys.modules[name] = stand = _Stand(name)
            stand.__path__ = []
    root = ModuleType(package)
    root.__path__ = [str(folder / package)]
    sys.modules[package] = root

    def load(name: str) -> Any:
        try:
            return importlib.import_module(f"{package}.{name}")
        except ImportError as error:
            raise InputError("--litgpt", f"{package}.{name}", f"cannot be imported ({error})", "check out its commit") from None

    try:
        load("model")
        yield load
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] in (package, "lightning", "lightning_utilities"):
                del sys.modules[name]
