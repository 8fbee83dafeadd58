"""A campaign as people write it: groups of jobs to run for real, expanded into an ordered list of named cases. No torch.

    name: cpu
    device: cpu
    base: {iterations: 3}
    models:
      small: {model_type: gpt2, n_layer: 2, n_embd: 64, n_head: 4, vocab_size: 512}
    groups:
      - name: optimizers
        base: {model: small, micro_batch_size: 2, sequence_length: 16}
        grid: {optimizer: [adam, sgd], precision: [fp16, fp32]}
        list: [{}, {max_grad_norm: 1.0}]
        exclude: [{optimizer: sgd, precision: fp16}]

The words are a sweep's: within a group the axes of ``grid`` multiply, the later vary faster, and ``list`` is one further axis,
the slowest, whose values are patches; ``exclude`` drops what matches all keys of one patch; ``include`` appends patches of
the base. Keys are a job's, grouped or flat, and those of :class:`RunSettings`. Groups take turns, ``turn`` cases each, so that
the first minutes of a long campaign have seen every group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memcalc.campaign_names import digest, slug, varied
from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.job import FLAT, SECTIONS, Job, grouped, read_job
from memcalc.readers.yaml import load_yaml
from memcalc.records import dataclass
from memcalc.validation import explain

MAX_CASES = 10_000
"""The most cases of one campaign: at ten seconds each, more than a day."""
Positive = Annotated[int, Field(strict=True, ge=1)]


class Closed(BaseModel):
    """Fixed once read, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSettings(Closed):
    """What a measurement is told beside its job."""

    iterations: Positive = 3
    """Optimizer steps."""
    set_to_none: bool = True
    """What ``zero_grad`` is told."""
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    """Of the weights and the inputs."""
    inputs: list[str] = Field(default_factory=list)
    """Inputs in place of the family's own, as ``x=float32[8,3,224,224]``."""
    loss: str | None = None
    """A loss in place of the model's own."""
    schedule: Literal["none", "warmup", "cosine"] = "none"
    """A learning-rate schedule around the optimizer."""
    lora: dict[str, Any] | None = None
    """Options of peft's ``LoraConfig``, as ``{r: 8}``; everything but the adapters is then frozen."""
    history: bool = False
    """Whether the allocator's events are recorded."""
    alone: bool = False
    """Whether nothing else may run on the device meanwhile, as where out-of-memory or context bytes are wanted."""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds after which the case's process is ended."""


class Group(Closed):
    """Cases of one kind."""

    name: str
    """What their names begin with."""
    about: str = ""
    """What they are for."""
    turn: Positive = 1
    """How many cases it gives whenever its turn comes."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Keys every case of the group has, over the campaign's own base."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Axes: a key and its values."""
    points: Annotated[list[dict[str, Any]] | None, Field(min_length=1, alias="list")] = None
    """Patches that vary together, as one axis slower than all of ``grid``."""
    include: Annotated[list[dict[str, Any]] | None, Field(min_length=1)] = None
    """Further cases, each a patch of the base."""
    exclude: Annotated[list[dict[str, Any]] | None, Field(min_length=1)] = None
    """Patches; a case of the grid that matches every key of one is dropped."""


