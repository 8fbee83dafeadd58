"""The real optimizer of an entry, from its own package, over real parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch

from memcalc.errors import InputError, MemcalcError, MissingPackageError, NotModelledError
from memcalc.optimizers._parts import hidden_matrix
from memcalc.optimizers.base import Optimizer, Options, Param
from memcalc.tensors import Kind

LEARNING_RATE = 1e-4
"""Where neither the job nor the constructor names one; no byte depends on it."""
PATH = "training.optimizer"


class Trained(NamedTuple):
    """One parameter an optimizer is handed: its name in the model, the tensor to update, and the operator that reads it."""

    name: str
    tensor: torch.Tensor
    kind: Kind = "linear"

    def described(self, grad_dtype: str | None = None) -> Param:
        """The same as the registry is told of it."""
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        local = getattr(self.tensor, "to_local", lambda: self.tensor)()
        return Param(tuple(local.shape), dtype, grad_dtype or dtype, self.name, self.kind)


def optimizer_class(entry: Optimizer) -> Any:
    """The class an entry describes.

    Raises:
        MissingPackageError: its package is not installed, or cannot be loaded here.
        NotModelledError: its step cannot be taken by a plain training loop.
    """
    if entry.cls in UNRUNNABLE:
        raise NotModelledError(PATH, entry.name, UNRUNNABLE[entry.cls], "use another")
    module, _, name = entry.cls.rpartition(".")
    package = entry.name.partition(":")[0]
    try:
        return getattr(import_module(module), name)
    except Exception as error:
        # a package built for another device raises what it likes when it is loaded: RuntimeError, OSError, AssertionError
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == module.partition(".")[0]:
            rule = "needs a package that is not installed"
            raise MissingPackageError(PATH, entry.name, rule, f"pip install {package}") from None
        said = next(iter(str(error).splitlines()), type(error).__name__)
        way_out = f"install {package} for this device"
        raise MissingPackageError(PATH, entry.name, f"cannot be loaded here ({said})", way_out) from None


NEEDS_RATE = frozenset({"came_pytorch.CAME"})
"""Classes whose constructor takes no rate for none, and then refuses it."""
UNRUNNABLE = {
    "torch.optim.SparseAdam": "takes sparse gradients, which no model here makes",
    "torch.optim.LBFGS": "evaluates the model again inside its step, which this loop does not do",
}
"""Classes whose step is no plain call, and why."""


def real_optimizer(
    entry: Optimizer, arguments: Mapping[str, Any], options: Options, trained: Sequence[Trained], module: Any = None
) -> Any:
    """The optimizer itself.

    Args:
        entry: the registry's entry.
        arguments: what the job asks for; defaults are left to the constructor.
        options: the same with defaults filled in, among them options that are no constructor's.
        trained: what it updates.
        module: the model, for the classes that take it whole.

    Raises:
        MissingPackageError: its package is not installed.
        InputError: its constructor refuses what it is given.
    """
    cls = optimizer_class(entry)
    told = {key: value for key, value in {**entry.preset, **arguments}.items() if key not in entry.own}
    accepted = inspect.signature(cls.__init__).parameters
    # a constructor's own None may mean a rate of its own making, as Adafactor's does
    if "lr" in accepted and (accepted["lr"].default is inspect.Parameter.empty or entry.cls in NEEDS_RATE):
        told.setdefault("lr", LEARNING_RATE)
    if "betas" in told:
        told["betas"] = tuple(told["betas"])
    _settle_own(entry, options, told, module)
    try:
        made = cls(_handed(entry, options, trained, module), **told)
    except MemcalcError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(PATH, entry.name, f"refuses its arguments ({said})", "mend training.optimizer_args") from None
    if callable(getattr(made, "train", None)):
        made.train()  # schedule-free optimizers refuse to step otherwise
    return made


def _handed(entry: Optimizer, options: Options, trained: Sequence[Trained], module: Any) -> Any:
    """What the constructor's first argument is: parameters, groups of them, names and parameters, or the model."""
    tensors = [each.tensor for each in trained]
    if entry.cls == "adam_mini.Adam_mini":
        return [(each.name, each.tensor) for each in trained]
    if entry.cls in ("lomo_optim.Lomo", "lomo_optim.AdaLomo"):
        return module
    split = SPLITS.get(entry.cls.partition(".")[0])
    if split is None or not (entry.own or entry.cls.endswith("WithAuxAdam")):
        return tensors
    chosen, settings = split(entry, options, trained)
    rest = [each.tensor for each in trained if not any(each.tensor is one for one in chosen)]
    groups = [{"params": group, **extra} for group, extra in ((chosen, settings[0]), (rest, settings[1])) if group]
    return groups or tensors


Split = Callable[[Optimizer, Options, Sequence[Trained]], tuple[list[torch.Tensor], tuple[dict[str, Any], dict[str, Any]]]]


def _projected(entry: Optimizer, options: Options, trained: Sequence[Trained]) -> Any:
    """Weights of linear layers in the target modules go into a group with a rank (galore's torchrun_main.py)."""
    words = options.target_modules
    chosen = [
        each.tensor
        for each in trained
        if each.tensor.ndim == 2 and each.kind == "linear" and any(word in each.name for word in words)
    ]
    group = {"rank": 128, "update_proj_gap": 200, "scale": 1.0, "proj_type": "std", "proj": "random", "scale_type": "channel"}
    told = {key: value for key, value in options.items() if key in entry.own and key != "target_modules"}
    return chosen, ({**group, **told}, {})


def _muon(entry: Optimizer, options: Options, trained: Sequence[Trained]) -> Any:
    """Hidden matrices to Muon, the rest to Adam (muon-optimizer's README)."""
    chosen = [each.tensor for each in trained if hidden_matrix(each.described())]
    return chosen, ({"use_muon": True}, {"use_muon": False})


SPLITS: dict[str, Split] = {"galore_torch": _projected, "apollo_torch": _projected, "muon": _muon}
"""Packages whose parameters are handed over in two groups, by their module's name."""


def _settle_own(entry: Optimizer, options: Options, told: dict[str, Any], module: Any) -> None:
    """Options that are memcalc's own, turned into what the library is really told.

    Raises:
        NotModelledError: one that the real class cannot be told.
    """
    if options.get("tensor_betas"):
        told["betas"] = tuple(torch.tensor(beta) for beta in told.get("betas", (0.9, 0.999)))
    if options.get("embeddings_32bit"):
        _override_embeddings(module)
    settled = {"tensor_betas", "embeddings_32bit"} if entry.cls.partition(".")[0] not in SPLITS else entry.own
    for key in sorted(entry.own - settled):
        if options[key] != entry.options[key]:
            way_out = "leave it out, or estimate alone"
            raise NotModelledError(f"{PATH}_args.{key}", options[key], f"cannot be told to the real {entry.name}", way_out)


def _override_embeddings(module: Any) -> None:
    """Embeddings keep 32-bit states, as the Trainer of transformers arranges it (5.23.0 trainer.py:1338)."""
    optim: Any = import_module("bitsandbytes.optim")
    manager = optim.GlobalOptimManager.get_instance()
    for part in module.modules():
        if isinstance(part, torch.nn.Embedding):
            manager.register_module_override(part, "weight", {"optim_bits": 32})
