"""A module to train, from whatever a job names: by transformers or torchvision from a config, or by a person's own factory.

Weights are random. The module is made on the CPU in FP32, in training mode; precision and device are settled by its caller.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from memcalc.errors import InputError, MemcalcError, MissingPackageError, NotModelledError
from memcalc.families.base import load_family
from memcalc.freezing import names_of
from memcalc.job import Job, Training
from memcalc.models import Model
from memcalc.precision import Scheme
from memcalc.readers.config import chosen_architecture
from memcalc.readers.source import find_config
from memcalc.runtime.family_inputs import (
    IMAGE,
    SEQUENCE,
    Sizes,
    batch_inputs,
    extra_arguments,
    family_inputs,
    settle_config,
    sizes_of,
)
from memcalc.runtime.inputs import Input, inferred, parse_inputs
from memcalc.runtime.models import SHORT
from memcalc.runtime.module import kind_of_owner
from memcalc.runtime.target import load_target

OWN_KEYS = frozenset(
    {"name", "hub", "source", "note", "base", "num_parameters", "model_type", "architectures", "dtype", "torch_dtype"}
)
"""Keys of a shipped config that are about it, not of it; and the dtype, which the precision decides."""
SPELLED = {"T5WithLMHeadModel": "T5ForConditionalGeneration", "MPTForCausalLM": "MptForCausalLM"}
"""Architectures by names that transformers has given up."""


class Built(NamedTuple):
    """A module and how to feed it.

    Attributes:
        module: on the CPU, in training mode.
        name: what it was asked by.
        family: the ``model_type``, or ``module``.
        architecture: the class.
        inputs: one batch's tensors.
        extra: further arguments of forward.
        sizes: of the batch, with the defaults filled in; by the keys of a job.
        built_by: what made it.
        assumptions: what had to be assumed.
    """

    module: Any
    name: str
    family: str
    architecture: str
    inputs: list[Input]
    extra: dict[str, Any]
    sizes: dict[str, int]
    built_by: str
    assumptions: tuple[str, ...] = ()


def build(
    job: Job,
    *,
    inputs: Sequence[str] = (),
    app_dir: Path | None = None,
    base_dir: Path | None = None,
    seed: int = 0,
    usual: int = SEQUENCE,
) -> Built:
    """The module a job names.

    Args:
        job: its model, its sizes and its attention.
        inputs: in place of the family's own, as ``--input`` takes them.
        app_dir: the folder put on the import path for ``py:``.
        base_dir: the folder relative paths start from.
        seed: of the weights.
        usual: tokens of a sample where the job does not say.

    Raises:
        InputError: nothing of that name, or sizes it cannot be fed.
        MissingPackageError: the package that has its class is not installed.
        NotModelledError: a bare size or a checkpoint, which no code comes with.
    """
    if job.training.cross_entropy != "plain":
        raise NotModelledError(
            "training.cross_entropy", job.training.cross_entropy, "is not what the model itself computes",
            "give a module that does, as py:package.module:factory, or use engine analytic",
        )  # fmt: skip
    if job.training.attention == "flash_attention_2":
        rule = "runs the kernels of the package flash-attn, which are neither traced nor measured here"
        raise NotModelledError("training.attention", job.training.attention, rule, "use engine analytic, or attention flash")
    torch.manual_seed(seed)
    given = parse_inputs(inputs)
    source = SHORT.get(job.model, job.model) if isinstance(job.model, str) else job.model
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for answers
        if isinstance(source, str) and source.strip().startswith("py:"):
            built = _from_code(source, job.training, given, app_dir, usual)
        else:
            found = find_config(source, app_dir=app_dir, base_dir=base_dir)
            if isinstance(found, Model):
                way_out = "name a config, or py:package.module:factory"
                raise NotModelledError("model", found.name, "has no code that could be run", way_out)
            built = _from_config(found.config, found.name, job.training, given, usual)
    built.module.train()
    if job.training.freeze:
        _freeze(built.module, job.training.freeze)
    return built


def _freeze(module: Any, texts: Sequence[str]) -> None:
    """No parameter inside these modules asks for a gradient.

    Raises:
        InputError: a name that no parameter is inside.
    """
    for name in names_of(texts):
        found = [param for one, param in module.named_parameters(remove_duplicate=False) if name.holds(one)]
        if not found:
            raise InputError(
                "training.freeze", name.text, f"is no module of {type(module).__name__}", "name one with parameters"
            )
        for param in found:
            param.requires_grad_(False)


def _from_code(source: str, training: Training, given: list[Input], app_dir: Path | None, usual: int) -> Built:
    loaded = load_target(source, app_dir, device="cpu")
    batch, sequence = training.micro_batch_size or 1, training.sequence_length or usual
    read = given or inferred(loaded.module, batch, sequence, training.image_size or IMAGE)
    sizes = {"micro_batch_size": read[0].shape[0] if read[0].shape else batch}
    architecture = type(loaded.module).__name__
    return Built(loaded.module, loaded.name, "module", architecture, read, {}, sizes, source, loaded.assumptions)


def _from_config(config: Mapping[str, Any], name: str, training: Training, given: list[Input], usual: int) -> Built:
    family = load_family(str(config.get("model_type")), "model.model_type")
    architecture, assumed = chosen_architecture(family, config, "model")
    keys = {key: value for key, value in config.items() if key not in OWN_KEYS}
    if family.model_type.startswith("torchvision"):
        built = _by_torchvision(family.model_type, keys, architecture, training)
    else:
        built = _by_transformers(family.model_type, keys, SPELLED.get(architecture, architecture), training, usual)
    sizes = {key: value for key, value in built.sizes.items() if key == "micro_batch_size" or key in family.inputs}
    return built._replace(name=name, sizes=sizes, inputs=given or built.inputs, assumptions=assumed)


def _by_transformers(model_type: str, keys: Mapping[str, Any], architecture: str, training: Training, usual: int) -> Built:
    transformers = _package("transformers")
    try:
        config = transformers.CONFIG_MAPPING[model_type](**keys)
        sizes = sizes_of(training, config, usual)
        settle_config(architecture, config, sizes)
        kernel = None if training.attention == "auto" else "eager" if training.attention == "eager" else "sdpa"
        module = getattr(transformers, architecture)._from_config(config, attn_implementation=kernel)
    except MemcalcError:
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError("model", architecture, f"is refused by transformers ({said})", "mend the config") from None
    filled = _named(sizes)
    return Built(
        module, "", model_type, architecture,
        [*family_inputs(architecture, config, sizes), *batch_inputs(training.batch, sizes)],
        extra_arguments(architecture), filled,
        f"transformers {transformers.__version__} {architecture}",
    )  # fmt: skip


def _named(sizes: Sizes) -> dict[str, int]:
    return {
        "micro_batch_size": sizes.batch, "sequence_length": sizes.sequence, "source_length": sizes.source,
        "image_size": max(sizes.image),
    }  # fmt: skip


def _by_torchvision(model_type: str, keys: Mapping[str, Any], architecture: str, training: Training) -> Built:
    torchvision = _package("torchvision")
    image = training.image_size or int(keys.get("image_size", IMAGE))
    batch = training.micro_batch_size or 1
    family = load_family(model_type)
    known: Any = family.config.model_validate({family.config.aliases.get(key, key): value for key, value in keys.items()})
    models = torchvision.models
    if model_type == "torchvision_resnet":
        from memcalc.families.torchvision_resnet import STAGES, block_type

        block = models.resnet.BasicBlock if block_type(known) == "basic" else models.resnet.Bottleneck
        dilation = None if known.replace_stride_with_dilation is None else list(known.replace_stride_with_dilation)
        depths = list(known.depths or STAGES[known.depth][1])
        module = models.ResNet(
            block, depths, num_classes=known.num_labels, groups=known.groups, width_per_group=known.width_per_group,
            replace_stride_with_dilation=dilation,
        )  # fmt: skip
    else:
        module = models.VisionTransformer(
            image_size=known.image_size, patch_size=known.patch_size, num_layers=known.num_hidden_layers,
            num_heads=known.num_attention_heads, hidden_dim=known.hidden_size, mlp_dim=known.intermediate_size,
            dropout=known.dropout, attention_dropout=known.attention_dropout, num_classes=known.num_labels,
            representation_size=known.representation_size,
        )  # fmt: skip
    read = [Input("args0", "float", (batch, 3, image, image))]
    sizes = {"micro_batch_size": batch, "image_size": image}
    return Built(module, "", model_type, architecture, read, {}, sizes, f"torchvision {torchvision.__version__} {architecture}")


def with_lora(module: Any, options: Mapping[str, Any]) -> Any:
    """The module with peft's adapters, everything else frozen.

    Raises:
        MissingPackageError: peft is not installed.
        InputError: options that peft refuses.
    """
    peft = _package("peft")
    try:
        return peft.get_peft_model(module, peft.LoraConfig(**options))
    except (TypeError, ValueError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError("lora", dict(options), f"is refused by peft ({said})", "mend its options") from None


def cast_parameters(module: Any, scheme: Scheme) -> None:
    """Every floating-point parameter in the dtype the scheme holds it in between steps; buffers stay as they are."""
    wanted = None if scheme.parameter is None else getattr(torch, scheme.parameter)
    for owner in module.modules():
        for leaf, param in owner._parameters.items():
            if param is None or param.dtype not in CAST:
                continue
            kept = scheme.keeps and kind_of_owner(owner, leaf, param.dim()) in scheme.keeps
            dtype = torch.float32 if kept else wanted
            if dtype is not None and param.dtype != dtype:
                param.data = param.data.to(dtype)


CAST = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""What a precision scheme casts: quantised and integer weights stay as they are."""


def _package(name: str) -> Any:
    """An optional package.

    Raises:
        MissingPackageError: it is not installed, or not for this torch.
    """
    try:
        return import_module(name)
    except Exception as error:
        # a package built for another torch raises what it likes when it is loaded: RuntimeError, OSError, AttributeError
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise MissingPackageError.extra("model", name, "measure") from None
        said = next(iter(str(error).splitlines()), type(error).__name__)
        way_out = f"install the {name} that goes with torch {torch.__version__}"
        raise MissingPackageError("model", name, f"cannot be loaded here ({said})", way_out) from None
