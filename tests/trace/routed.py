"""Mixtures of experts routed in Python, in the ways people write them; each takes ``x[tokens, 16]``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Mixture(nn.Module):
    """Four experts, of which each token chooses two."""

    def __init__(self, width=16, experts=4, chosen=2):
        super().__init__()
        self.chosen, self.count = chosen, experts
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 3 * width), nn.ReLU(), nn.Linear(3 * width, width)) for _ in range(experts)
        )

    def choose(self, x):
        """Weights and experts, ``[tokens, chosen]`` both."""
        return self.gate(x).softmax(-1).topk(self.chosen)


class ByWhere(Mixture):
    """``torch.where`` for each expert, and ``index_add_``."""

    def forward(self, x):
        weights, index = self.choose(x)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(index == number)
            if token.numel():
                out.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return out


class ByMask(Mixture):
    """A mask for each expert, read and written through."""

    def forward(self, x):
        weights, index = self.choose(x)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = (index == number).any(-1)
            if mask.any():
                out[mask] = out[mask] + expert(x[mask]) * torch.masked_select(weights, index == number).unsqueeze(-1)
        return out


class ByCounts(Mixture):
    """Sorted by expert, counted by ``bincount``, and split by the counts as Python's numbers."""

    def forward(self, x):
        weights, index = self.choose(x)
        order = index.flatten().argsort()
        counts = torch.bincount(index.flatten(), minlength=self.count).tolist()
        rows = x.repeat_interleave(self.chosen, 0)[order]
        parts = [expert(part) for expert, part in zip(self.experts, rows.split(counts), strict=True)]
        back = torch.empty_like(rows)
        back[order] = torch.cat(parts)
        return (back.view(*index.shape, -1) * weights[..., None]).sum(1)


class ByUnique(Mixture):
    """One expert a token, by the greatest score; the experts that were hit, each once."""

    def forward(self, x):
        weights, index = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number in index.unique():
            rows = (index == number).nonzero().squeeze(-1)
            out[rows] = self.experts[int(number)](x[rows]) * weights[rows, None]
        return out


class ByGates(Mixture):
    """A dense matrix of gates, whose zeros tell who is left out, and one choice more than is used."""

    def forward(self, x):
        scores = self.gate(x)
        top, index = scores.topk(self.chosen + 1, dim=1)
        gates = torch.zeros_like(scores).scatter(1, index[:, : self.chosen], top[:, : self.chosen].softmax(1))
        sizes = (gates > 0).sum(0).tolist()
        token = gates.t().nonzero()[:, 1]
        parts = [expert(part) for expert, part in zip(self.experts, x[token].split(sizes), strict=True)]
        return torch.zeros_like(x).index_add(0, token, torch.cat(parts) * gates.t()[gates.t() > 0].unsqueeze(-1))


class ByNumpy(Mixture):
    """Counted on the GPU, and read as a numpy array."""

    def forward(self, x):
        weights, index = self.choose(x)
        flat = index.flatten()
        counts = torch.zeros(self.count, dtype=torch.long, device=x.device).scatter_add_(0, flat, torch.ones_like(flat))
        order, start, parts = flat.argsort(), 0, []
        rows = x[order // self.chosen] * weights.flatten()[order, None]
        for expert, count in zip(self.experts, counts.cpu().numpy(), strict=True):
            parts.append(expert(rows[start : start + count]))
            start += count
        return torch.cat(parts)


class ByOneHot(Mixture):
    """``one_hot``, and a loop over the experts that were hit, as transformers' old loops have it."""

    def forward(self, x):
        weights, index = self.choose(x)
        mask = functional.one_hot(index, self.count).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for hit in (mask.sum((-1, -2)) > 0).nonzero():
            place, token = torch.where(mask[hit[0]])
            out.index_add_(0, token, self.experts[hit[0]](x[token]) * weights[token, place, None])
        return out


class ByName(Mixture):
    """Experts by name, which is made of the number as a tensor shows it."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleDict({f"expert_{number}": expert for number, expert in enumerate(self.experts)})

    def forward(self, x):
        weights, index = self.choose(x)
        out = torch.zeros_like(x)
        for number in index.unique():
            token, place = torch.where(index == number)
            out.index_add_(0, token, self.experts[f"expert_{number}"](x[token]) * weights[token, place, None])
        return out


class ByTwoGreatest(Mixture):
    """The greatest score, and the greatest of the rest."""

    def forward(self, x):
        scores = self.gate(x)
        first = functional.one_hot(scores.argmax(-1), self.count).bool()
        second = functional.one_hot(scores.detach().masked_fill(first, -torch.inf).argmax(-1), self.count).bool()
        out = torch.zeros_like(x)
        for hit, expert in zip((first | second).t(), self.experts, strict=True):
            out[hit] += expert(x[hit])
        return out


class ByValue(Mixture):
    """Leaves out tokens by what they hold, which no router's choice tells."""

    def forward(self, x):
        _, index = self.choose(x)
        kept = x[x.sum(-1) > 0]  # the line the error names
        return self.experts[0](kept), index


class ByLikeness(Mixture):
    """A greatest score among five things, which are no experts: the module has four."""

    def forward(self, x):
        other = (x[:, :5].argmax(-1) == 0).nonzero()  # the line the error names
        return self.experts[0](x[other[:, 0]])


class Stacked(nn.Module):
    """Experts as one weight of three dimensions, chosen by argmax."""

    def __init__(self):
        super().__init__()
        self.gate, self.weight = nn.Linear(16, 4), nn.Parameter(torch.ones(4, 16, 16))

    def forward(self, x):
        index = self.gate(x).argmax(-1)
        return torch.cat([x[index == number] @ weight for number, weight in enumerate(self.weight)])


class EveryWay(nn.Module):
    """All of them that can be routed, one after another."""

    def __init__(self):
        super().__init__()
        kinds = (ByWhere, ByMask, ByCounts, ByUnique, ByGates, ByNumpy, ByOneHot, ByName, ByTwoGreatest, Stacked)
        for kind in kinds:
            self.add_module(kind.__name__, kind())

    def forward(self, x):
        return torch.cat([way(x) for way in self.children()])
