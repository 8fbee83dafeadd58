"""Torchtitan's own model and checkpointing, traced: the code of a few commits, out of a clone that is not part of this.

    git clone https://github.com/pytorch/torchtitan
    python -m benchmarks.played.torchtitan torchtitan

traces small models at the commits of ``CODE`` and keeps what they come to in torchtitan.json, against which a test holds the
played step. What the model's file imports and a step does not run (a trainer's config, a tokenizer) is stood in for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from benchmarks.played.against import _steps, heights
from memcalc.engines.trace.estimate import Feed, trace_module
from memcalc.errors import MissingPackageError
from memcalc.job import read_job

FILE = Path(__file__).with_name("torchtitan.json")
CODE = {
    "2024-07-11": "0ddf49ba75b4abbd14f451daf17311bb0458f82b", "2024-12-26": "9dec370ad26b5f8e9a7333a0e36165018262644b",
    "2025-06-17": "v0.1.0", "2025-10-17": "v0.2.0", "2026-02-20": "v0.2.2",
}  # fmt: skip
"""Commits that were read whole, by their date."""
LOSS = "786e26f8ee47ffecb523a661535e71031583ff60"
CHUNKED = "2026-04-27"
"""The loss of that commit on the model of the release before it, whose blocks run the same operators."""
MODEL = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 304}  # fmt: skip
"""344 is what torchtitan makes of a width of 128 in multiples of 8."""
QWEN = {**MODEL, "model_type": "qwen3", "head_dim": 24}
WIDE = 8192
WITH_QWEN = ("2025-10-17", "2026-02-20")
TRITON = ("triton", "triton.language")
"""Of its fused norm, until 2025; torch asks whether it is there, so that it goes once that file is read."""
ABSENT = (
    "tyro", "torchtitan.config", "torchtitan.config_manager", "torchtitan.config.job_config",
    "torchtitan.components.tokenizer", "torchtitan.datasets.tokenizer", "torchtitan.tools.logging", "torchtitan.tools.utils",
    "torchtitan.logging", "torchtitan.utils", "torchtitan.protocols.train_spec", "torchtitan.protocols.model",
    "torchtitan.models.utils", "torchtitan.models.moe", "torchtitan.parallelisms.parallel_dims",
    "torchtitan.parallelisms.utils",
    "torchtitan.distributed.parallel_dims", "torchtitan.distributed.tensor_parallel", "torchtitan.distributed.utils",
    "torchtitan.distributed.dual_pipe_v", "torchtitan.distributed.expert_parallel",
)  # fmt: skip


def jobs() -> Iterator[dict[str, Any]]:
    """What is traced: every date under every way of checkpointing, in BF16 and under autocast, and a few odd ones."""
    for date in CODE:
        for precision in ("bf16-pure", "amp-bf16"):
            for mode in ("none", "selective", "full"):
                yield _job(date, precision, 2, 96, mode)
        deep, equal = {**MODEL, "num_hidden_layers": 5}, {**MODEL, "num_hidden_layers": 3, "num_key_value_heads": 8}
        yield _job(date, "bf16-pure", 3, 72, "selective", deep, option=2)
        yield _job(date, "bf16-pure", 2, 129, "selective", equal)
        yield _job(date, "fp32", 2, 96, "selective")
        if date in WITH_QWEN:
            tied = {**QWEN, "tie_word_embeddings": True}
            yield from (_job(date, "bf16-pure", 2, 96, mode, QWEN) for mode in ("none", "selective"))
            yield from (_job(date, precision, 3, 72, "full", tied) for precision in ("amp-bf16", "fp32"))

    yield _job(CHUNKED, "bf16-pure", 2, 96, "selective")
    yield _job(CHUNKED, "bf16-pure", 1, 96, "none")
    yield _job(CHUNKED, "fp32", 3, 96, "full", {**MODEL, "num_hidden_layers": 5})
    for date in (CHUNKED, "2024-07-11", "2026-02-20"):  # a vocabulary whose logits are the highest point
        yield _job(date, "bf16-pure", 2, 96, "full", {**MODEL, "vocab_size": WIDE})


def _job(
    date: str, precision: str, rows: int, tokens: int, mode: str, model: dict[str, Any] | None = None, option: Any = "op"
) -> dict[str, Any]:
    return {
        "model": model or MODEL, "precision": precision, "micro_batch_size": rows, "sequence_length": tokens,
        "activation_checkpointing": mode, "optimizer": "sgd", "implementation": "torchtitan",
        "implementation_args": {"version": date, "selective_ac_option": option},
    }  # fmt: skip


def name_of(job: dict[str, Any]) -> str:
    """What tells jobs apart, in one line."""
    words = [job["implementation_args"]["version"], *(job[key] for key in ("precision", "micro_batch_size", "sequence_length"))]
    words += [job["activation_checkpointing"], job["implementation_args"]["selective_ac_option"]]
    words += [job["model"][key] for key in ("num_hidden_layers", "num_key_value_heads", "model_type")]
    words += ["tied"] if job["model"].get("tie_word_embeddings") else []
    words += ["wide"] if job["model"]["vocab_size"] == WIDE else []
    return " ".join(str(word) for word in words)


def recorded() -> dict[str, list[int]]:
    """(top, left, saved) of every job."""
    found: dict[str, list[int]] = json.loads(FILE.read_text())["heights"]
    return found


class Trained(torch.nn.Module):
    """A model and its loss in one forward; the logits go with it, as the trainer lets go of them."""

    def __init__(self, model: torch.nn.Module, date: str) -> None:
        super().__init__()
        self.model = model
        self.date = date
        if date >= "2026-01-25":
            self.register_buffer("valid", torch.tensor(1.0))
        if date == CHUNKED:
            self.lm_head, model.output = model.output, None  # type: ignore[assignment]
            self.chunked = importlib.import_module("chunked_loss").ChunkedCELoss(SimpleNamespace(num_chunks=8))
            self.chunked.set_lm_head(self.lm_head)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """train.py of its date."""
        pred = self.model(tokens)
        if self.date == CHUNKED:
            return {"loss": self.chunked(pred, labels, self.valid)}
        if self.date < "2025":  # a function inside the trainer's main
            rows = pred.flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(rows.float() if self.date > "2024-10-22" else rows, labels.flatten(0, 1))
        else:
            loss = importlib.import_module("torchtitan.components.loss").cross_entropy_loss(pred, labels)
        return {"loss": loss / self.valid if self.date >= "2026-01-25" else loss}


def trace(job: dict[str, Any], clone: Path) -> list[Any]:
    """A job's step, traced: forward, loss and backward of its second iteration."""
    date = job["implementation_args"]["version"]
    absent = (*ABSENT, *TRITON) if date < "2025" else ABSENT
    code = CODE["2026-02-20" if date == CHUNKED else date]
    with _checked_out(code, clone) as folder, _checked_out(LOSS, clone) as later, _importable(folder, absent):
        if date == CHUNKED:
            _load("chunked_loss", later / "components" / "loss.py")
        model = _model(job, date)
        _checkpointed(model, job, date)
        told = {"precision": job["precision"], "micro_batch_size": job["micro_batch_size"]}
        asked = read_job({**told, "model": "py:torchtitan:model", "engine": "trace", "optimizer": "sgd"})
        ids = torch.zeros(job["micro_batch_size"], job["sequence_length"], dtype=torch.int64)
        found = trace_module(Trained(model, date), asked, Feed(), {"tokens": ids, "labels": ids.clone()})
        return _steps(found.tape, 2)


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _model(job: dict[str, Any], date: str) -> Any:
    old = date < "2025"
    if date >= "2026":
        sys.modules["torchtitan.protocols.train_spec"].ModelProtocol = _Base  # type: ignore[attr-defined]
    model = job["model"]
    if model["model_type"] == "qwen3":
        return _qwen(job, model)
    code = importlib.import_module("torchtitan.models.llama.model" if old else "torchtitan.models.llama3.model.model")
    if old:
        for name in TRITON:
            del sys.modules[name]
        args = code.ModelArgs()
    else:
        args = importlib.import_module("torchtitan.models.llama3.model.args").TransformerModelArgs()
    args.dim, args.n_layers, args.n_heads = model["hidden_size"], model["num_hidden_layers"], model["num_attention_heads"]
    args.n_kv_heads, args.vocab_size, args.multiple_of = model["num_key_value_heads"], model["vocab_size"], 8
    args.max_seq_len = job["sequence_length"]
    made = code.Transformer(args)
    made.init_weights()
    return made


