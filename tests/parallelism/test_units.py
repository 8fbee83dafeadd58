"""Which layers FSDP2 shards by themselves: the loop that runs it and the engine that predicts it have one answer."""

from __future__ import annotations

from collections import Counter

import pytest

from memcalc.job import read_job
from memcalc.parallelism import fsdp2
from memcalc.plan import make_plan
from memcalc.readers.config import model_from_config
from tests.families.test_torchvision_encoders import resnet

torch = pytest.importorskip("torch", reason="units are modules")

from memcalc.runtime.checkpointing import repeated_layers  # noqa: E402

VISION = {"model_type": "torchvision_resnet"}
STAGES = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 3], "layer_type": "basic",
          "architectures": ["ResNetForImageClassification"]}  # fmt: skip
LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "vocab_size": 99,
         "num_hidden_layers": 1}  # fmt: skip


def predicted(config):
    """Bytes of each unit's gradients on one of two ranks, and how many such units there are."""
    model = model_from_config(config)
    job = read_job(
        {"model": config, "precision": "fp32", "optimizer": "sgd", "zero_backend": "fsdp2", "zero_stage": 3, "dp": 2}
    )
    sizes: Counter = Counter()
    for held in fsdp2.layouts(make_plan(job).setting(model), 2)[0].gradients:
        sizes[held.buffer.requested] += held.times
    return +sizes


def wrapped(module):
    """The same of the modules that the loop hands to ``fully_shard``, the root last."""
    units = [list(layer.parameters()) for layer in repeated_layers(module)]
    inside = {id(param) for unit in units for param in unit}
    units.append([param for param in module.parameters() if id(param) not in inside])
    return Counter(sum(-(-param.shape[0] // 2) * param[0].numel() * 4 for param in unit) for unit in units if unit)


@pytest.mark.parametrize(("depth", "kind", "depths"), [(18, "basic", (2, 2, 2, 2)), (50, "bottleneck", (3, 4, 6, 3))])
def test_every_block_of_torchvision_s_resnet_is_a_unit(depth, kind, depths):
    """The first block of a stage too, whose shapes no other block has: they are layers alike by their class."""
    with torch.device("meta"):
        module = resnet(torch, kind, depths, 1, 64, 1000, (False,) * 3)
    assert len(repeated_layers(module)) == sum(depths)
    assert wrapped(module) == predicted({**VISION, "depth": depth})


@pytest.mark.parametrize("config", [STAGES, LLAMA])
def test_every_member_of_a_list_is_a_unit(config):
    """Of transformers' ResNet whole stages, of one layer or three; of a decoder each layer, though there be one."""
    transformers = pytest.importorskip("transformers")
    keys = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    name = config.get("architectures", ["LlamaForCausalLM"])[0]
    with torch.device("meta"):
        module = getattr(transformers, name)(transformers.CONFIG_MAPPING[config["model_type"]](**keys))
    assert wrapped(module) == predicted(config)


def test_a_stem_and_a_head_in_a_sequence_are_the_root_s():
    """Beside blocks of one class, and beside operators of one shape, what stands once is no layer."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = nn.Linear(8, width)

    blocks = nn.Sequential(nn.Embedding(9, 8), Block(5), Block(7), nn.LayerNorm(8), nn.Linear(8, 9))
    assert repeated_layers(blocks) == [blocks[1], blocks[2]]
    plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    assert repeated_layers(plain) == [plain[2], plain[4]]
