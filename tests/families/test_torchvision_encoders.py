"""torchvision's ResNet and VisionTransformer: its published counts, and modules written here to the same plan."""

from __future__ import annotations

import pytest

from memcalc.layers.basic import Conv
from tests.families.encoders import described, found, read

RESNET, VIT = "torchvision_resnet", "torchvision_vit"
LARGE = {"hidden_dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
HUGE = {"hidden_dim": 1280, "num_layers": 32, "num_heads": 16, "mlp_dim": 5120, "patch_size": 14}
PUBLISHED = [
    # meta["num_params"] of the weights in pytorch/vision at 07a929e, torchvision/models/{resnet,vision_transformer}.py
    (RESNET, {"depth": 18}, 11_689_512),
    (RESNET, {"depth": 34}, 21_797_672),
    (RESNET, {"depth": 50}, 25_557_032),
    (RESNET, {"depth": 101}, 44_549_160),
    (RESNET, {"depth": 152}, 60_192_808),
    (RESNET, {"depth": 50, "groups": 32, "width_per_group": 4}, 25_028_904),
    (RESNET, {"depth": 50, "width_per_group": 128}, 68_883_240),
    (VIT, {}, 86_567_656),
    (VIT, {"image_size": 384}, 86_859_496),
    (VIT, {"patch_size": 32}, 88_224_232),
    (VIT, LARGE, 304_326_632),
    (VIT, {**LARGE, "image_size": 512}, 305_174_504),
    (VIT, {**LARGE, "patch_size": 32}, 306_535_400),
    (VIT, HUGE, 632_045_800),
    (VIT, {**HUGE, "image_size": 518}, 633_470_440),
]


@pytest.mark.parametrize(("model_type", "keys", "count"), PUBLISHED)
def test_published_counts_are_met_to_the_parameter(model_type, keys, count):
    """The count torchvision prints beside each of its weights."""
    model = read(model_type, **keys)
    assert model.num_parameters == model.num_trainable_parameters == count


def residual(torch, inside, planes, stride, kind, groups, base):
    """One residual block to torchvision's plan: its attributes, in the order it makes them."""
    nn = torch.nn
    module = nn.Module()
    width = planes * base // 64 * groups
    outside = planes * (4 if kind == "bottleneck" else 1)
    plan = [(inside, width, 1, 1, 1), (width, width, 3, stride, groups), (width, outside, 1, 1, 1)]
    if kind == "basic":
        plan = [(inside, planes, 3, stride, 1), (planes, planes, 3, 1, 1)]
    for index, (a, b, k, s, g) in enumerate(plan, start=1):
        module.add_module(f"conv{index}", nn.Conv2d(a, b, k, stride=s, padding=k // 2, groups=g, bias=False))
        module.add_module(f"bn{index}", nn.BatchNorm2d(b))
    if stride != 1 or inside != outside:
        module.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside))
    return module, outside


def resnet(torch, kind, depths, groups, base, classes, dilated):
    """A ResNet to torchvision's plan."""
    nn = torch.nn
    module = nn.Module()
    module.conv1, module.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
    inside = 64
    for stage, depth in enumerate(depths):
        blocks = []
        for index in range(depth):
            stride = 2 if stage and not index and not dilated[stage - 1] else 1
            block, inside = residual(torch, inside, 64 * 2**stage, stride, kind, groups, base)
            blocks.append(block)
        module.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
    module.fc = nn.Linear(inside, classes)
    return module


def vit(torch, image, patch, depth, heads, hidden, wide, classes, representation):
    """A VisionTransformer to torchvision's plan."""
    nn = torch.nn
    module, encoder, layers = nn.Module(), nn.Module(), nn.Module()
    module.conv_proj = nn.Conv2d(3, hidden, patch, stride=patch)
    module.class_token = nn.Parameter(torch.zeros(1, 1, hidden))
    encoder.pos_embedding = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, hidden))
    for index in range(depth):
        block = nn.Module()
        block.ln_1, block.self_attention = nn.LayerNorm(hidden), nn.MultiheadAttention(hidden, heads)
        block.ln_2 = nn.LayerNorm(hidden)
        block.mlp = nn.Sequential(nn.Linear(hidden, wide), nn.GELU(), nn.Dropout(0.0), nn.Linear(wide, hidden), nn.Dropout(0.0))
        layers.add_module(f"encoder_layer_{index}", block)
    encoder.layers, encoder.ln = layers, nn.LayerNorm(hidden)
    module.encoder, module.heads = encoder, nn.Module()
    if representation:
        module.heads.pre_logits = nn.Linear(hidden, representation)
    module.heads.head = nn.Linear(representation or hidden, classes)
    return module


