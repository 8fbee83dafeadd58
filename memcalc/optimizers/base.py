"""What an optimizer keeps, as data: its state tensors as a function of one parameter, and what its step needs for a moment.

An entry is one decorated function that yields the :class:`State` tensors of one :class:`Param`, in the order the library
creates them, plus :class:`Temporary` terms for the step. Conditions on sizes use ``where``/``as_count``, never ``if``, so
that the same entry serves one estimate and a sweep over arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

from memcalc.arrays import Count, product
from memcalc.errors import InputError, did_you_mean
from memcalc.optimizers._arguments import check_common, typed
from memcalc.records import dataclass, replace
from memcalc.registry import Registry
from memcalc.tensors import Kind, itemsize

if TYPE_CHECKING:
    from memcalc.optimizers.script import Section

Place = Literal["device", "host", "managed"]
"""Where a tensor lives; ``managed`` is CUDA unified memory that pages between both and no allocator counts."""
Implementation = Literal["foreach", "fused", "single"]


@dataclass(frozen=True, slots=True)
class Param:
    """What an optimizer is handed: ``count`` identical tensors (a shard or a flat buffer under ZeRO).

    ``dtype`` is that of the tensor the optimizer updates, the fp32 master where the precision scheme keeps one; ``zeros``
    says that every element is known to be zero before the first step, ``idle`` that no gradient ever comes to it.
    """

    shape: tuple[Count, ...]
    dtype: str = "float32"
    grad_dtype: str = "float32"
    name: str = "weight"
    kind: Kind = "linear"
    count: Count = 1
    zeros: bool = False
    idle: bool = False

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> Count:
        """Elements of one of them."""
        return product(self.shape)

    @property
    def nbytes(self) -> Count:
        """Bytes of one of them."""
        return self.numel * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class State:
    """``count`` equal state tensors kept for one parameter; 0 where a threshold leaves it out.

    Attributes:
        name: the library's own key.
        part: what the tensor is: ``momentum``, ``variance``, ``master``, ``step``, ``scales``, ``preconditioner``, …
        dtype: torch's dtype name; packed types as the bytes they are stored in (4-bit: uint8, half as many).
        numel: elements of its storage (which may be larger than the view an optimizer keeps).
        count: how many of it there are.
        place: ``device``, ``host`` or ``managed``.
    """

    name: str
    part: str
    dtype: str
    numel: Count
    count: Count = 1
    place: Place = "device"

    @property
    def nbytes(self) -> Count:
        """Requested bytes of one of them."""
        return self.numel * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Temporary:
    """``count`` equal buffers a step needs on the device beyond what is kept, while one parameter is processed.

    Terms of one ``moment`` are live together; the step's need is its worst moment's. 0-dim constants count like any other.

    Attributes:
        name: what the buffer holds.
        nbytes: bytes of one of them.
        over: ``sum``: all parameters' are live together (foreach); ``max``: only the current parameter's (processed in
            turn); ``previous``: the one processed before still holds it, for a Python name is freed when it is rebound.
        count: how many of them there are for one parameter.
        moment: which instant of the step.
    """

    name: str
    nbytes: Count
    over: Literal["sum", "max", "previous"]
    count: Count = 1
    moment: str = ""


class Options(Mapping[str, Any]):
    """An optimizer's constructor options: its defaults, overlaid by what was asked; read as attributes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


StatesOf = Callable[[Param, Options], Iterable[State]]
TemporariesOf = Callable[[Param, Options, Implementation], Iterable[Temporary]]
ScriptOf = Callable[["Options", Implementation], "Iterable[Section] | None"]
SharedOf = Callable[[Sequence[Param], Options], Iterable[State]]


Refusals = Callable[[Options], Iterable[tuple[str, str]]]
"""(option, rule) for each combination of options the constructor raises for."""


def no_refusals(options: Options) -> Iterable[tuple[str, str]]:
    """For a constructor that takes any combination of its options."""
    return ()