def _qwen(job: dict[str, Any], model: dict[str, Any]) -> Any:
    code = importlib.import_module("torchtitan.models.qwen3.model.model")
    args = importlib.import_module("torchtitan.models.qwen3.model.args").Qwen3ModelArgs()
    args.dim, args.n_layers, args.n_heads = model["hidden_size"], model["num_hidden_layers"], model["num_attention_heads"]
    args.n_kv_heads, args.vocab_size, args.hidden_dim = (
        model["num_key_value_heads"],
        model["vocab_size"],
        model["intermediate_size"],
    )
    args.head_dim, args.qk_norm, args.max_seq_len = model["head_dim"], True, job["sequence_length"]
    args.enable_weight_tying = bool(model.get("tie_word_embeddings"))
    made = code.Qwen3Model(args)
    made.init_weights()
    if args.enable_weight_tying:  # infra/parallelize.py:parallelize_qwen3
        made.output.weight = made.tok_embeddings.weight
    return made


def _checkpointed(model: Any, job: dict[str, Any], date: str) -> None:
    mode = job["activation_checkpointing"]
    if mode == "none":
        return
    asked = SimpleNamespace(
        mode=mode, selective_ac_option=str(job["implementation_args"]["selective_ac_option"]), early_stop=False,
        per_op_sac_force_recompute_mm_shapes_by_fqns=[], preserve_rng_state=False, determinism_check="default", debug=False,
    )  # fmt: skip
    if date < "2025-08":
        name = "torchtitan.parallelisms.parallelize_llama" if date < "2025" else "torchtitan.models.llama3.infra.parallelize"
        code = importlib.import_module(name)
        wrapper = getattr(code, "ptd_checkpoint_wrapper", None)
        if wrapper is not None:
            wrapper.__dict__.pop("_count", None)  # blocks of models built before
        if hasattr(code, "checkpoint_wrapper"):
            for name, block in model.layers.named_children():
                model.layers.register_module(name, code.checkpoint_wrapper(block, asked))
        else:
            code.apply_ac(model, asked)
        return
    kept = importlib.import_module("torchtitan.models.llama3.infra.parallelize")._op_sac_save_list
    options = {"model_compile_enabled": False, "op_sac_save_list": kept}
    options |= {"use_flex_attn": False} if date < "2025-11" else {}
    importlib.import_module("torchtitan.distributed.activation_checkpoint").apply_ac(model, asked, **options)


