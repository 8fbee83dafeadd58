"""What a step makes of a model's parameters: which of them no gradient comes to, and of which autocast keeps no copy."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.families._idle import RUN
from memcalc.families.base import load_family
from memcalc.freezing import Name
from memcalc.implementations import USUAL
from memcalc.models import Model
from memcalc.records import replace


def reached(model: Model, *, sees: bool) -> Model:
    """The model with the parameters marked that a step does not reach, and those that are cast anew at each use.

    Args:
        model: as it is trained; itself where its family says nothing of the kind, or other code than transformers' runs it.
        sees: whether it reads images.

    >>> from memcalc.readers.config import model_from_config
    >>> body = model_from_config({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 1})
    >>> [tensor.name for tensor in reached(body, sees=False).tensors if tensor.idle]
    ['pooler.dense.weight', 'pooler.dense.bias']
    """
    if model.config is None or model.architecture is None or model.implementation != USUAL:
        return model
    family = load_family(model.family)
    idle = () if family.idle is None else family.idle(model.config, model.architecture, sees)
    recast = () if family.recast is None else family.recast(model.config)
    recast = (*recast, *(module for module in idle if module not in RUN))  # and of what does not run it makes none
    if not recast and not idle:
        return model
    tensors = tuple(
        replace(tensor, idle=_inside(tensor.name, idle), recast=_inside(tensor.name, recast)) for tensor in model.tensors
    )
    found = replace(model, tensors=tensors)
    there = [module for module in idle if any(t.trainable and _inside(t.name, (module,)) for t in found.parameters)]
    return replace(found, assumptions=(*model.assumptions, told(there))) if there else found


def told(modules: Iterable[str]) -> str:
    """What is assumed of modules that a step does not reach.

    >>> told(["pooler"])
    'no gradient comes to pooler, of which the loss is not made: few optimizers keep a state there'
    """
    return f"no gradient comes to {' and '.join(modules)}, of which the loss is not made: few optimizers keep a state there"


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(Name(module).holds(name) for module in modules)
