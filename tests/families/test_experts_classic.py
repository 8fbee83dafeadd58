"""Mixtures of experts: separate modules against transformers' own renaming of checkpoints, totals, which layers, and speed."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from memcalc.layers.moe import Experts
from memcalc.readers.config import model_from_config
from memcalc.tensors import Tensor
from tests.families.classic import CASES, MIXTURES, by_layer, described, read

SPLIT = [name for name in MIXTURES if name != "gpt_oss"]
ALL = [pytest.param(name, case, id=f"{name}-{i}") for name in SPLIT for i, case in enumerate(CASES[name])]


def in_both_layouts(model_type, case):
    """The model with stacked experts, and with separate ones."""
    keys = {"architectures": [case["architecture"]], **case["config"]}
    return read(model_type, **keys), read(model_type, **keys, expert_layout="separate")


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_both_layouts_hold_the_same_elements(model_type, case):
    """Stacked or separate, the same numbers are stored: in all, in what is trained, and in every tensor that is no expert's."""
    stacked, separate = in_both_layouts(model_type, case)
    assert stacked.num_parameters == separate.num_parameters
    assert stacked.num_trainable_parameters == separate.num_trainable_parameters
    plain = [
        Counter((t.shape, t.dtype, t.role, t.kind, t.count) for t in model.tensors if ".experts." not in t.name)
        for model in (stacked, separate)
    ]
    assert plain[0] == plain[1]


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_separate_experts_have_the_names_of_the_checkpoints_on_the_hub(model_type, case):
    """Loading those checkpoints, transformers' own table turns our separate names into our stacked ones, sizes adding up."""
    conversion = pytest.importorskip("transformers.conversion_mapping", reason="the oracle is transformers' loader")
    steps = conversion.get_checkpoint_conversion_mapping(model_type)
    small = {**case["config"], "num_hidden_layers": min(case["config"].get("num_hidden_layers", 4), 4)}
    stacked, separate = in_both_layouts(model_type, {**case, "config": small})
    sizes: Counter = Counter()
    for tensor in separate.tensors:
        for name in tensor.names():
            renamed = name
            for step in steps:
                renamed, _ = step.rename_source_key(renamed)
            sizes[renamed] += tensor.numel
    assert dict(sizes) == {name: tensor.numel for tensor in stacked.tensors for name in tensor.names()}


def test_a_separate_expert_is_three_linear_layers():
    """The operator that reads a separate expert's matrix is a plain matrix multiplication, a stacked one's is not."""
    stacked, separate = in_both_layouts("mixtral", {"architecture": "MixtralForCausalLM", "config": {"num_hidden_layers": 2}})
    name = "model.layers.1.block_sparse_moe.experts.7.{}.weight"
    shapes = {"w1": (14336, 4096), "w3": (14336, 4096), "w2": (4096, 14336)}
    listed = described(separate)
    assert {w: (listed[name.format(w)][0], listed[name.format(w)][3]) for w in shapes} == {
        w: (shape, "linear") for w, shape in shapes.items()
    }
    assert described(stacked)["model.layers.1.mlp.experts.gate_up_proj"][3] == "expert"


def test_deepseek_v3_in_its_checkpoints_layout_is_counted_not_listed():
    """45,000 tensors and more build in milliseconds, and are those of the published model without its scales and MTP module.

    By hand: a sparse layer has 3 * 256 + 3 matrices of experts, a router, 7 tensors of attention and 2 norms; a dense one 3
    matrices in place of experts and router; and 3 tensors stand beside the layers. 671,026,419,200 is published for the main
    model, and counts the corrections of the routers' choice, which transformers keeps as buffers.
    """
    keys = {"model_type": "deepseek_v3", "expert_layout": "separate"}
    took = []
    for _ in range(5):  # the first one imports
        began = time.perf_counter()
        model = model_from_config(keys)
        took.append(time.perf_counter() - began)
    assert sum(t.count for t in model.parameters) == 58 * (3 * 256 + 3 + 1 + 7 + 2) + 3 * (3 + 7 + 2) + 3 == 45_337
    assert len(model.tensors) < 60
    corrections = [t.elements for t in model.buffers if t.name.endswith("e_score_correction_bias")]
    assert corrections == [58 * 256]
    assert model.num_parameters + sum(corrections) == 671_026_419_200
    assert min(took) < 0.05


SPARSE = [
    # (family, keys, the layers that have a mixture)
    ("deepseek_v3", {"num_hidden_layers": 6, "first_k_dense_replace": 2}, [2, 3, 4, 5]),
    ("deepseek_v3", {"num_hidden_layers": 9, "first_k_dense_replace": 2, "moe_layer_freq": 3}, [3, 6]),
    ("deepseek_v2", {"num_hidden_layers": 6, "first_k_dense_replace": 1, "moe_layer_freq": 2}, [2, 4]),
    ("deepseek_v2", {"num_hidden_layers": 3, "first_k_dense_replace": 7}, []),
    ("qwen3_moe", {"num_hidden_layers": 7, "decoder_sparse_step": 2}, [1, 3, 5]),
    ("qwen3_moe", {"num_hidden_layers": 7, "decoder_sparse_step": 2, "mlp_only_layers": [3, 3, 4, 12]}, [1, 5]),
    ("qwen2_moe", {"num_hidden_layers": 4, "mlp_only_layers": [0]}, [1, 2, 3]),
    ("qwen2_moe", {"num_hidden_layers": 4, "num_experts": 0}, []),
]


@pytest.mark.parametrize(("model_type", "keys", "layers"), SPARSE)
def test_mixtures_stand_where_the_config_puts_them(model_type, keys, layers):
    """The layers with experts, by hand; the others have a dense feed-forward, and every layer has one of the two."""
    model = read(model_type, **keys)
    assert sorted(by_layer(model, Experts)) == layers
    names = described(model)
    for index in range(keys["num_hidden_layers"]):
        sparse, dense = (f"model.layers.{index}.mlp.{part}" in names for part in ("experts.down_proj", "down_proj.weight"))
        assert (sparse, dense) == (index in layers, index not in layers)


def test_experts_with_biases_split_into_as_many_elements():
    """The layout changes how the experts' numbers are cut, never how many there are, biases included."""
    elements = []
    for layout in ("stacked", "separate"):
        tensors: list[Tensor] = list(Experts(5, 12, 7, layout, bias=True).tensors())
        elements.append(sum(t.elements for t in tensors))
    assert elements == [5 * (2 * 7 * 12 + 2 * 7 + 12 * 7 + 12)] * 2
