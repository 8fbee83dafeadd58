"""Points of different devices, source lengths or image sizes are played apart, and each row is its own job's estimate."""

from __future__ import annotations

from collections import Counter

import pytest

from memcalc.engines.analytic.shared import Shared
from memcalc.sweep import fingerprint, run
from memcalc.sweep.layout import lay_out
from memcalc.sweep.resolve import Reader
from memcalc.sweep.solve import Solver
from memcalc.sweep.spec import read_sweep
from tests.sweep.oracle import differences

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "vocab_size": 99,
         "num_hidden_layers": 2}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2, "vocab_size": 99}
BART = {"model_type": "bart", "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 99,
        "max_position_embeddings": 128}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
       "image_size": 64, "patch_size": 16, "architectures": ["ViTForImageClassification"]}  # fmt: skip
RESNET = {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [32, 64], "embedding_size": 16, "layer_type": "basic",
          "architectures": ["ResNetForImageClassification"]}  # fmt: skip


def swept(base: dict, grid: dict, chunk: int = 1000) -> list:
    """The rows, every one of which is its job's estimate."""
    made = run({"base": {"precision": "bf16-pure", "optimizer": "sgd", **base}, "grid": grid}, chunk=chunk)
    rows = list(made)
    assert differences(made, rows) == []
    return rows


@pytest.mark.parametrize("chunk", [1000, 7])
def test_source_lengths_of_an_axis(strict, chunk):
    """Beside batches and lengths as arrays; one that is not given is the sequence's, and one without positions is refused."""
    grid = {"model": [T5, BART], "source_length": [None, 40, 300], "micro_batch_size": [1, 3], "sequence_length": [9, 65]}
    rows = swept({}, grid, chunk)
    assert [row["error"] is not None for row in rows] == [False] * 20 + [True] * 4
    assert len({row["activations"] for row in rows[:12]}) == 12


def test_a_source_length_of_the_base(strict):
    """The encoder of a sweep whose points all have one reads that many tokens, not the decoder's."""
    rows = swept({"model": T5, "source_length": 300}, {"micro_batch_size": [1, 2, 3], "sequence_length": [30, 40]})
    apart = swept({"model": T5}, {"micro_batch_size": [1, 2, 3], "sequence_length": [30, 40]})
    assert all(row["activations"] > 2 * other["activations"] for row, other in zip(rows, apart, strict=True))


def test_image_sizes_of_an_axis(strict):
    """A convolution net takes any, a transformer the one it is made for, and a model of text or of one side none."""
    rows = swept({}, {"model": [VIT, RESNET, LLAMA, {"params": 9}], "image_size": [None, 32, 64], "micro_batch_size": [1, 2]})
    assert [row["error"] is not None for row in rows] == [False, False, True, True, *[False] * 10, *[True] * 4, *[False] * 6]
    assert rows[2]["error"].startswith("training.image_size: 32 is not the 64 pixels")


def test_sizes_of_what_is_read_stand_in_their_rows():
    """As they were given, of models that read such; null of others, whose row is an error or, for tokens, goes on."""
    grid = {"model": [T5, VIT, LLAMA], "source_length": [None, 40], "image_size": [None, 64], "scope": ["states"]}
    rows = list(run({"base": {"sequence_length": 9}, "grid": grid}))
    sizes = [(row["sequence_length"], row["source_length"], row["image_size"]) for row in rows]
    assert sizes[:4] == [(9, None, None), (9, None, None), (9, 40, None), (9, 40, None)]
    assert sizes[4:] == [(None, None, None), (None, None, 64)] * 2 + [(9, None, None)] * 4
    assert [row["error"] is None for row in rows] == [True, False, True, False, True, True, False, False, True, *[False] * 3]


def test_an_image_that_decides_what_is_trained():
    """Gemma 3 has a tower that a step without images does not reach: both are in one sweep, states included."""
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
            "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
              "patch_size": 16}  # fmt: skip
    model = {"model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 4,
             "architectures": ["Gemma3ForConditionalGeneration"]}  # fmt: skip
    rows = swept({"model": model, "optimizer": "adamw"}, {"image_size": [None, 64], "sequence_length": [32, 48]})
    assert [row["error"] for row in rows] == [None] * 4
    assert rows[0]["optimizer_states"] < rows[2]["optimizer_states"]


