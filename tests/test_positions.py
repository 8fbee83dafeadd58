"""How long a sequence may be: as many positions as a family has, held to real modules, and what each command makes of it."""

from __future__ import annotations

import pytest

from memcalc.api import estimate_mapping
from memcalc.errors import InputError
from memcalc.families.base import known_families, load_family
from memcalc.fit import Grid, fit
from memcalc.positions import places_of
from memcalc.readers.config import model_from_config
from memcalc.sweep import run
from tests.sweep.oracle import differences

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
WIDE = {**SHAPE, "intermediate_size": 24, "max_position_embeddings": 10}
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 10, "vocab_size": 40}
SIDES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40}  # fmt: skip
SMALL = {
    "albert": {**WIDE, "embedding_size": 8}, "bert": WIDE, "deberta-v2": WIDE, "electra": {**WIDE, "embedding_size": 16},
    "roberta": {**WIDE, "pad_token_id": 1}, "xlm-roberta": {**WIDE, "pad_token_id": 3},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 10, "vocab_size": 40},
    "gpt2": GPT, "gpt_bigcode": GPT, "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neo": {**SHAPE, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]], "max_position_embeddings": 10},
    "mpt": {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 10, "vocab_size": 40},
    "opt": {**SHAPE, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 10},
    "bart": {**SIDES, "max_position_embeddings": 10},
    "whisper": {**SIDES, "max_target_positions": 10, "max_source_positions": 6, "num_mel_bins": 4, "pad_token_id": 1},
    "clip_text_model": {**WIDE, "projection_dim": 8},
}  # fmt: skip
"""By family, a config with ten positions."""
ENDLESS = {"llama": WIDE, "bloom": {**SHAPE, "n_head": 2}, "falcon": {**SHAPE, "alibi": True}, "deberta-v2": {
    **WIDE, "position_biased_input": False, "relative_attention": True}}  # fmt: skip
"""Families that look nothing up, or not with these keys."""


def config_of(family: str, keys: dict[str, object]) -> dict[str, object]:
    """The config of a family's usual head; of those that see, of the side that reads."""
    return {"model_type": family, "architectures": [load_family(family).usual], **keys}


def runs(family: str, keys: dict[str, object], tokens: int) -> bool:
    """Whether transformers' own module runs on so many tokens."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family, **keys)
    cls = getattr(transformers, load_family(family).usual)
    module, ids = cls(config).eval(), torch.full((1, tokens), 5)
    given = {"input_ids": ids}
    if family == "whisper":
        given = {"input_features": torch.zeros(1, 4, 12), "decoder_input_ids": ids}
    try:
        with torch.no_grad():
            module(**given)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("family", SMALL)
def test_a_sequence_runs_as_long_as_there_are_positions(family):
    """Transformers' module, run on a CPU, takes as many tokens as are said, and fails on one more."""
    most = places_of(model_from_config(config_of(family, SMALL[family])))["sequence_length"]
    assert runs(family, SMALL[family], most)
    assert not runs(family, SMALL[family], most + 1)


@pytest.mark.parametrize("family", ENDLESS)
def test_what_looks_nothing_up_runs_on(family):
    """Rotary positions and biases that are made as they are read go beyond what a config calls its most."""
    assert places_of(model_from_config(config_of(family, ENDLESS[family]))) == {}
    assert runs(family, ENDLESS[family], 14)


def test_every_family_with_a_table_is_held_to_its_module():
    """None says how many positions it has without a test of it; CLIP's words are those of its text tower."""
    told = {load_family(name).model_type for name in known_families() if load_family(name).places is not None}
    assert told == {*SMALL, "clip"}


@pytest.mark.parametrize(("job", "said"), [
    ({"model": "gpt2", "sequence_length": 1025}, r"training\.sequence_length: 1025 is more than the 1024 positions that gpt2 "
     "has; use 1024 or less, or a config with more positions"),
    ({"model": "gpt2", "sequence_length": 1025, "scope": "states"}, "1025 is more than the 1024 positions"),
    ({"model": "opt-125m", "sequence_length": 2049, "mode": "evaluate"}, "2049 is more than the 2048 positions"),
    ({"model": "gpt2", "context_length": 1024, "mode": "decode"}, r"inference\.context_length: 1024 is more than the 1024 "
     "positions that gpt2 has, of which the token that is read takes one; use 1023 or less"),
    ({"model": "roberta-base", "sequence_length": 514}, "514 is more than the 512 positions"),
    ({"model": "bart-base", "sequence_length": 8, "source_length": 1025}, r"training\.source_length: 1025 is more"),
])  # fmt: skip
def test_longer_sequences_are_errors(job, said):
    """Path, value, rule and way out, of training and of running."""
    with pytest.raises(InputError, match=said):
        estimate_mapping(job)


