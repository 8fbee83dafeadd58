"""From a name to an optimizer: short textbook names, full names, and the one library file that holds the entry.

A full name is ``<PyPI name>:<Class>[+variant]`` and lives in ``memcalc/optimizers/<PyPI name with - as _>.py``, so that
asking for one optimizer imports one file. Only an unknown name makes all of them load, to suggest what was meant.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

from memcalc.errors import InputError, did_you_mean, either
from memcalc.optimizers.base import OPTIMIZERS, Optimizer

SHORT_NAMES: dict[str, str] = {
    # torch.optim is what a textbook's plain name runs as
    "sgd": "torch:SGD",  # no momentum unless asked, as its constructor
    "sgd-momentum": "torch:SGD+momentum",  # the 4 B per parameter row of the textbook table
    "adam": "torch:Adam",  # 4 B momentum + 4 B variance on an fp32 master
    "adamw": "torch:AdamW",  # decoupled decay changes no byte
    "amsgrad": "torch:Adam+amsgrad",  # Adam and the running maximum of the variance
    "adagrad": "torch:Adagrad",  # one fp32 accumulator, born in the constructor
    "adadelta": "torch:Adadelta",  # two accumulators
    "adamax": "torch:Adamax",  # two buffers, an infinity norm for the variance
    "rmsprop": "torch:RMSprop",  # one accumulator; momentum and centered add one each
    "nadam": "torch:NAdam",  # Adam and one more host scalar
    "radam": "torch:RAdam",  # Adam's states
    "rprop": "torch:Rprop",  # previous gradient and a step size for each weight
    "asgd": "torch:ASGD",  # the average of the weights
    "lbfgs": "torch:LBFGS",  # up to 2 x history_size copies of the parameters
    "sparse-adam": "torch:SparseAdam",  # dense moments for sparse gradients
    "muon": "muon-optimizer:SingleDeviceMuonWithAuxAdam",  # whole models; torch:Muon takes their hidden matrices alone
    "fused-adam": "apex:FusedAdam",  # the class of that name which Megatron and the NVIDIA recipes use
    "fused-lamb": "apex:FusedLAMB",  # the BERT recipes' LAMB
    "npu-adamw": "torch-npu:NpuFusedAdamW",  # Ascend's fused AdamW over flattened parameters
    # low precision
    "adam8bit": "bitsandbytes:Adam8bit",  # block-wise 8-bit states, the paper's own library
    "adamw8bit": "bitsandbytes:AdamW8bit",  # the same with decoupled decay
    "paged-adamw8bit": "bitsandbytes:PagedAdamW8bit",  # states in managed memory, QLoRA's optimizer
    "paged-adamw": "bitsandbytes:PagedAdamW",  # fp32 states in managed memory
    "lion8bit": "bitsandbytes:Lion8bit",  # one 8-bit momentum
    "ademamix8bit": "bitsandbytes:AdEMAMix8bit",  # two momenta and a variance in 8 bit
    "adamw4bit": "torchao:AdamW4bit",  # 4-bit states in blocks of 128
    "adamw-fp8": "torchao:AdamWFp8",  # float8 states, a scale for each block of 256
    "came8bit": "nvlabs-sana:CAME8BitWrapper",  # the only CAME found that keeps an INT8 momentum
    # layer-wise rates
    "lamb": "timm:Lamb",  # Adam's states without a scalar per tensor; apex's needs a GPU build
    "lars": "timm:Lars+momentum",  # SGD's momentum; timm's own default has none
    # second order and preconditioned
    "sophia": "sophia-opt:SophiaG",  # the authors' code, packaged: momentum and Hessian diagonal
    "shampoo": "pytorch-optimizer:Shampoo",  # whole-axis factors and their inverses, no blocks
    "distributed-shampoo": "torch-shampoo:DistributedShampoo",  # Meta's: blocks of 1024, packed triangles
    "soap": "nikhilvyas-soap:SOAP",  # the authors' code
    # factored
    "adafactor": "transformers:Adafactor",  # what a Trainer's optim="adafactor" builds
    "came": "came-pytorch:CAME",  # the authors' package: fp32 momentum, factored variance and residual
    # one momentum
    "lion": "lion-pytorch:Lion",  # the package most recipes install
    "tiger": "pytorch-optimizer:Tiger",  # one buffer, sign update
    # projected and shared
    "galore-adamw": "galore-torch:GaLoreAdamW",  # the authors' package, the storage its SVD view keeps included
    "galore-adamw8bit": "galore-torch:GaLoreAdamW8bit",  # low-rank states in 8 bit
    "galore-adafactor": "galore-torch:GaLoreAdafactor",  # low-rank factored states
    "apollo": "apollo-torch:APOLLOAdamW",  # random projection, kept
    "apollo-mini": "apollo-torch:APOLLOAdamW+mini",  # rank 1
    "adam-mini": "adam-mini:Adam_mini",  # one variance for each head or neuron
    # no schedule, no rate
    "schedule-free-adamw": "schedulefree:AdamWScheduleFree",  # the authors' package: z and a variance
    "schedule-free-sgd": "schedulefree:SGDScheduleFree",  # z alone
    "prodigy": "prodigyopt:Prodigy",  # the authors' package: four buffers
    # more momenta
    "adan": "pytorch-optimizer:Adan",  # three moments and the previous gradient
    "ademamix": "pytorch-optimizer:AdEMAMix",  # two momenta and a variance
    "mars": "pytorch-optimizer:MARS",  # Adam and the previous gradient
    # updates inside the backward pass
    "lomo": "lomo-optim:Lomo",  # no state, and each gradient freed as it is used
    "adalomo": "lomo-optim:AdaLomo",  # factored variance
}
"""Textbook names and what each one stands for by default, with the reason beside it."""

_NOT_LIBRARIES = frozenset({"base", "names", "player", "script", "step", "textbook"})


@cache
def library_modules() -> tuple[str, ...]:
    """The files of this folder that hold a library's entries, by name."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name for name in found if name not in _NOT_LIBRARIES and not name.startswith("_")))


