"""The decoders before llama: counts made by hand, layers counted or played one by one, arrays, operators beside torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcalc.engines.analytic.step import play_job, play_step
from memcalc.errors import InputError, NotModelledError
from memcalc.families.base import load_family
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.plan import make_plan
from memcalc.play.inplace import clamp
from memcalc.play.machine import Machine
from memcalc.play.picking import picked
from memcalc.play.pointwise import add, neg
from memcalc.play.policy import Policy
from memcalc.play.reshape import cat, narrow, split_dim, transpose
from memcalc.play.values import Value
from memcalc.readers.config import build_model
from memcalc.tape.fold import fold, requested
from tests.play.test_step import saved, sizes

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 48, "n_head": 3, "n_positions": 80, "vocab_size": 99},
    "gpt_bigcode": {"n_embd": 48, "n_head": 3, "n_positions": 80, "vocab_size": 99},
    "gpt_neo": {"hidden_size": 48, "num_heads": 3, "max_position_embeddings": 80, "vocab_size": 99},
    "gpt_neox": {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 112, "vocab_size": 99},
    "gptj": {"n_embd": 48, "n_head": 3, "n_positions": 80, "vocab_size": 99, "rotary_dim": 8},
    "opt": {"hidden_size": 48, "num_attention_heads": 3, "ffn_dim": 112, "vocab_size": 99, "word_embed_proj_dim": 40},
    "bloom": {"hidden_size": 48, "n_head": 3, "vocab_size": 99},
    "mpt": {"d_model": 48, "n_heads": 3, "max_seq_len": 80, "vocab_size": 99},
    "falcon": {"hidden_size": 48, "num_attention_heads": 3, "vocab_size": 99},
}
WRITTEN_OUT = ("gpt_neo", "gptj", "bloom", "mpt")


def job(family: str, layers: int = 4, **keys: Any) -> dict[str, Any]:
    """A small model of that family."""
    name = {"gpt_neo": "num_layers", "mpt": "n_layers"}.get(family, "num_hidden_layers")
    model = {"model_type": family, name: layers, **SMALL[family]}
    if family == "gpt_neo":
        model["attention_layers"] = [("global", "local")[place % 2] for place in range(layers)]
    return {"model": model, "optimizer": "adamw", "micro_batch_size": 2, "sequence_length": 24, "precision": "bf16", **keys}


@pytest.mark.parametrize(("attention", "checkpointing"), [("auto", "full"), ("eager", "none")])
@pytest.mark.parametrize("family", SMALL)
def test_layers_counted_are_the_layers_played(family, attention, checkpointing):
    """First, middle times n, last have the very events of all layers one by one, outliving weights among them."""
    asked = job(family, attention=attention, activation_checkpointing=checkpointing, precision="amp-fp16")
    folded, whole = play_job(asked), play_job(asked, unrolled=True)
    assert sizes(folded.events) == sizes(whole.events)


def test_a_gpt2_layer_keeps_what_its_formula_says():
    """By hand, in BF16: what one layer of GPT-2 saves for backward, tensor by tensor."""
    tokens, h, heads = 2 * 24, 48, 3
    norms = 2 * (2 * h + 4 + 4 + 2 * h)  # what is normalised, mean, 1/deviation, what comes out
    attention = 2 * 3 * h + 2 * h + 4 * heads + h  # fused projection, what the kernel gave, logsumexp, mask of the dropout
    gelu = 2 * 4 * h * 4  # its operand, half of it, the tanh, one more than that
    mlp = gelu + 2 * 4 * h + h  # what the last matrix reads, mask of the dropout
    kernel = 16 + 8  # seed and offset
    two, three = (play_job(job("gpt2", layers, attention="flash")) for layers in (2, 3))
    assert saved(three) - saved(two) == tokens * (norms + attention + mlp) + kernel


def test_bloom_keeps_its_gelu_s_operand_alone():
    """By hand, in BF16: Bloom's GELU saves 4 h a token for itself, where one written out would save four times as much."""
    tokens, h, heads = 2 * 24, 48, 3
    norms = 2 * (2 * h + 4 + 4 + 2 * h)
    # three copies to (batch · heads, …); softmax's FP32 result and its BF16 copy; what the last matrix reads
    attention = 3 * 2 * h + (4 + 2) * heads * 24 + 2 * h
    mlp = 2 * 4 * h + 2 * 4 * h  # the operand, what the last matrix reads
    two, three = (play_job(job("bloom", layers)) for layers in (2, 3))
    assert saved(three) - saved(two) == tokens * (norms + attention + mlp)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "bloom", "falcon"])
