"""Losses of a language model's head in plain torch: what their kernels make in place is done by an operator in place."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel

CONFIG = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 600,
          "num_hidden_layers": 2}  # fmt: skip


class Fused(torch.autograd.Function):
    """Liger's: loss and gradients of both operands in forward, chunk by chunk."""

    @staticmethod
    def forward(ctx, states, weight, target):
        """(rows, width), (vocabulary, width), (rows,)"""
        rows, (vocabulary, width) = states.shape[0], weight.shape
        factor = -(-vocabulary // width)
        chunk = 1 << (-(-rows // factor) - 1).bit_length()
        of_states, of_weight = torch.zeros_like(states), torch.zeros_like(weight)
        each = torch.zeros(rows, dtype=torch.float32, device=states.device)
        mask = target != -100
        mask.sum()
        for start in range(0, rows, chunk):
            part = states[start : start + chunk]
            logits = part @ weight.t()
            logits.mul_(0.5)
            gradient = logits
            of_states[start : start + chunk] = gradient @ weight
            turned = gradient.t()
            if of_weight.dtype == torch.float32 and turned.dtype != torch.float32:
                given = part
                if given.dtype != turned.dtype:
                    given = given.to(turned.dtype)
                of_weight.add_(1.0)
            else:
                of_weight += torch.mm(gradient.t(), part).float()
        loss = each.sum()
        ctx.save_for_backward(of_states.detach(), of_weight.detach())
        return loss

    @staticmethod
    def backward(ctx, grad):
        """Both were there."""
        of_states, of_weight = ctx.saved_tensors
        return of_states, of_weight, None


class Language(nn.Module):
    """A small llama under a head whose loss is another."""

    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(**CONFIG, use_cache=False)
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids, labels):
        """The loss."""
        outputs = self.model(input_ids=input_ids)
        return {"loss": self.loss(outputs.last_hidden_state, labels)}


class Liger(Language):
    """liger-kernel's fused linear cross-entropy."""

    def loss(self, hidden, labels):
        """Labels shifted, and the function."""
        labels = functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
        return Fused.apply(hidden.view(-1, hidden.shape[-1]), self.lm_head.weight, labels.view(-1))


class Chunked(Language):
    """torchtune's: the places of labels that count, which a trace does not know, are stood for by as many numbers."""

    def loss(self, hidden, labels):
        """Eight chunks, each with its own logits."""
        rows, tokens = labels.shape
        ignored = self.ignored(labels)
        targets = torch.hstack((labels[..., 1:], ignored)).reshape(-1)
        _ = self.places(targets, rows)[0].shape
        states, targets = self.masked(hidden.reshape(-1, hidden.shape[-1]), targets, rows)
        parts, wanted = states.tensor_split(8), targets.tensor_split(8)
        total = torch.tensor(0.0, device=targets.device)
        for part, target in zip(parts, wanted, strict=True):
            loss = self.one(part, target)
            total += loss
        return total / (rows * (tokens - 1))

    def ignored(self, labels):
        """A view of what is there already."""
        return labels[:, :1]

    def places(self, targets, rows):
        """As many whole numbers as labels count."""
        mask = targets != -100
        found = torch.empty(mask.shape[0] - rows, 1, dtype=torch.int64, device=mask.device)
        return found.unbind(1)

    def masked(self, states, targets, rows):
        """The states and targets of those."""
        places = self.places(targets, rows)[0]
        return states.index_select(0, places), targets.index_select(0, places)

    def one(self, part, target):
        """A chunk's."""
        logits = self.lm_head(part)
        return functional.cross_entropy(logits.float(), target, reduction="sum")
