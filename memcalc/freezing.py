"""Parts of a model that are not trained, named by their modules: ``embed_tokens``, ``layers.0-15``, ``vision_tower``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from memcalc.arrays import is_array
from memcalc.errors import InputError, NotModelledError, did_you_mean
from memcalc.models import Model
from memcalc.records import replace
from memcalc.tensors import Span, Tensor

PATH = "training.freeze"
_PART = r"(?P<first>\d+)(?:-(?P<last>\d+))?\Z|[A-Za-z_]\w*\Z"


class Name:
    """A module's name, or the last parts of one: words, and places in a list, one or from one to another.

    >>> Name("layers.0-15").holds("model.layers.7.mlp.weight"), Name("lp").holds("model.layers.7.mlp.weight")
    (True, False)
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.parts: list[str | range] = []
        for part in text.split("."):
            found = re.match(_PART, part)
            if found is None:
                raise InputError(PATH, text, "is no module's name", "write it as embed_tokens, layers.0-15 or layers.3.mlp")
            first, last = found["first"], found["last"]
            self.parts.append(part if first is None else range(int(first), int(last or first) + 1))
        if any(isinstance(part, range) and not part for part in self.parts):
            raise InputError(PATH, text, "is a range that ends before it begins", "write the lower place first")

    @property
    def numbered(self) -> bool:
        """Whether it means some members of a list and not others."""
        return any(isinstance(part, range) for part in self.parts)

    def holds(self, name: str) -> bool:
        """Whether a tensor of that name is inside the module."""
        return bool(list(self.places(name)))

    def places(self, name: str) -> Iterable[dict[int, range]]:
        """For each place where the name stands in a tensor's: axis (which of its ``*``) -> the members that are meant."""
        parts = name.split(".")
        for start in range(len(parts) - len(self.parts) + 1):
            axes: dict[int, range] = {}
            if all(self._fits(parts, start + place, asked, axes) for place, asked in enumerate(self.parts)):
                yield axes

    def _fits(self, parts: Sequence[str], place: int, asked: str | range, axes: dict[int, range]) -> bool:
        part = parts[place]
        if isinstance(asked, str):
            return part == asked
        if part == "*":
            axes[parts[:place].count("*")] = asked
            return True
        return part.isdigit() and int(part) in asked


def names_of(texts: Sequence[str]) -> tuple[Name, ...]:
    """The names a job gives.

    Raises:
        InputError: one that cannot be a module's.
    """
    return tuple(Name(text) for text in texts)


def is_frozen(name: str, names: Iterable[Name], tied: Mapping[str, str]) -> bool:
    """Whether a tensor is inside one of the modules, by its own name or by one that shares it (``tied``)."""
    own = [name, *(other for other, first in tied.items() if first == name)]
    return any(each.holds(one) for each in names for one in own)


def with_frozen(model: Model, texts: Sequence[str]) -> Model:
    """The model with these modules' parameters frozen; a stack of which some are is two.

    Raises:
        InputError: a name that no parameter is inside.
        NotModelledError: members of several lists at once, or a model of which only a size is known.

    >>> stack = Tensor("layers.*.weight", (4,), count=3, spans=(Span(3),))
    >>> [(t.count, t.trainable) for t in with_frozen(Model("m", "llama", (stack,)), ["layers.0-1"]).tensors]
    [(2, False), (1, True)]
    """
    names = names_of(texts)
    if not model.shapes_known:
        raise InputError(PATH, texts[0], "names a module, and a bare size has none", "name a model, or leave it out")
    for name in names:
        every = [tensor.name for tensor in model.parameters] + list(model.tied)
        if not any(name.holds(one) for one in every):
            modules = sorted({part for one in every for part in one.split(".") if part != "*"})
            raise InputError(PATH, name.text, f"is no module of {model.name}", did_you_mean(name.text.split(".")[0], modules))
        _check_places(model, name)
    tensors = [piece for tensor in model.tensors for piece in _parted(tensor, names, model)]
    return replace(model, tensors=tuple(tensors))


def _check_places(model: Model, name: Name) -> None:
    """That the lists a name gives places in are that long; those of many jobs at once are not looked at.

    Raises:
        InputError: a place that is in none of them.
    """
    if not name.numbered or any(is_array(span.count) for tensor in model.parameters for span in tensor.spans):
        return
    there: dict[str, set[int]] = {}
    asked: dict[str, range] = {}
    for tensor in model.parameters:
        for axes in name.places(tensor.name):
            for axis, places in axes.items():
                listed = tensor.name.split("*")[axis].rpartition(".")[0].rpartition(".")[2]
                there.setdefault(listed, set()).update(tensor.spans[axis].labels())
                asked[listed] = places
    for listed, places in asked.items():
        if places[-1] not in there[listed]:
            last = max(there[listed])
            rule = f"asks for a place that is not there: {listed} has {len(there[listed])}"
            raise InputError(PATH, name.text, rule, f"use {listed}.0-{last}" if last else f"use {listed}.0")


def _parted(tensor: Tensor, names: Sequence[Name], model: Model) -> list[Tensor]:
    """A tensor's frozen members, and those that are trained."""
    if tensor.role != "parameter" or not tensor.trainable:
        return [tensor]
    own = [tensor.name, *(other for other, first in model.tied.items() if first == tensor.name)]
    found = [axes for name in names for one in own for axes in name.places(one)]
    if not found:
        return [tensor]
    if any(not axes for axes in found):
        return [replace(tensor, trainable=False)]
    axis = next(iter(found[0]))
    if any(set(axes) != {axis} for axes in found):
        raise NotModelledError(PATH, tensor.name, "is frozen by places in several lists at once", "name whole layers")
    if is_array(tensor.spans[axis].count):
        raise NotModelledError(PATH, tensor.name, "is frozen in part, and is of different depth from job to job", "ask one job")
    labels = tensor.spans[axis].labels()
    meant = [label for label in labels if any(label in axes[axis] for axes in found)]
    if not meant:
        return [tensor]
    kept = [label for label in labels if label not in set(meant)]
    parts = ((meant, False), (kept, True))
    return [_members(tensor, axis, some, trainable=trainable) for some, trainable in parts if some]


def _members(tensor: Tensor, axis: int, labels: Sequence[int], *, trainable: bool) -> Tensor:
    """Some members of one of its lists."""
    spans = list(tensor.spans)
    count = tensor.count // int(spans[axis].count) * len(labels)
    spans[axis] = Span(len(labels), tuple(labels))
    return replace(tensor, count=count, spans=tuple(spans), trainable=trainable)