def test_arrays_of_jobs_are_each_job_alone(family):
    """Batches and lengths as int64 arrays give, element by element, the folded heights of each job alone."""
    asked = read_job(job(family, precision="amp-fp16"))
    loaded = load_family(family)
    config = loaded.config.model_validate({key: value for key, value in job(family)["model"].items() if key != "model_type"})

    def heights(rows: Any, tokens: Any) -> Any:
        model = build_model(loaded, config, loaded.usual, name="", dtype=None)
        training = asked.training.model_copy(update={"micro_batch_size": rows, "sequence_length": tokens})
        played = play_step(asked.model_copy(update={"training": training}), make_plan(asked), model, loaded, Behaviour())
        folded = fold(played.events, requested).stretch
        return folded.top, folded.total

    points = [(2, 24), (3, 16), (7, 72)]
    top, total = heights(*(np.array(column, dtype=np.int64) for column in zip(*points, strict=True)))
    for place, point in enumerate(points):
        assert (top[place], total[place]) == heights(*point)


def test_a_kernel_cannot_be_asked_of_attention_that_is_written_out():
    """Families for which transformers has no kernel refuse one, as transformers does."""
    for family in WRITTEN_OUT:
        with pytest.raises(InputError, match="written out"):
            play_job(job(family, attention="flash"))
    asked = job("opt")
    asked["model"]["layerdrop"] = 0.1
    with pytest.raises(NotModelledError, match="at random"):
        play_job(asked)


def leaf(machine: Machine, *shape: int) -> Value:
    """A parameter to work on."""
    return machine.parameter("weight", shape, "other")


def order_of(tensor: Any) -> tuple[int, ...]:
    """Dimensions of a torch tensor from the outermost in memory to the innermost."""
    return tuple(sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d)))


def test_what_is_made_of_slices_lies_as_torch_lays_it():
    """Elementwise results of slices keep their order in memory, and concatenations are contiguous, as on real tensors."""
    torch = pytest.importorskip("torch")
    machine = Machine(Policy("float32"))
    mine = transpose(machine, split_dim(machine, leaf(machine, 2, 5, 42), 2, (3, 14)), 1, 2)
    real = torch.zeros(2, 5, 42).view(2, 5, 3, 14).transpose(1, 2)
    part, piece = narrow(machine, mine, -1, 4), real[..., :4]
    for value, tensor in (
        (neg(machine, part), -piece),
        (add(machine, part, part), piece + piece),
        (cat(machine, (neg(machine, part), part), -1), torch.cat((-piece, piece), -1)),
    ):
        assert (value.order or tuple(range(4))) == order_of(tensor)
        assert value.shape == tuple(tensor.shape)


def test_operators_save_what_torch_s_save():
    """Bytes kept by a clamp, and by an index made of a list, as saved_tensors_hooks see them on real tensors."""
    torch = pytest.importorskip("torch")
    kept: list[int] = []
    source = torch.zeros(3, 4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        source.clamp(min=-1, max=1)
        source[:, [-2]]
    machine = Machine(Policy("float32"))
    mine = leaf(machine, 3, 4, 5)
    bounded = clamp(machine, mine)
    one = picked(machine, mine, 1, machine.new((1,), "int64", "_to_copy"))
    found = [value.nbytes for each in (bounded, one) for value in each.node.saved]
    assert found == kept
    assert one.shape == (3, 1, 5)