def library_module(name: str) -> str:
    """The module path that would hold a full name, whether or not it exists.

    >>> library_module("came-pytorch:CAME")
    'memcalc.optimizers.came_pytorch'
    """
    library = name.partition(":")[0]
    return f"memcalc.optimizers.{library.replace('-', '_').lower()}"


def find_optimizer(name: str, path: str = "training.optimizer") -> Optimizer:
    """The optimizer of a short or a full name; only its library's file is imported.

    Raises:
        InputError: no entry has that name; the way out names its nearest neighbours, short and full.
    """
    full = SHORT_NAMES.get(name.lower(), name)
    module = library_module(full)
    if module.rpartition(".")[2] in library_modules():
        import_module(module)
    if full in OPTIMIZERS:
        return OPTIMIZERS.get(full)
    raise InputError(path, name, "is not a known optimizer", _way_out(name))


def all_optimizers() -> dict[str, Optimizer]:
    """Every entry of every library, by full name in alphabetical order; imports all the files."""
    for module in library_modules():
        import_module(f"memcalc.optimizers.{module}")
    return dict(sorted((name, entry) for name, entry in OPTIMIZERS.items() if library_of(name) in library_modules()))


def library_of(name: str) -> str:
    """The file name that holds a full name.

    >>> library_of("adam-mini:Adam_mini")
    'adam_mini'
    """
    return library_module(name).rpartition(".")[2]


def _way_out(name: str) -> str:
    """Whoever wrote the class alone is told which libraries have it; else the nearest of all names."""
    known = all_optimizers()
    word = name.rpartition(":")[2].lower()
    same_class = [full for full in known if full.rpartition(":")[2].lower() == word]
    if same_class:
        return f"did you mean {either(same_class[:4])}?"
    return did_you_mean(name, [*SHORT_NAMES, *known])