def test_rotary_positions_go_beyond_what_they_were_trained_for():
    """Llama's tables are made as long as they are read."""
    assert estimate_mapping(
        {"model": "smollm2-135m", "sequence_length": 5000, "attention": "flash"}, replayed=False
    ).peak.rounded


def test_a_trace_refuses_them_too():
    """On tensors without data no lookup fails, so that the job says it."""
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="1025 is more than the 1024 positions that gpt2 has"):
        estimate_mapping({"model": "gpt2", "sequence_length": 1025, "engine": "trace"})


@pytest.mark.parametrize(("keys", "largest", "most"), [
    ({"micro_batch_size": 1}, "sequence", 1024), ({"mode": "prefill"}, "sequence", 1024), ({"mode": "decode"}, "context", 1023),
    ({"mode": "decode", "cache": "static", "max_cache_length": 500}, "context", 499),
])  # fmt: skip
def test_the_search_ends_where_positions_do(keys, largest, most):
    """With room for more, the largest sequence and context are the last that have positions, or a place in the cache."""
    grid = Grid(["sgd"], ["bf16-pure"], ["full"]) if "mode" not in keys else None
    (one,) = fit({"model": "gpt2", "memory": 80 * 2**30, **keys}, grid, largest=largest)
    assert (one.largest, one.most, one.verdict) == (most, most, "fits")


def test_a_batch_of_longer_sequences_is_no_way_to_fit():
    """The job is refused as a whole, not each of its ways."""
    with pytest.raises(InputError, match="2048 is more than the 1024 positions"):
        fit({"model": "gpt2", "memory": 2**30, "sequence_length": 2048})


def test_rows_of_a_sweep_are_refused_one_by_one():
    """Each longer row carries an estimate's own words; the others have their figures."""
    grid = {
        "model": ["gpt2", "smollm2-135m", "distilgpt2"],
        "sequence_length": [512, 1024, 1025, 3000],
        "optimizer": ["sgd", "admw"],
    }
    sweep = run({"base": {"precision": "bf16-pure", "attention": "flash", "memory": "1GiB"}, "grid": grid})
    rows = list(sweep)
    assert sum("positions" in (row["error"] or "") for row in rows) == 4
    assert differences(sweep, rows) == []


SMALL_GPT = {"model": {"model_type": "gpt2", "name": "small", **GPT}, "sequence_length": 11}


def test_a_measurement_refuses_them_before_it_starts():
    """The loop says what an estimate says, not that an index is out of range; inputs of one's own have their own lengths."""
    pytest.importorskip("transformers", reason="a real step")
    from memcalc.campaign import RunSettings
    from memcalc.engines.measure.here import Ask, measure_here

    with pytest.raises(InputError, match=r"training\.sequence_length: 11 is more than the 10 positions that small has; use 10"):
        measure_here(Ask(SMALL_GPT))
    inputs = ["input_ids=int64[1,10]<40", "labels=int64[1,10]<40"]
    record = measure_here(Ask({**SMALL_GPT, "precision": "fp32"}, settings=RunSettings(iterations=1, inputs=inputs)))
    assert record.status == "measured"


def test_the_commands_that_measure_say_it():
    """From another process the error comes whole: of ``measure`` as itself, of ``verify`` as a job that is not judged."""
    pytest.importorskip("torch", reason="a real step")
    from memcalc.engines.measure.process import measure_mapping
    from memcalc.verify.files import Models
    from memcalc.verify.live import verify_live
    from memcalc.verify.tolerance import EXACT

    (verdict,) = verify_live([SMALL_GPT], measure_mapping, EXACT, Models())
    assert (verdict.outcome, verdict.reason) == (
        "unjudged", "training.sequence_length: 11 is more than the 10 positions that small has; use 10 or less, or a config "
        "with more positions",
    )  # fmt: skip