def test_settings_that_do_not_apply_are_errors():
    """A source length of a model of one side, and an attention kernel of one without attention, as an estimate has them."""
    rows = swept(
        {}, {"model": [LLAMA, RESNET], "attention": ["auto", "flash"], "source_length": [None, 5], "scope": ["states"]}
    )
    assert [row["error"] is not None for row in rows] == [False, True, False, True, False, True, True, True]


def test_devices_of_an_axis(strict):
    """Each point's step is played on its own device; one whose kernels are not known has its states, an unknown one nothing."""
    grid = {"gpu": [None, "t4", "T4-16GB", "a100-80gb", "h100-80gb", "mi300x", "h101"], "memory": [None, "1MiB"],
            "sequence_length": [9, 65]}  # fmt: skip
    rows = swept({"model": LLAMA, "micro_batch_size": 3}, grid)
    usual, t4, again, a100, h100, mi300x, unknown = (rows[at : at + 4] for at in range(0, 28, 4))
    assert [row["peak_requested"] for row in t4] == [row["peak_requested"] for row in again]
    assert [row["peak_requested"] for row in usual] == [row["peak_requested"] for row in h100]
    assert max(t4[0]["workspace"], a100[0]["workspace"]) < h100[0]["workspace"]
    assert {row["peak_requested"] for row in (*mi300x, *unknown)} == {None}
    assert [row["verdict"] for row in t4] == ["unknown", "unknown", "does_not_fit", "does_not_fit"]
    assert all(row["error"].startswith("hardware.gpu: h101 is not") for row in unknown)


def test_a_device_of_the_base_and_one_that_is_only_run_on(strict):
    """``behaviour.gpu`` says whose kernels run, whatever the device whose memory counts."""
    base = {"model": LLAMA, "micro_batch_size": 2, "sequence_length": 64}
    (alone,), (other,) = swept({**base, "gpu": "t4"}, {"dp": [1]}), swept({**base, "gpu": "h100-80gb"}, {"dp": [1]})
    mixed = swept({**base, "behaviour": {"gpu": "t4"}}, {"gpu": [None, "h100-80gb", "t4"]})
    assert alone["peak_requested"] != other["peak_requested"]
    assert {row["peak_requested"] for row in mixed} == {alone["peak_requested"]}


@pytest.mark.parametrize(
    ("keys", "evaluations"),
    [({"gpu": [None, "t4", "T4-16GB", "a100-80gb"]}, 3), ({"memory": ["1GiB", "2GiB"]}, 1), ({"image_size": [None]}, 1),
     ({"gpu": ["t4", "a100-80gb"], "scope": ["states"]}, 1), ({"gpu": ["t4", "h100-80gb"], "behaviour.gpu": ["t4"]}, 1)],
)  # fmt: skip
def test_nothing_is_played_apart_without_need(monkeypatch, keys, evaluations):
    """Names of one device are one play, and limits, steps that nobody plays and kernels named apart part nothing."""
    taken, together = Counter(), Solver.together
    monkeypatch.setattr(Solver, "together", lambda self, *rest: (taken.update(["plays"]), together(self, *rest))[1])
    list(run({"base": {"model": LLAMA, "micro_batch_size": 2}, "grid": {**keys, "sequence_length": [64, 65]}}))
    assert taken["plays"] == evaluations


def test_structures_are_not_shared_over_devices_and_sizes(monkeypatch):
    """What was played with formulas for one device or source length is not read for another."""
    made, init = [], Shared.__init__
    monkeypatch.setattr(Shared, "__init__", lambda self: (made.append(self), init(self))[1])
    swept({"model": T5}, {"gpu": ["t4", "a100-80gb"], "source_length": [40, 300], "sequence_length": [9, 11, 65]})
    assert sum(len(shared.known) for shared in made) == 4


def test_a_file_is_not_continued_over_another_device(monkeypatch):
    """The device that kernels run on is among what rows depend on, as the one is that they must fit."""

    def named(keys: dict) -> list:
        asked = []
        monkeypatch.setattr(fingerprint, "_content", lambda kind, name, reader: asked.append((kind, name)))
        fingerprint.sources(lay_out(read_sweep({"base": {"model": "gpt2", **keys}})), Reader())
        return asked

    assert named({"gpu": "t4", "behaviour": {"gpu": "l4"}}) == [("device", "l4"), ("device", "t4"), ("model", "gpt2")]
