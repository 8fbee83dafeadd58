"""Torchtune's own decoders, small, and the jobs they stand for, out of a clone that is not part of this.

    git clone https://github.com/meta-pytorch/torchtune

The modules are its own of the commits in ``COMMITS``; the few lines around them are those of
recipes/full_finetune_single_device.py and lora_finetune_single_device.py. Two things of it are done otherwise, since a trace
has no numbers: Llama 3.1's frequencies are not scaled, and a layer is copied by making its tensors anew.
"""

from __future__ import annotations

import copy
import importlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.played.others import Case, stood_in

COMMITS = {"2024-11-10": "1814feb17a9038e1a8053ce93111bd26774a8db6", "2024-11-25": "v0.5.0"}
"""By the implementation's version: what was read and is traced; what came later differs in how many rotary caches there are."""
ROWS, TOKENS, LONGEST = 3, 65, 80
LLAMA = {"model_type": "llama", "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 2, "vocab_size": 131}  # fmt: skip
PLAIN = {"loss": "CrossEntropyLoss"}
KINDS: Mapping[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "llama 3.2": ({**LLAMA, "tie_word_embeddings": True}, {"builder": "llama3_2"}, None),
    "llama 3": (LLAMA, {"builder": "llama3"}, None),
    "llama 3, logits whole": ({**LLAMA, "num_key_value_heads": 6}, {"builder": "llama3", **PLAIN}, None),
    "qwen2": ({**LLAMA, "model_type": "qwen2"}, {"builder": "qwen2"}, None),
    "llama 3.2 lora": (
        {**LLAMA, "tie_word_embeddings": True}, {"builder": "llama3_2"},
        {"r": 4, "target_modules": ["q_proj", "v_proj", "output_proj", "mlp"]},
    ),
    "llama 3 lora, dropout": (
        LLAMA, {"builder": "llama3", **PLAIN}, {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj", "output"]},
    ),
}  # fmt: skip
"""By name: a config, arguments of the implementation, adapters."""
ABSENT = ("torchdata", "datasets", "omegaconf", "sentencepiece", "tiktoken", "blobfile", "PIL", "torchvision", "kagglesdk")
BARE = (
    "torchtune", "torchtune.models", "torchtune.models.llama3", "torchtune.models.llama3_1", "torchtune.models.llama3_2",
    "torchtune.models.qwen2",
)  # fmt: skip
"""Packages of torchtune's whose ``__init__`` is not run."""
STANDS = ("torchao", "torchao.dtypes", "torchao.dtypes.nf4tensor", "torchtune.data", "torchtune.models.llama3._tokenizer")


def cases(clone: Path, folder: Path) -> Iterator[Case]:
    """Every kind in BF16, with and without checkpointing, and in FP32, by the code of each version; unpacked into a folder."""
    for version, commit in COMMITS.items():
        packed = subprocess.run(["git", "-C", str(clone), "archive", commit, "torchtune"], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder / version, filter="data")
        load(folder / version)
        for name, (config, arguments, lora) in KINDS.items():
            for precision, checkpointing in (("bf16-pure", "none"), ("bf16-pure", "full"), ("fp32", "none")):
                job = {
                        "model": config, "implementation": "torchtune", "precision": precision,
                        "implementation_args": {**arguments, "version": version, "max_seq_len": LONGEST},
                        "activation_checkpointing": checkpointing, "micro_batch_size": ROWS, "sequence_length": TOKENS,
                        **({} if lora is None else {"lora": lora}),
                    }  # fmt: skip
                yield Case(f"{version} {name} {precision} {checkpointing}", job, _maker(job), _runner(job))


def load(folder: Path) -> None:
    """Torchtune's modules out of a folder, in place of any others."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchtune"]:
        del sys.modules[name]
    for name in BARE:
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
    for name in STANDS:
        sys.modules[name] = stand = ModuleType(name)
        stand.__path__ = []
        stand.__getattr__ = _made  # type: ignore[method-assign]
    with stood_in(*ABSENT):
        for builders in ("llama3", "llama3_2", "qwen2"):
            importlib.import_module(f"torchtune.models.{builders}._component_builders")
        importlib.import_module("torchtune.modules.loss.ce_chunked_output_loss")
    scaled = sys.modules["torchtune.models.llama3_1._position_embeddings"].Llama3ScaledRoPE
    scaled.apply_scaling = lambda self, freqs, *_: freqs
    transformer = sys.modules["torchtune.modules.transformer"]
    transformer._get_clones = lambda module, count: _copies(module, count)  # type: ignore[attr-defined]


def _made(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return (lambda *_: lambda function: function) if name == "implements" else type(name, (), {})


def _copies(module: Any, count: int) -> Any:
    import torch

    return torch.nn.ModuleList([_anew(module) for _ in range(count)])


def _anew(module: Any) -> Any:
    import torch

    made = copy.copy(module)
    made.__dict__ = dict(module.__dict__)
    made._parameters = {
        name: None if param is None else torch.nn.Parameter(torch.empty_like(param), param.requires_grad)
        for name, param in module._parameters.items()
    }
    made._buffers = {name: None if each is None else torch.empty_like(each) for name, each in module._buffers.items()}
    made._modules = {name: None if each is None else _anew(each) for name, each in module._modules.items()}
    return made


def _maker(job: Mapping[str, Any]) -> Any:
    def make() -> Any:
        config, told, lora = job["model"], job["implementation_args"], job.get("lora")
        builders = sys.modules[f"torchtune.models.{told['builder']}._component_builders"]
        sizes = {
            "vocab_size": config["vocab_size"], "num_layers": config["num_hidden_layers"], "max_seq_len": LONGEST,
            "num_heads": config["num_attention_heads"], "num_kv_heads": config["num_key_value_heads"],
            "embed_dim": config["hidden_size"], "intermediate_dim": config["intermediate_size"],
        }  # fmt: skip
        if lora is None:
            module = getattr(builders, told["builder"])(**sizes)
        else:
            targets = lora["target_modules"]
            module = getattr(builders, f"lora_{told['builder']}")(
                [name for name in targets if name.endswith("_proj")], "mlp" in targets, "output" in targets,
                lora_rank=lora["r"], lora_alpha=8, lora_dropout=lora.get("lora_dropout", 0.0), **sizes,
            )  # fmt: skip
            for name, param in module.named_parameters():
                param.requires_grad_("lora_" in name)
        if "loss" not in told:
            module.set_num_output_chunks(8)
        if job["activation_checkpointing"] == "full":
            _checkpointed(module)
        return module.train()

    return make


def _checkpointed(module: Any) -> None:
    """source: torchtune training/_activation_checkpointing or memory.py:set_activation_checkpointing"""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    layer = sys.modules["torchtune.modules"].TransformerSelfAttentionLayer
    apply_activation_checkpointing(module, auto_wrap_policy=ModuleWrapPolicy({layer}))


def _runner(job: Mapping[str, Any]) -> Any:
    def run(session: Any, module: Any) -> Any:
        import torch

        tokens = torch.zeros(ROWS, TOKENS, dtype=torch.int64, device=session.device)
        labels = torch.zeros(ROWS, TOKENS, dtype=torch.int64, device=session.device)
        ignored = torch.full((ROWS, 1), -100, device=session.device)
        loss_fn = (
            torch.nn.CrossEntropyLoss(ignore_index=-100)
            if "loss" in job["implementation_args"]
            else sys.modules["torchtune.modules.loss.ce_chunked_output_loss"].CEWithChunkedOutputLoss()
        )

        def loss_step() -> Any:
            logits = module(tokens)
            targets = torch.hstack((labels[..., 1:], ignored))
            if not isinstance(logits, list):
                targets, logits = targets.reshape(-1), logits.reshape(-1, logits.size(-1))
            loss = loss_fn(logits, targets)
            del logits
            return loss

        def micro_batch() -> Any:
            counted = (labels != -100).sum()
            return loss_step() * counted

        return micro_batch

    return run
