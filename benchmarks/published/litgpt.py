"""litgpt's own model and loop, traced: the code of the commit a run was made with, out of a clone that is not part of this.

    git clone https://github.com/Lightning-AI/litgpt

The model is that code's; the few lines around it are those of finetune/lora.py, finetune/full.py and
extensions/thunder/pretrain.py.
Lightning is not needed: what the model takes from it is stood in for, and what Fabric does to a step is done here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.played.others import default
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


@contextlib.contextmanager
def checked_out(record: Record, clone: Path) -> Iterator[tuple[Path, str]]:
    """A folder with the code of a record's commit, and its package's name then: ``lit_gpt`` until March 2024.

    Raises:
        MissingPackageError: there is no such clone, or it lacks the commit.
    """
    with of_commit(str(record.raw["source"].get("code_commit")), clone) as found:
        yield found


@contextlib.contextmanager
def of_commit(commit: str, clone: Path) -> Iterator[tuple[Path, str]]:
    """The same of any commit.

    Raises:
        MissingPackageError: there is no such clone, or it lacks the commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        for package in ("litgpt", "lit_gpt"):
            packed = subprocess.run(["git", "-C", str(clone), "archive", commit, package], capture_output=True, check=False)
            if packed.returncode == 0:
                with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                    archive.extractall(folder, filter="data")
                yield Path(folder), package
                return
    raise MissingPackageError("--litgpt", str(clone), f"does not have litgpt at {commit}", "clone Lightning-AI/litgpt whole")


def trace(record: Record, clone: Path) -> Any:
    """A record's step, traced.

    Args:
        record: one of litgpt's.
        clone: of its repository.

    Raises:
        MissingPackageError: the clone does not hold the record's commit.
    """
    with checked_out(record, clone) as (folder, package):
        return _trace(record, folder, package)


def _trace(record: Record, folder: Path, package: str) -> Any:
    import torch

    import memcalc

    asked = question(record)
    training = asked.job["training"]
    behaviour = asked.job["behaviour"]
    with modules(package, folder) as load, memcalc.tracing(name=record.id, behaviour=behaviour) as session:
        base = torch.float32 if training["precision"].startswith("amp") else torch.bfloat16
        with torch.device(session.device), default(base):
            model = _model(record, load, new=package == "litgpt")
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
        entropy = load("utils").chunked_cross_entropy

        def chunked(*args: Any, **options: Any) -> Any:
            session.mode.answering = True  # some of its versions ask whether any target is left: it is
            try:
                return entropy(*args, **options)
            finally:
                session.mode.answering = False

        even = "thunder" in record.id  # pretrain.py: every sample is as long as the next, and targets are shifted in the data
        for _ in range(2):
            for _ in range(steps):
                logits = _logits(record, model, ids, context)
                if even:  # a function of its own, whose logits end with it
                    loss = chunked(logits, targets, chunk_size=0)
                    del logits
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


def _model(record: Record, load: Callable[[str], Any], *, new: bool) -> Any:
    name = str(record.raw["model"]["name"]).rpartition("/")[2]
    name, told = NAMES.get(name, name), record.raw["trainable"]
    if record.method != "lora":
        code = load("model")
        model = code.GPT(load("config").Config.from_name(name))
        model.max_seq_length = record.raw["seq_len"]
        return model
    code = load("lora")
    options = {"r": told["rank"], "alpha": told.get("alpha", 16), "dropout": told.get("dropout", 0.05)}
    options |= {f"{'' if new else 'to_'}{word}": part in told["targets"] for part, word in PARTS.items()}
    model = code.GPT(code.Config.from_name(name, **{f"lora_{key}" if new else key: value for key, value in options.items()}))
    code.mark_only_lora_as_trainable(model)
    model.max_seq_length = record.raw["seq_len"]
    return model


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
def modules(package: str, folder: Path) -> Iterator[Callable[[str], Any]]:
    """Modules of a package, without what its ``__init__`` loads."""
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
            way_out = "see whether its commit needs more"
            raise InputError("--litgpt", f"{package}.{name}", f"cannot be imported ({error})", way_out) from None

    try:
        load("model")
        yield load
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] in (package, "lightning", "lightning_utilities"):
                del sys.modules[name]