def tensors_of(module) -> dict:
    """Name -> (shape, dtype, role) as torch walks them."""
    parameters = {name: (tuple(p.shape), str(p.dtype)[6:], "parameter") for name, p in module.named_parameters()}
    return parameters | {name: (tuple(b.shape), str(b.dtype)[6:], "buffer") for name, b in module.named_buffers()}


WHOLE = (False, False, False)
RESNETS = [
    ({"depth": 18}, ("basic", (2, 2, 2, 2), 1, 64, 1000, WHOLE)),
    ({"depth": 50, "num_classes": 7}, ("bottleneck", (3, 4, 6, 3), 1, 64, 7, WHOLE)),
    ({"depth": 101, "groups": 32, "width_per_group": 8}, ("bottleneck", (3, 4, 23, 3), 32, 8, 1000, WHOLE)),
    ({"layers": [1, 2, 1, 3], "width_per_group": 128}, ("bottleneck", (1, 2, 1, 3), 1, 128, 1000, WHOLE)),
    ({"layers": [2, 1, 1, 1], "block": "basic"}, ("basic", (2, 1, 1, 1), 1, 64, 1000, WHOLE)),
    (
        {"depth": 50, "replace_stride_with_dilation": [False, True, True]},
        ("bottleneck", (3, 4, 6, 3), 1, 64, 1000, (False, True, True)),
    ),
]


@pytest.mark.parametrize(("keys", "plan"), RESNETS)
def test_a_resnet_is_the_module_tensor_by_tensor(keys, plan):
    """Names, shapes, dtypes, roles, and the convolutions' strides and groups, are those of a module built to the same plan."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
    with torch.device("meta"):
        module = resnet(torch, *plan)
    model = read(RESNET, **keys)
    assert {name: each[:3] for name, each in described(model).items()} == tensors_of(module)
    convs = [each for each in module.modules() if isinstance(each, torch.nn.Conv2d)]
    theirs = {(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.groups) for c in convs}
    assert {(c.in_channels, c.out_channels, c.kernel, c.stride, c.padding, c.groups) for c in found(model, Conv)} == theirs


VITS = [
    ({}, (224, 16, 12, 12, 768, 3072, 1000, None)),
    (
        {
            "image_size": 96,
            "patch_size": 12,
            "num_layers": 3,
            "num_heads": 5,
            "hidden_dim": 60,
            "mlp_dim": 77,
            "num_classes": 9,
        },
        (96, 12, 3, 5, 60, 77, 9, None),
    ),
    ({"num_layers": 1, "representation_size": 33}, (224, 16, 1, 12, 768, 3072, 1000, 33)),
]


@pytest.mark.parametrize(("keys", "plan"), VITS)
def test_a_vision_transformer_is_the_module_tensor_by_tensor(keys, plan):
    """Names, shapes, dtypes and roles are those of a module built to the same plan, and so, with one layer, is their order."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
    with torch.device("meta"):
        module, small = vit(torch, *plan), vit(torch, *plan[:2], 1, *plan[3:])
    model = read(VIT, **keys)
    assert {name: each[:3] for name, each in described(model).items()} == tensors_of(module)
    ours = [name for t in read(VIT, **{**keys, "num_layers": 1}).parameters for name in t.names()]
    assert ours == [name for name, _ in small.named_parameters()]