class CampaignFile(Closed):
    """The file as written."""

    name: str
    """What to call the campaign."""
    about: str = ""
    """What it is for."""
    device: Literal["cpu", "cuda"]
    """What its cases run on."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Keys every case has."""
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Configs by a name of this file, as its cases then give for ``model``."""
    groups: Annotated[list[Group], Field(min_length=1)]
    """The kinds of cases, in the order of their turns."""


@dataclass(frozen=True, slots=True)
class Case:
    """One job to run for real.

    Attributes:
        name: unique in its campaign, and fit for a file's name.
        group: the group it came from.
        device: ``cpu`` or ``cuda``.
        request: the job, grouped, as ``read_job`` reads it.
        settings: what the measurement is told beside it.
    """

    name: str
    group: str
    device: str
    request: dict[str, Any]
    settings: RunSettings

    @property
    def ranks(self) -> int:
        """Processes it takes: the data-parallel ranks its job asks for."""
        ranks = read_job(self.request).parallelism
        return ranks.dp or (ranks.dp_shard or 1) * (ranks.dp_replicate or 1)

    @property
    def key(self) -> str:
        """A digest of all that was asked, so that a case whose job was changed is not taken for done."""
        return digest([self.device, self.request, self.settings.model_dump(mode="json")])


def load_campaign(file: Path) -> list[Case]:
    """The cases of a campaign file, in the order they are to run.

    Raises:
        InputError: not there, not YAML, an unknown key, a job that breaks a rule, nothing left to run.
    """
    return read_campaign(load_yaml(file), str(file))


def read_campaign(document: Any, where: str = "campaign") -> list[Case]:
    """The cases of a campaign: validated, in the order they are to run, each question once.

    >>> cases = read_campaign({"name": "c", "device": "cpu", "groups": [
    ...     {"name": "a", "base": {"model": "gpt2"}, "grid": {"optimizer": ["adam", "sgd"]}},
    ...     {"name": "b", "base": {"model": "bert"}}]})
    >>> [case.name for case in cases]
    ['a-adam', 'b', 'a-sgd']
    """
    if not isinstance(document, Mapping):
        raise InputError(where, NO_VALUE, "is not a campaign", "write name, device and groups")
    try:
        campaign = CampaignFile.model_validate(document)
    except ValidationError as error:
        raise explain(error, where, [*CampaignFile.model_fields, *Group.model_fields, "list"]) from None
    cases: list[Case] = []
    names: set[str] = set()
    seen: set[str] = set()
    for case in _in_turn([(group.turn, list(_cases(campaign, group, where))) for group in campaign.groups]):
        if case.key in seen:
            continue
        seen.add(case.key)
        unique = case.name if case.name not in names else f"{case.name}-{case.key[:8]}"
        names.add(unique)
        cases.append(Case(unique, case.group, case.device, case.request, case.settings))
    if not cases:
        raise InputError(where, NO_VALUE, "leaves no case to run", "exclude fewer")
    return cases


def _in_turn(groups: Sequence[tuple[int, list[Case]]]) -> Iterator[Case]:
    """From each group as many as its turn has, round after round."""
    at = 0
    while any(at * turn < len(cases) for turn, cases in groups):
        for turn, cases in groups:
            yield from cases[at * turn : (at + 1) * turn]
        at += 1


def _cases(campaign: CampaignFile, group: Group, where: str) -> Iterator[Case]:
    path = f"{where}: {group.name}"
    axes = [group.points or [{}], *([{key: value} for value in values] for key, values in group.grid.items())]
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MAX_CASES:
        raise InputError(path, count, f"cases are more than {MAX_CASES}", "take fewer values")
    patches = [_merged(*parts) for parts in product(*axes)]
    patches = [patch for patch in patches if not any(_matches({**group.base, **patch}, rule) for rule in group.exclude or ())]
    if not group.grid and group.points is None and group.include:
        patches = []  # a group of include alone is those, and not its bare base too
    for patch in [*patches, *(group.include or ())]:
        yield _case(campaign, group, patch, path)


def _case(campaign: CampaignFile, group: Group, patch: Mapping[str, Any], path: str) -> Case:
    keys = _merged(campaign.base, group.base, patch)
    _known(keys, path)
    told = {key: value for key, value in keys.items() if key in RunSettings.model_fields}
    asked = {key: value for key, value in keys.items() if key not in told}
    label = asked.pop("name", None)
    model = asked.get("model")
    if isinstance(model, str) and model in campaign.models:
        asked["model"] = {"name": model, **campaign.models[model]}
    name = slug("-".join([group.name, str(label)] if label else [group.name, *varied(patch)]))
    try:
        settings = RunSettings.model_validate(told)
    except ValidationError as error:
        raise explain(error, path, RunSettings.model_fields) from None
    request = grouped(asked, path)
    read_job(request, path)
    return Case(name, group.name, campaign.device, request, settings)


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Later keys over earlier ones; options of the optimizer and of the engine are added to, not replaced."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = key in ("optimizer_args", "zero_args") and isinstance(value, Mapping) and isinstance(result.get(key), dict)
            result[key] = {**result[key], **value} if both else value
    return result


def _matches(keys: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether every key of the rule has that value, or one of them where the rule lists several."""
    return all(keys.get(key) in values if isinstance(values, list) else keys.get(key) == values for key, values in rule.items())


def _known(keys: Mapping[str, Any], path: str) -> None:
    known = [*Job.model_fields, *SECTIONS, *FLAT, *RunSettings.model_fields]
    for key in keys:
        if key not in known:
            raise InputError(f"{path}.{key}", NO_VALUE, "is not a known key", did_you_mean(str(key), known))