@contextlib.contextmanager
def _checked_out(commit: str, clone: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "-C", str(clone), "archive", commit, "torchtitan"], capture_output=True, check=False)
        if packed.returncode:
            raise MissingPackageError("torchtitan", str(clone), f"does not have {commit}", "clone pytorch/torchtitan whole")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "torchtitan"


@contextlib.contextmanager
def _importable(folder: Path, absent: tuple[str, ...]) -> Iterator[None]:
    """Its files as modules, without what their packages' ``__init__`` load."""
    before = set(sys.modules)
    for each in (folder, *(inner for inner in folder.rglob("*") if inner.is_dir())):
        name = ".".join(("torchtitan", *each.relative_to(folder).parts))
        sys.modules[name] = package = _Stand(name) if name == "torchtitan.distributed" else ModuleType(name)
        package.__path__ = [str(each)]
    for name in absent:
        sys.modules[name] = stand = _Stand(name)
        parent, _, leaf = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], leaf, stand)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("torchtitan", "tyro", "triton"):
                del sys.modules[name]


class _Base(torch.nn.Module):
    """Stands for ``ModelProtocol``, once it is a module."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


class _Stand(ModuleType):
    """A module that is imported and not used."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "logger":
            return SimpleNamespace(info=print, warning=print, debug=lambda *_: None)
        if name == "Configurable":
            return type(name, (object,), {"Config": type("Config", (), {})})
        if name == "jit":
            return lambda function: function
        if name == "autotune":
            return lambda **_: lambda function: function
        if name in ("Config", "has_cuda_capability", "trunc_normal_"):
            return lambda *_, **__: 0
        return type(name, (object,), {"__class_getitem__": classmethod(lambda cls, _: cls)})


def main(clone: Path) -> None:
    """Trace every job that is not there yet and keep what it comes to; take the file away to trace them all."""
    rows = recorded() if FILE.exists() else {}
    for job in jobs():
        if name_of(job) in rows:
            continue
        found = heights(trace(job, clone))
        rows[name_of(job)] = [found.top, found.net, found.saved]
        print(name_of(job), rows[name_of(job)], flush=True)
    told = {"command": "python -m benchmarks.played.torchtitan CLONE", "torch": torch.__version__, "code": CODE}
    FILE.write_text(json.dumps({**told, "heights": rows}, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