def no_temporaries(param: Param, options: Options, implementation: Implementation) -> Iterable[Temporary]:
    """For a step whose kernels work in place."""
    return ()


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer of one library.

    Attributes:
        name: ``<PyPI name>:<Class>[+variant]``.
        cls: dotted path of the class, for people and for the tests that run it.
        summary: what it keeps, in one line.
        source: project, version, file and lines the facts were read from.
        states: its state tensors for one parameter.
        temporaries: its step's needs for one parameter; None where nobody has measured them. Not asked where there is a script
            for the options.
        script: its step as it runs: what it makes and lets go, in order (``memcalc.optimizers.script``); None of
            options it does not cover.
        group: which of the optimizer's groups a parameter goes to, where recipes make several; the step takes them in order.
        alike: what else than its dtype decides which list a tensor is in, where the step makes lists.
        shared: tables kept once for all parameters.
        options: every constructor option that changes memory, with the library's default; further names in ``ignored``.
        ignored: options accepted because the constructor has them, which change no byte.
        implementations: the step's forms; the first is CUDA's default.
        born: when the states are allocated.
        regardless: whether its step makes states of parameters without a gradient too.
        fills: whether it gives each of those a gradient of zeros, which is there until ``zero_grad``.
        needs: a rule a parameter must meet to be given to it, in words; checked by ``accepts``.
        accepts: whether it takes this parameter.
        frees_gradients: whether each gradient dies in backward, before the step.
        on_arrival: whether a hook on each gradient's arrival updates the parameter whose gradient was stored before it.
        scales_loss: whether its own backward multiplies the loss first.
        keeps_gradients: whether zero_grad can only zero them, so that they live from step to step.
        refuses: the combinations of options its constructor raises for.
        own: options that are memcalc's, not the constructor's: facts it cannot know from the constructor's arguments.
        preset: what a ``+variant`` passes to the constructor.
        nullable: numbers among the options that may be None, though their default is none.
    """

    name: str
    cls: str
    summary: str
    source: str
    states: StatesOf
    temporaries: TemporariesOf | None = no_temporaries
    script: ScriptOf | None = None
    group: Callable[[Param, Options], int] | None = None
    alike: Callable[[Param], bool] | None = None
    shared: SharedOf | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    implementations: tuple[Implementation, ...] = ("single",)
    born: Literal["first_step", "init"] = "first_step"
    regardless: bool = False
    fills: bool = False
    needs: str = ""
    accepts: Callable[[Param], bool] = lambda param: True
    frees_gradients: bool = False
    on_arrival: bool = False
    scales_loss: bool = False
    keeps_gradients: bool = False
    refuses: Refusals = no_refusals
    own: frozenset[str] = frozenset()
    preset: Mapping[str, Any] = field(default_factory=dict)
    nullable: frozenset[str] = frozenset()

    def minded(self, params: Iterable[Param]) -> list[Param]:
        """Those of the parameters it is handed for which it keeps states: a step passes over what has no gradient."""
        return [param for param in params if not param.idle or self.regardless or self.born == "init"]

    def resolve(self, arguments: Mapping[str, Any], path: str = "training.optimizer_args") -> Options:
        """Defaults overlaid by what was asked.

        Raises:
            InputError: an option this optimizer's constructor does not have, a value of another type, or a combination
                the constructor refuses.
        """
        values = dict(self.options)
        for key, value in arguments.items():
            if key in self.options:
                values[key] = typed(key, value, self.options[key], f"{path}.{key}", nullable=key in self.nullable)
            elif key in self.ignored:
                check_common(key, value, f"{path}.{key}")
            else:
                known = sorted({*self.options, *self.ignored})
                raise InputError(f"{path}.{key}", value, f"is not an option of {self.name}", did_you_mean(key, known))
        options = Options(values)
        for key, rule in self.refuses(options):
            raise InputError(f"{path}.{key}", options[key], rule)
        return options

    def implementation(self, options: Options) -> Implementation:
        """The form its step takes: what ``foreach`` or ``fused`` ask for, else CUDA's default.

        Either of them given, even as false, turns the default off (torch/optim/adam.py:adam).
        """
        fused, foreach = options.get("fused"), options.get("foreach")
        if fused and "fused" in self.implementations:
            return "fused"
        if fused is None and foreach is None:
            return self.implementations[0]
        return "foreach" if foreach and "foreach" in self.implementations else "single"


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")

COMMON_IGNORED = frozenset({"lr", "betas", "eps", "weight_decay", "maximize", "differentiable"})
"""Options of nearly every constructor that change no byte of state; entries where one does list it in ``options``."""


def optimizer(name: str, **fields: Any) -> Callable[[StatesOf], StatesOf]:
    """Register the decorated function as the states of a new optimizer.

    ``ignored`` adds to COMMON_IGNORED; ``constructor`` replaces it: the names of all of the constructor's arguments that
    change no byte, where COMMON_IGNORED would claim some it does not have.

    >>> @optimizer("example:Momentum", cls="example.Momentum", summary="one fp32 buffer", source="an example")
    ... def momentum(p, o):
    ...     yield State("buffer", "momentum", p.dtype, p.numel)
    >>> [s.nbytes for s in OPTIMIZERS.get("example:Momentum").states(Param((3, 4)), Options({}))]
    [48]
    """

    def register(states: StatesOf) -> StatesOf:
        ignored = frozenset(fields.pop("ignored", ()))
        constructor = fields.pop("constructor", None)
        ignored = ignored | COMMON_IGNORED if constructor is None else ignored | frozenset(constructor)
        OPTIMIZERS.add(name, Optimizer(name=name, states=states, ignored=ignored, **fields))
        return states

    return register


def variant(name: str, **preset: Any) -> Optimizer:
    """Register ``<Class>+variant``: the class named before the first ``+``, with these options as its defaults.

    >>> variant("example:Momentum+nothing").summary
    'one fp32 buffer'
    """
    base = OPTIMIZERS.get(name.split("+")[0])
    unknown = set(preset) - set(base.options)
    assert not unknown, f"{name} presets {unknown}, which {base.name} does not have"
    return OPTIMIZERS.add(name, replace(base, name=name, options={**base.options, **preset}, preset=preset))
