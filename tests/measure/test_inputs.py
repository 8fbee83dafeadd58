"""What models are fed: spelled by hand, inferred from a module, or each family's own, its forward giving a loss."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the oracle is real modules")

from memcalc.campaign import RunSettings  # noqa: E402
from memcalc.engines.measure.here import Ask, measure_here  # noqa: E402
from memcalc.errors import InputError, NotModelledError  # noqa: E402
from memcalc.job import read_job  # noqa: E402
from memcalc.runtime.build import build  # noqa: E402
from memcalc.runtime.inputs import Input, called, inferred, make_batch, parse_inputs  # noqa: E402
from memcalc.runtime.losses import make_loss  # noqa: E402
from tests.measure.against import assert_every_byte  # noqa: E402


def test_inputs_are_spelled_as_they_print():
    """What ``--input`` reads is what a record prints, for floats, ids and scalars."""
    for text in ("x=float32[8,3,32,32]", "ids=int64[2,7]<100", "t=bfloat16[]", "mask=bool[2,2]"):
        (each,) = parse_inputs([text])
        assert each.text() == text
        batch = make_batch([each], "cpu", "float32", 0)
        assert (tuple(batch[each.name].shape), str(batch[each.name].dtype)) == (each.shape, f"torch.{each.dtype}")


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["x"], "--input: x does not name an input; write it as x=float32[8,3,224,224]"),
        (["x=float33[2]"], "--input: float33 is not a known dtype; did you mean float32"),
        (["x=float32[2,0]"], "has a dimension that is not above 0"),
        (["x=float32[2]", "x=int64[2]"], "--input: x is given twice"),
    ],
)
def test_bad_inputs_are_refused(texts, says):
    """Each mistake is answered with what was written and how to write it."""
    with pytest.raises(InputError) as caught:
        parse_inputs(texts)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("module", "shape", "dtype"),
    [
        (torch.nn.Sequential(torch.nn.Embedding(50, 4), torch.nn.Linear(4, 2)), (3, 9), "int64"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), (3, 12), "float"),
        (torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3)), (3, 5, 20, 20), "float"),
        (torch.nn.Sequential(torch.nn.Conv1d(5, 4, 3)), (3, 5, 9), "float"),
    ],
)
def test_inputs_are_inferred_from_the_first_layer(module, shape, dtype):
    """Tokens, features, images and sequences: a module that says what it reads runs on what is inferred."""
    (each,) = inferred(module, 3, 9, 20)
    assert (each.shape, each.dtype) == (shape, dtype)
    placed, named = called(make_batch([each], "cpu", "float32", 0))
    assert module(*placed, **named).shape[0] == 3


def test_a_module_that_says_nothing_needs_to_be_told():
    """Without a layer that says what it reads, the error shows how to give it."""
    with pytest.raises(InputError, match=r"^--input: is missing.*write it as"):
        inferred(torch.nn.ReLU(), 1, 1, 1)


def test_named_inputs_and_losses_are_used():
    """Two inputs given by name and a loss by name give a record that says so, every byte as predicted."""
    request = {"model": "py:tests.measure.small:two_inputs", "precision": "fp32"}
    settings = RunSettings(iterations=1, inputs=["ids=int64[4]<10", "x=float32[4,6]"], loss="cross_entropy")
    record = measure_here(Ask(request=request, settings=settings))
    assert_every_byte(record)
    assert record.settings.loss == "cross_entropy"
    assert record.settings.inputs == settings.inputs
    assert record.ranks[0].components["inputs"].walked == 4 * 8 + 4 * 6 * 4


def test_losses_are_what_they_say():
    """Each named loss is the plain formula of the first output that needs a gradient."""
    scores = torch.tensor([[1.0, 2.0], [0.0, 4.0]], requires_grad=True)
    output = {"ids": torch.tensor([1]), "scores": (scores,)}
    expected = {
        "mean": scores.mean(), "sum": scores.sum(), "mse": (scores**2).mean(),
        "cross_entropy": torch.nn.functional.cross_entropy(scores, torch.tensor([0, 0])),
    }  # fmt: skip
    for name, value in expected.items():
        assert torch.equal(make_loss(name)[1](output), value), name
    with pytest.raises(InputError, match="--loss: hinge is not a known loss"):
        make_loss("hinge")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 99}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
          "patch_size": 8}  # fmt: skip
WHISPER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
           "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 99, "num_mel_bins": 8, "max_source_positions": 10,
           "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
           "decoder_start_token_id": 1}  # fmt: skip
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 99}
FAMILIES = [
    ("llama", "LlamaForCausalLM", {**SMALL, "num_key_value_heads": 1}, {"sequence_length": 8}),
    ("llama", "LlamaForSequenceClassification", SMALL, {"sequence_length": 8}),
    ("bert", "BertForPreTraining", SMALL, {"sequence_length": 8}),
    ("bert", "BertForQuestionAnswering", SMALL, {"sequence_length": 8}),
    ("t5", "T5ForConditionalGeneration", T5, {"sequence_length": 6, "source_length": 11}),
    ("whisper", "WhisperForConditionalGeneration", WHISPER, {"sequence_length": 6}),
    ("vit", "ViTForImageClassification", VISION, {"image_size": 32}),
    ("clip", "CLIPModel", {"text_config": {**SMALL, "max_position_embeddings": 20}, "vision_config": VISION,
                           "projection_dim": 16}, {"sequence_length": 8, "image_size": 32}),
    ("resnet", "ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                                                "layer_type": "basic"}, {"image_size": 32}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "architecture", "config", "sizes"), FAMILIES, ids=[case[1] for case in FAMILIES])
def test_each_family_s_forward_gives_its_loss(family, architecture, config, sizes):
    """Text, pairs, images, audio and clip pairs: the class transformers builds takes the batch and returns a finite loss."""
    pytest.importorskip("transformers", reason="the oracle is transformers' own classes")
    model = {"model_type": family, "architectures": [architecture], **config}
    built = build(read_job({"model": model, "micro_batch_size": 2, **sizes}))
    assert built.sizes == {"micro_batch_size": 2, **sizes, **({"source_length": 20} if family == "whisper" else {})}
    placed, named = called(make_batch(built.inputs, "cpu", "float32", 0))
    output = built.module(*placed, **named, **built.extra)
    assert output.loss.isfinite()
    output.loss.backward()
    assert built.module.training


def test_a_family_is_measured_from_its_config():
    """From a config alone to real tensors: GPT-2 by transformers holds what is predicted of it, tied head and all."""
    pytest.importorskip("transformers", reason="the oracle is transformers' own classes")
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 99, "n_positions": 16}
    record = measure_here(Ask(request={"model": config, "sequence_length": 8}, settings=RunSettings(iterations=2)))
    assert_every_byte(record)
    tied = next(tensor for tensor in record.ranks[0].tensors if tensor.name == "transformer.wte.weight")
    assert tied.also == ["lm_head.weight"]
    assert record.settings.built_by.endswith("GPT2LMHeadModel")
    assert record.request["training"] == {"micro_batch_size": 1, "sequence_length": 8}


def test_placed_inputs_are_told_from_named_ones():
    """``args0`` goes by place, everything else by name."""
    batch = {"args0": torch.zeros(1), "mask": torch.zeros(2)}
    placed, named = called(batch)
    assert [tensor.numel() for tensor in placed] == [1]
    assert list(named) == ["mask"]
    assert Input("args0", "int64", (1,), 5).text() == "args0=int64[1]<5"


def test_flash_attns_own_kernels_are_not_run_here():
    """A module is built neither to trace nor to measure kernels of another package."""
    with pytest.raises(NotModelledError, match="neither traced nor measured"):
        build(read_job({"model": {"model_type": "llama"}, "attention": "flash_attention_2"}))
