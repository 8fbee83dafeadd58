"""Timm's and torchtune's modules, played without torch and held against what traces of their own code came to."""

from __future__ import annotations

import pytest

from benchmarks.played.against import heights, played
from benchmarks.played.record_others import recorded
from memcalc import api
from memcalc.engines.analytic.many import peaks
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from memcalc.prepared import prepared
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc, Mark
from memcalc.tape.unroll import unroll

CASES = [case for project in recorded().values() for case in project["cases"]]
TOLERANCE = {"requested": 0.001, "allocated": 0.01}
VIT = next(job for name, job, *_ in CASES if name.startswith("vit bf16"))
TUNE = next(job for name, job, *_ in CASES if name.startswith("2024-11-10 llama 3.2 bf16"))


def model_of(job):
    """The model that a job trains."""
    read = read_job({**job, "optimizer": "adamw"})
    return prepared(read_model(read.model), read)


def saved(job):
    """Bytes alive where backward begins."""
    from memcalc.engines.analytic.step import play_job

    live = 0
    for event in unroll(play_job({**job, "optimizer": "adamw"}).events):
        if isinstance(event, Mark):
            if event.phase == "backward":
                return live
        else:
            live += int(event.buffer.requested) * (1 if isinstance(event, Alloc) else -1)
    raise AssertionError("there is no backward")


@pytest.mark.parametrize("project", sorted(recorded()))
def test_a_played_step_is_its_trace(project):
    """What is saved and what is left are the trace's to the byte, and the highest point within a thousandth."""
    for name, job, (top, left, kept), _ in recorded()[project]["cases"]:
        mine = heights(played({**job, "optimizer": "adamw"}, unrolled=False))
        assert (mine.saved, mine.net) == (kept, left), name
        assert abs(mine.top - top) <= TOLERANCE["requested"] * top, name


@pytest.mark.parametrize(("name", "job", "_", "peak"), [case for case in CASES if case[3]], ids=lambda each: str(each)[:40])
def test_a_whole_step_is_its_trace(name, job, _, peak):
    """Two steps under AdamW: the peak requested within a thousandth of the trace's, that allocated within a hundredth."""
    found = api.estimate_mapping({**job, "optimizer": "adamw"}).peak
    for key, told in zip(TOLERANCE, peak, strict=True):
        assert abs(getattr(found, key) - told) <= TOLERANCE[key] * told, (key, getattr(found, key), told)


def test_timm_has_its_own_tensors():
    """One matrix for query, key and value, a gate beside the feed-forward's input, and scales of every feature."""
    told = {"init_values": 1e-5, "mlp_layer": "SwiGLUPacked", "reg_tokens": 4, "no_embed_class": True}
    shapes = {one.name: one.shape for one in model_of({**VIT, "implementation_args": told}).tensors}
    assert shapes["blocks.*.attn.qkv.weight"] == (3 * 96, 96)
    assert (shapes["blocks.*.mlp.fc1.weight"], shapes["blocks.*.mlp.fc2.weight"]) == ((400, 96), (96, 200))
    assert shapes["blocks.*.ls1.gamma"] == shapes["blocks.*.ls2.gamma"] == (96,)
    assert (shapes["reg_token"], shapes["pos_embed"]) == ((1, 4, 96), (1, 25, 96))


def test_vit_giant_has_the_parameters_timm_counts():
    """DINOv2's ViT-g/14 of 518 pixels with 45 classes: timm.create_model counts as many."""
    giant = {
        "model_type": "vit", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "patch_size": 14,
        "intermediate_size": 4096, "image_size": 518, "num_labels": 45,
    }  # fmt: skip
    told = {"init_values": 1e-5, "mlp_layer": "SwiGLUPacked"}
    assert model_of({**VIT, "model": giant, "implementation_args": told}).num_parameters == 1_136_548_397


