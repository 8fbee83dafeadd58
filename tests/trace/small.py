"""Small modules of every shape a person may bring, and steps of their own."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts


class Perceptron(nn.Module):
    """Linear, ReLU, Linear, and the mean square against a target."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x, y):
        return {"loss": functional.mse_loss(self.second(self.act(self.first(x))), y)}


class Tied(nn.Module):
    """An embedding whose weight is the head's, a buffer, and a frozen part."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, ids):
        return self.head(self.frozen(self.embed(ids)) * self.scale)


class Mixed(nn.Module):
    """A half of it in BF16, one weight by a parametrisation, two inputs, a keyword and several outputs."""

    def __init__(self):
        super().__init__()
        self.low = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.high = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))

    def forward(self, x, other, *, scale=None):
        hidden = self.low(x.to(torch.bfloat16)).float() + other
        return {"scores": self.high(hidden), "hidden": [hidden, scale]}


class Branch(nn.Module):
    """Decides by a value."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        x = self.linear(x)
        if x.sum() > 0:  # the line the error names
            x = x * 2
        return x


class Broken(nn.Module):
    """Multiplies what does not fit."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) @ torch.ones(5, 5, device=x.device)


class Low(nn.Module):
    """A frozen linear layer with an adapter of rank 2, by hand."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Tower(nn.Module):
    """Layers in a list, as checkpointing wants them."""

    def __init__(self, count=4, width=16):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(count)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Dropping(nn.Module):
    """Dropout, softmax of a half and layer norm."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.1)

    def forward(self, x):
        hidden = self.drop(self.norm(self.linear(x)))
        return functional.softmax(hidden, -1, dtype=torch.float32)


class Attending(nn.Module):
    """Scaled dot-product attention over 2 heads of 16."""

    def __init__(self, width=16):
        super().__init__()
        self.width, self.qkv = width, nn.Linear(2 * width, 6 * width)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, self.width).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def attending_12():
    """The same over 2 heads of 12."""
    return Attending(12)


class Telling(nn.Module):
    """Writes down what Python is told of devices."""

    told: ClassVar[dict] = {}

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        out = self.linear(x)
        same = x.to("cuda")
        Telling.told = {
            "device": str(out.device), "is_cuda": out.is_cuda, "weight": str(self.linear.weight.device),
            "available": torch.cuda.is_available(), "made": str(torch.ones(2, device="cuda").device),
            "like": str(torch.zeros_like(x).device), "index": x.get_device(), "stays": same is x,
            "value": str(torch.tensor([1.0, 2.0], device="cuda").device), "host": str(torch.ones(2).device),
            "moved": str(torch.ones(2).cuda().device), "bare": str(torch.ones(2).to(0).device),
            "capability": torch.cuda.get_device_capability(),
        }  # fmt: skip
        return out


class Adversaries(nn.Module):
    """A generator and a discriminator."""

    def __init__(self):
        super().__init__()
        self.make, self.judge = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.judge(self.make(x))


def adversarial_step(model, batch, optimizer):
    """Two losses, two backward passes and one step."""
    (noise,) = batch.values()
    fake = model.make(noise)
    model.judge(fake.detach()).mean().backward()
    (-model.judge(fake).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


class Cyclic(nn.Module):
    """Leaves a result in a cycle of references, which only Python's garbage collector finds."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x):
        ring = [torch.zeros(9, device=x.device)]
        ring.append(ring)
        return self.linear(x)


class Lone(nn.Module):
    """A module with whatever buffer it is given."""

    def __init__(self, buffer):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("odd", buffer)

    def forward(self, x):
        return self.linear(x)


class Selective(nn.Module):
    """Layers that a person checkpoints by a policy of their own: a list of operators to keep, or a function."""

    def __init__(self, policy):
        super().__init__()
        self.policy, self.layers = policy, Tower(count=3).layers

    def forward(self, x):
        for layer in self.layers:
            contexts = partial(create_selective_checkpoint_contexts, self.policy)
            x = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
        return x


class Raggedly(nn.Module):
    """Makes a tensor of another layout in its forward, in one of several ways."""

    WAYS: ClassVar[dict] = {
        "nested": lambda x: torch.nested.nested_tensor([x[0], x[1, :1]]).to_padded_tensor(0.0),
        "jagged": lambda x: torch.nested.nested_tensor([x[0], x[1, :1]], layout=torch.jagged).values(),
        "offsets": lambda x: torch.nested.nested_tensor_from_jagged(x[0], torch.tensor([0, 1, 3], device=x.device)).values(),
        "mask": lambda x: torch._nested_tensor_from_mask(x, x[..., 0].bool()).to_padded_tensor(0.0),
        "sparse": lambda x: torch.sparse.mm(x[0].to_sparse(), x[1].t()),
    }

    def __init__(self, way):
        super().__init__()
        self.way, self.linear = self.WAYS[way], nn.Linear(4, 4)

    def forward(self, x):
        return self.way(self.linear(x))


def two_losses(model, batch, optimizer):
    """A step for the command line: two losses, one backward."""
    out = model(*batch.values())
    (out.sum() + out.square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
