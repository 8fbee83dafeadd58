"""LoRA's adapters on a model that is known from its config: what peft adds, what it freezes, what it renames.

source: peft 0.21.2 src/peft/tuners/lora/layer.py:LoraLayer.update_layer (lora_A is in_features to r, lora_B r to out_features,
neither with a bias), tuners/tuners_utils.py:check_target_module_exists, mapping of names by get_peft_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memcalc.errors import InputError, NotModelledError, did_you_mean
from memcalc.models import Model
from memcalc.play.adapting import ADAPTER, Peft, counted
from memcalc.records import replace
from memcalc.tensors import Tensor

PREFIX = "base_model.model."
"""What peft puts before every name (peft_model.py:PeftModel.base_model, tuners/tuners_utils.py:BaseTuner.model)."""
TRANSPOSED = frozenset({"gpt2"})
"""Families whose linear layers are Conv1D, with weights of in by out (transformers 5.23.0 pytorch_utils.py:Conv1D)."""
TARGETS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("t5", "mt5"), ("q", "v")),
    **dict.fromkeys(("bert", "roberta", "electra"), ("query", "value")),
    **dict.fromkeys(("bloom", "falcon", "gpt_neox"), ("query_key_value",)),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    **dict.fromkeys(
        ("bart", "gemma", "gemma2", "gemma3_text", "gpt_neo", "gptj", "llama", "mistral", "mixtral", "opt", "qwen2", "qwen3",
         "stablelm"),
        ("q_proj", "v_proj"),
    ),
    "mpt": ("Wqkv",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
}  # fmt: skip
"""What is adapted where nobody says (peft 0.21.2 utils/constants.py:TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)."""
SAME_BYTES = frozenset({"lora_alpha", "lora_dropout", "use_rslora", "use_dora", "fan_in_fan_out", "task_type"})
"""Options that change no tensor but a dropout's mask and DoRA's magnitudes, which are made here."""
PATH = "lora"
HEADS = frozenset({"lm_head", "embed_out", "score", "qa_outputs", "classifier"})
"""Modules that bitsandbytes leaves in their dtype: what comes last, and what is tied to the embedding."""


def with_adapters(model: Model, options: Mapping[str, Any]) -> Model:
    """The model as peft's ``get_peft_model`` leaves it: everything frozen but two small matrices beside each target.

    Args:
        model: known tensor by tensor.
        options: of ``LoraConfig``: ``r``, ``target_modules``, and those that change no byte.

    Raises:
        InputError: a rank that is none, or targets that are not there.
        NotModelledError: an option that changes tensors in ways not known here.

    >>> linear = Tensor("h.*.q_proj.weight", (6, 4), kind="linear", count=2)
    >>> for tensor in with_adapters(Model("m", "llama", (linear,)), {"r": 3}).tensors:
    ...     print(tensor.name, tensor.shape, tensor.trainable)
    base_model.model.h.*.q_proj.base_layer.weight (6, 4) False
    base_model.model.h.*.q_proj.lora_A.default.weight (3, 4) True
    base_model.model.h.*.q_proj.lora_B.default.weight (6, 3) True
    """
    check_values(options)
    rank, targets = _rank(options), _targets(model, options)
    _refuse_others(options)
    modules = {_module(tensor.name) for tensor in model.parameters if _is_target(tensor.name, targets)}
    if not modules:
        known = sorted({_module(tensor.name).rpartition(".")[2] for tensor in model.parameters if tensor.kind == "linear"})
        raise InputError(f"{PATH}.target_modules", ", ".join(targets), f"is no module of {model.name}",
                         did_you_mean(targets[0], known))  # fmt: skip
    dora = bool(options.get("use_dora"))
    names = {tensor.name: _renamed(tensor.name, modules) for tensor in model.tensors}
    tied = {_renamed(name, modules): names.get(first, _renamed(first, modules)) for name, first in model.tied.items()}
    return replace(model, tensors=tuple(_adapted(model, names, modules, rank, dora=dora)), tied=tied, root=None)


def adapted(model: Model, options: Mapping[str, Any], quantization: str | None = None) -> Model:
    """The same, ready to be played: its layers with the adapters on them, and its matrices in 4 bits where that is asked.

    Raises:
        InputError, NotModelledError: as :func:`with_adapters`, or a model whose layers are not known.
    """
    found = with_adapters(model, options)
    mark = f".lora_A.{ADAPTER}.weight"
    targets = frozenset(counted(one.name.removesuffix(mark)) for one in found.parameters if one.name.endswith(mark))
    packed: frozenset[str] = frozenset()
    if quantization is not None:
        if options.get("use_dora"):
            raise NotModelledError(f"{PATH}.use_dora", True, "on a quantised base is not modelled yet", "leave one out")
        found, packed = quantized(found, nested=quantization == "nf4-double")
    adapter = Peft(targets, _rank(options), float(options.get("lora_dropout") or 0.0), bool(options.get("use_dora")), packed,
                   quantization == "nf4-double")  # fmt: skip
    return replace(found, root=model.root, adapter=adapter, prefix=PREFIX.rstrip("."))


def quantized(model: Model, *, nested: bool) -> tuple[Model, frozenset[str]]:
    """(the model with its matrices in 4 bits, paths of their modules); what reads out the vocabulary stays as it is.

    source: transformers 5.23.0 quantizers/base.py:get_keys_to_not_convert (output embeddings), integrations/bitsandbytes.py:
    replace_with_bnb_linear
    """
    from memcalc.quantization import packed

    tensors: list[Tensor] = []
    paths: set[str] = set()
    for tensor in model.tensors:
        module = _module(tensor.name)
        head = module.removeprefix(PREFIX).removesuffix(".base_layer").rpartition(".")[2] in HEADS
        if tensor.kind != "linear" or tensor.trainable or len(tensor.shape) != 2 or head or tensor.role != "parameter":
            tensors.append(tensor)
            continue
        tensors += packed(tensor, nested=nested)
        paths.add(module.removesuffix(".base_layer"))
    return replace(model, tensors=tuple(tensors)), frozenset(counted(path) for path in paths)


def _adapted(model: Model, names: Mapping[str, str], modules: set[str], rank: int, *, dora: bool) -> Iterator[Tensor]:
    """The model's tensors frozen, and the adapters after the last tensor of the module they stand beside."""
    beside: list[Tensor] = []
    where: tuple[str, object] = ("", ())
    for tensor in model.tensors:
        module = _module(tensor.name)
        if (module, tensor.spans) != where:  # a stack's first layer may be listed apart, under the same name
            yield from beside
            where, beside = (module, tensor.spans), []
        if tensor.role == "parameter" and module in modules and tensor.name.endswith(".weight"):
            beside = list(_adapters(PREFIX + module, tensor, rank, model.family, dora=dora))
        frozen = replace(tensor, name=names[tensor.name])
        yield replace(frozen, trainable=False) if tensor.role == "parameter" else frozen
    yield from beside


