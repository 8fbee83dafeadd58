"""One real step of a small GPT-2 under AdamW, as a record made by hand of torch alone, and altered copies of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcalc.measurement import Measurement, measurement_from
from memcalc.verify.files import verify_records

CONFIG = {"model_type": "gpt2", "vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 2}
REQUEST = {"model": {"name": "tiny", **CONFIG}, "training": {"optimizer": "torch:AdamW", "precision": "fp32"}}
STATES = {"exp_avg": "momentum", "exp_avg_sq": "variance", "step": "step"}


def _row(component, name, tensor, owner, part=""):
    return {
        "component": component, "name": name, "part": part, "owner": owner, "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape), "nbytes": tensor.untyped_storage().nbytes(), "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="session")
def committed():
    """The committed records, every one of them judged."""
    return verify_records(Path(__file__).parents[2] / "measurements")


@pytest.fixture(scope="session")
def document():
    """The record as plain data."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    model = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(0, 97, (2, 16))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    rows = []
    for name, param in model.named_parameters():
        rows += [_row("parameters", name, param, name), _row("gradients", f"{name}.grad", param.grad, name)]
        for key, value in optimizer.state[param].items():
            component = "host_optimizer_states" if key == "step" else "optimizer_states"
            rows.append(_row(component, f"{name} {key}", value, name, STATES[key]))
    sums = {}
    for row in rows:
        sums[row["component"]] = sums.get(row["component"], 0) + row["nbytes"]
    return {
        "case": "tiny-adamw", "status": "measured", "created": "2026-01-01T00:00:00Z",
        "environment": {"device": {"name": "a CPU", "kind": "cpu"}, "python": "3.11", "platform": "Linux", "memcalc": "0.1.0",
                        "torch": torch.__version__},
        "request": REQUEST, "job": {"model": "tiny"},
        "ranks": [{"tensors": rows, "components": {name: {"walked": size} for name, size in sums.items()}}],
    }  # fmt: skip


@pytest.fixture
def altered(document):
    """A function that gives the record with some tensors changed: ``altered({name: change of nbytes or None})``."""

    def make(changes=None, **keys) -> Measurement:
        rows = []
        for row in document["ranks"][0]["tensors"]:
            change = (changes or {}).get(row["name"], 0)
            if change is not None:
                rows.append({**row, "nbytes": row["nbytes"] + change})
        return measurement_from({**document, "ranks": [{"tensors": rows}], **keys})

    return make


# three layers and a table larger than all of them: no number of ranks divides it evenly
UNEVEN = {
    "model_type": "llama", "hidden_size": 56, "intermediate_size": 130, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 509, "max_position_embeddings": 64,
}  # fmt: skip
# one tied table as large as the layer and the last norm together, so that half of the parameters end where a tensor ends
EVEN = {**UNEVEN, "num_hidden_layers": 1, "vocab_size": 561, "tie_word_embeddings": True}