def test_torchtune_keeps_its_rotary_caches():
    """Llama 3.2's builder makes one cache for all layers, Llama 3's one layer that is copied, until January 2025."""

    def caches(builder, version):
        told = {"builder": builder, "version": version}
        found = model_of({**TUNE, "implementation_args": told}).buffers
        return sum(4 * int(one.elements) for one in found if one.name.endswith("cache"))

    assert caches("llama3_2", "2024-11-10") == 131072 * 16 * 4
    assert caches("llama3", "2024-11-10") == 4 * 8192 * 16 * 4
    assert caches("llama3", "2025-01-27") == 8192 * 16 * 4


def test_packed_samples_look_their_positions_up():
    """Each layer keeps a copy of the cache's rows for queries and one for keys, and no padded statistics or random state."""
    job = {**TUNE, "attention": "flash"}
    packed = {**job, "implementation_args": {**job["implementation_args"], "packed": True}}
    rows, tokens, layers, head = 3, 65, 4, 16
    flash_state = 16 + 8  # seed and offset
    assert saved(packed) - saved(job) == layers * (2 * rows * tokens * head * 4 - flash_state)


@pytest.mark.parametrize(
    ("job", "changes", "kind", "message"),
    [
        (VIT, {"implementation_args": {"mlp_layer": "GluMlp"}}, NotModelledError, "mlp_layer: GluMlp is not modelled"),
        (VIT, {"implementation_args": {"global_pool": "map"}}, NotModelledError, "global_pool: map is not modelled"),
        (VIT, {"implementation_args": {"class_token": False}}, InputError, "needs the class token"),
        (VIT, {"implementation_args": {"reg_tokens": -1}}, InputError, "is no number of tokens"),
        (VIT, {"implementation_args": {"qk_norm": "yes"}}, InputError, "is not what timm takes"),
        (VIT, {"implementation_args": {"drop_path_rate": 0.1}}, InputError, "is not known to timm"),
        (VIT, {"model": TUNE["model"]}, NotModelledError, "is not modelled for LlamaForCausalLM"),
        (TUNE, {"model": VIT["model"]}, NotModelledError, "is not modelled for ViTForImageClassification"),
        (TUNE, {"implementation_args": {"version": "2024-01-01"}}, InputError, "is before what is known of torchtune"),
        (TUNE, {"implementation_args": {"builder": "qwen2"}}, InputError, "does not build a llama"),
        (TUNE, {"implementation_args": {"loss": "ForwardKL"}}, NotModelledError, "loss: ForwardKL is not modelled"),
        (TUNE, {"implementation_args": {"packed": "yes"}}, InputError, "is not what a dataset takes"),
        (TUNE, {"implementation_args": {"max_seq_len": 0.5}}, InputError, "is no number of tokens"),
        (TUNE, {"lora": {"target_modules": ["lm_head"]}}, InputError, "is nothing that torchtune adapts"),
        (TUNE, {"lora": {}, "quantization": "nf4"}, NotModelledError, "torchtune's NF4 is torchao's"),
    ],
)
def test_refusals(job, changes, kind, message):
    """What is not known is refused with a reason, and never played as something else."""
    with pytest.raises(kind, match=message):
        model_of({**job, **changes})


def test_torchtune_has_no_autocast():
    """A recipe is in BF16 or FP32, as a whole."""
    with pytest.raises(NotModelledError, match="torchtune, which has none"):
        saved({**TUNE, "precision": "amp-bf16"})


@pytest.mark.parametrize(
    ("job", "key", "sizes"), [(VIT, "micro_batch_size", [1, 2, 7]), (TUNE, "sequence_length", [64, 65, 90])]
)
def test_many_sizes_are_each_one(job, key, sizes):
    """Peaks over an array of sizes are those of single jobs."""
    import numpy as np

    read = read_job({**job, "optimizer": "adamw"})
    together = peaks(read, read_model(read.model), key, np.array(sizes))
    for size, peak in zip(sizes, together, strict=True):
        assert api.estimate_mapping({**job, "optimizer": "adamw", key: size}).peak.rounded == peak