def _adapters(module: str, weight: Tensor, rank: int, family: str, *, dora: bool) -> Iterator[Tensor]:
    """A of (rank, in), B of (out, rank), and DoRA's magnitude of (out)."""
    if weight.kind != "linear" or len(weight.shape) != 2:
        raise NotModelledError(f"{PATH}.target_modules", module, f"is read as {weight.kind}, whose adapters are not "
                               "modelled yet", "name linear layers")  # fmt: skip
    out, into = reversed(weight.shape) if family in TRANSPOSED else weight.shape
    for letter, shape in (("A", (rank, into)), ("B", (out, rank))):
        # B starts as zeros, so that the adapted model starts as the model (layer.py:LoraLayer.reset_lora_parameters)
        name = f"{module}.lora_{letter}.{ADAPTER}.weight"
        yield replace(weight, name=name, shape=shape, trainable=True, zeros=letter == "B")
    if dora:
        yield replace(weight, name=f"{module}.lora_magnitude_vector.{ADAPTER}.weight", shape=(out,), trainable=True)


def check_values(options: Mapping[str, Any]) -> None:
    """Refuse options of adapters, whosever they are, that are not of the kind which ``LoraConfig`` has.

    Raises:
        InputError: one; truth values are no numbers, and names of modules are a list, or the one word that stands for all.
    """
    for key, value in options.items():
        path, number = f"{PATH}.{key}", isinstance(value, int | float) and not isinstance(value, bool)
        if key == "r" and (not isinstance(value, int) or not number or value < 1):
            raise InputError(path, value, "is not a rank", "give 1 or more")
        if key == "lora_alpha" and not number and value is not None:
            raise InputError(path, value, "is not a number", "give one, as 16")
        if key == "lora_dropout" and value is not None and not (number and 0 <= value <= 1):
            raise InputError(path, value, "is not a share", "give a number from 0 to 1")
        if key in ("use_dora", "use_rslora", "fan_in_fan_out") and not isinstance(value, bool | None):
            raise InputError(path, value, "is not true or false", "leave it out for false")
        listed = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
        if key == "target_modules" and not isinstance(value, str | None) and not listed:
            raise InputError(path, value, "is not a list of modules' names", "write it as [q_proj, v_proj]")


def _rank(options: Mapping[str, Any]) -> int:
    return int(options.get("r", 8))


def _targets(model: Model, options: Mapping[str, Any]) -> tuple[str, ...]:
    given = options.get("target_modules")
    if given is None:
        if model.family not in TARGETS:
            rule = f"is missing, and peft has no default for {model.family}"
            raise InputError(f"{PATH}.target_modules", None, rule, "name the modules to adapt")
        return TARGETS[model.family]
    if isinstance(given, str) and given.lower() == ALL:
        return _every_linear(model)
    if isinstance(given, str) or not all(str(name).replace(".", "").replace("_", "").isidentifier() for name in given):
        rule = "is a pattern or a numbered layer, which is not modelled yet"
        raise NotModelledError(
            f"{PATH}.target_modules", given, rule, "list the modules by their last names, as [q_proj, v_proj]"
        )
    return tuple(given)


ALL = "all-linear"
"""peft's word for every ``nn.Linear`` and ``Conv1D`` but the one that reads out the vocabulary."""


def _every_linear(model: Model) -> tuple[str, ...]:
    """source: peft 0.21.2 tuners/tuners_utils.py:_maybe_include_all_linear_layers

    Raises:
        NotModelledError: a mixture of experts, whose router and experts are modules of their own kinds.
    """
    if any(tensor.kind == "expert" for tensor in model.parameters):
        raise NotModelledError(f"{PATH}.target_modules", ALL, "is not modelled of a mixture of experts", "list the modules")
    weights = [t.name for t in model.parameters if t.kind == "linear" and len(t.shape) == 2 and t.name.endswith(".weight")]
    modules = dict.fromkeys(_module(name) for name in weights)
    return tuple(name for name in modules if name.rpartition(".")[2] not in ("lm_head", "embed_out"))


def _refuse_others(options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        harmless = key in SAME_BYTES or key in ("r", "target_modules") or value in (None, False, "none", [], {})
        if not harmless:
            raise NotModelledError(f"{PATH}.{key}", value, "is not modelled yet", "leave it out")


def _is_target(name: str, targets: tuple[str, ...]) -> bool:
    module = _module(name)
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _renamed(name: str, modules: set[str]) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{leaf}" if module in modules else PREFIX + name
