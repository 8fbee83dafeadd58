"""Mixtures of experts routed in Python loops: a router's choice is assumed, and what follows from it is to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import memcalc  # noqa: E402
from memcalc.engines.trace.estimate import Feed, trace_job  # noqa: E402
from memcalc.engines.trace.routing import choices, experts_of, fullest  # noqa: E402
from memcalc.errors import InputError, NotModelledError  # noqa: E402
from memcalc.job import read_job  # noqa: E402
from tests.trace import routed  # noqa: E402
from tests.trace.oracle import really_saved, traced_activations  # noqa: E402


class Forced(TorchDispatchMode):
    """A real run in which routers choose as is assumed; their weights stay their own."""

    def __init__(self, imbalance):
        super().__init__()
        self.imbalance = imbalance

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::topk", "aten::max", "aten::argmax"):
            index = out if name == "aten::argmax" else out[1]
            chosen = index.shape[-1] if name == "aten::topk" else 1
            again = int(args[0].isinf().any())  # of the scores that a first choice has left
            picked = (choices(index.numel() // chosen, chosen, args[0].shape[-1], self.imbalance) + again) % args[0].shape[-1]
            index.copy_(picked.reshape(index.shape))
        return out


def asked(name, **keys):
    """The job of one of the ways."""
    job = {"model": f"py:tests.trace.routed:{name}", "precision": "fp32", "optimizer": "sgd", "engine": "trace", **keys}
    return read_job(job)


def traced(name, **keys):
    """One of the ways, traced with ten tokens."""
    return trace_job(asked(name, **keys), Feed(inputs=("x=float32[10,16]",)))


@given(rows=st.integers(1, 200), experts=st.integers(2, 20), chosen=st.integers(1, 20), imbalance=st.floats(1, 30))
def test_choices_are_even_or_as_uneven_as_asked(rows, experts, chosen, imbalance):
    """Rows are conserved, no row chooses an expert twice, the fullest has its share, and the others differ by one at most."""
    chosen = min(chosen, experts)
    picked = choices(rows, chosen, experts, imbalance)
    assert picked.shape == (rows, chosen)
    assert all(len(set(row)) == chosen and 0 <= min(row) <= max(row) < experts for row in picked.tolist())
    counts = picked.flatten().bincount(minlength=experts).tolist()
    assert sum(counts) == rows * chosen
    assert counts[-1] == fullest(rows, chosen, experts, imbalance) or imbalance == 1 or chosen == experts
    others = counts if imbalance == 1 else counts[:-1]
    assert max(others) - min(others) <= 1


@given(chosen=st.integers(1, 8), used=st.integers(1, 8), experts=st.sampled_from([4, 6, 8, 9]))
def test_a_part_of_a_choice_is_even_too(chosen, used, experts):
    """Of routers that choose more than they use, the used columns alone fall evenly over enough rows."""
    chosen = min(chosen, experts)
    picked = choices(experts * experts, chosen, experts)[:, :used].flatten()
    assert len(set(picked.bincount(minlength=experts).tolist())) == 1


def test_saved_activations_are_those_of_a_real_forward():
    """In every way, what lives when backward begins is to the byte what a real run saves whose routers choose so."""
    name, inputs = "EveryWay", ("x=float32[10,16]",)
    found = trace_job(asked(name, routing_imbalance=1.6), Feed(inputs=inputs))
    with Forced(1.6):
        real = really_saved(asked(name), inputs=inputs)
    assert (traced_activations(found.tape, 1), traced_activations(found.tape, 2)) == (real, real)
    begin = "routing has an imbalance of 1.6: 10 tokens choose "
    lines = [line.removeprefix(begin) for line in found.footprint.assumptions if line.startswith(begin)]
    assert sorted(line[0] for line in lines) == ["1", "2", "3"]
    # 20 rows fall on four experts: 1.6 times 5 on the last, and 4 on each of the others
    assert any(line.endswith("8 rows for the fullest expert") for line in lines)
    rows = {e.buffer.shape[0] for e in found.tape if hasattr(e, "buffer") and e.buffer.module.startswith("ByWhere.experts")}
    assert {8, 4} <= rows
    assert not {5, 6, 7} & rows


def test_transformers_loop_over_experts():
    """Mixtral's own loop, asked for by ``experts_implementation``, saves what a real run with even routing saves."""
    pytest.importorskip("transformers", reason="the loop is transformers'")
    model = {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 99, "max_position_embeddings": 32,
        "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager",
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    job = read_job({"model": model, "optimizer": "sgd", "precision": "fp32", "sequence_length": 9, "attention": "eager"})
    found = trace_job(job)
    with Forced(1.0):
        assert traced_activations(found.tape, 2) == really_saved(job)
    expected = "routing is uniform: 9 tokens choose 2 of 4 experts in model.layers.0.mlp.gate: 4 to 5 rows an expert"
    assert expected in found.footprint.assumptions


@pytest.mark.parametrize("name", ["ByValue", "ByLikeness"])
def test_what_is_no_routers_choice_is_refused(name):
    """A mask of the tokens' own values, and a greatest score among things that are no experts, are refused by their line."""
    with pytest.raises(NotModelledError, match="decides by a tensor's values") as caught:
        traced(name)
    text = Path(routed.__file__).read_text()
    begin = text[: text.index(f"class {name}(")].count("\n")
    line = next(n for n, one in enumerate(text.splitlines(), 1) if n > begin and "the line the error names" in one)
    assert f"routed.py:{line}" in str(caught.value)


def test_an_imbalance_must_matter():
    """Where no size hangs on a router, and for engines that route nothing, an imbalance is an error and no idle word."""
    job = {"model": "py:tests.trace.small:Tower", "precision": "fp32", "routing_imbalance": 1.5}
    with pytest.raises(InputError, match=r"routing_imbalance: 1\.5 changes nothing"):
        trace_job(read_job({**job, "engine": "trace"}), Feed(inputs=("x=float32[2,16]",)))
    with pytest.raises(NotModelledError, match=r"routing_imbalance: 1\.5 is a trace's"):
        memcalc.estimate("gpt2", routing_imbalance=1.5)
    with pytest.raises(InputError, match="routing_imbalance"):
        read_job({**job, "routing_imbalance": 0.5})


def test_a_loop_of_ones_own_may_route():
    """Inside ``memcalc.tracing`` a watched mixture is routed the same way, and the footprint says so."""
    with memcalc.tracing(gpu="a100-80gb", routing_imbalance=1.6) as session:
        model = routed.ByWhere().cuda()
        session.watch(model)
        optimizer = torch.optim.SGD(model.parameters())
        for _ in range(2):
            model(torch.randn(10, 16, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert any("8 rows for the fullest expert" in line for line in session.traced.footprint.assumptions)


def test_what_is_written_over_is_not_known_any_more():
    """Zeros that were filled with unknown numbers, even through a view, have no value to be asked for."""
    read = []
    with pytest.raises(NotModelledError, match="decides by a tensor's values"), memcalc.tracing() as session:  # noqa: PT012
        session.watch(routed.ByWhere())
        zeros = torch.zeros(4, device="cuda", dtype=torch.long)
        read.append(zeros.sum().item())
        zeros[1:].copy_(torch.randint(9, (3,), device="cuda"))
        read.append(zeros.sum().item())
    assert read == [0]


def test_what_has_experts():
    """Lists of like parts and stacks of matrices tell how many experts there may be; a convolution's weight does not."""
    assert experts_of(routed.ByWhere()) == {4}
    assert experts_of(routed.Stacked()) == {4}
    assert experts_of(torch.nn.Sequential(torch.nn.Conv1d(7, 9, 3), torch.nn.ReLU())) == set()
