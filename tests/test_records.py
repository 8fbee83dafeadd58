"""Records behave as the dataclasses a type checker takes them for."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import pkgutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, field, fields
from functools import cached_property
from importlib import import_module
from typing import ClassVar

import pytest

import memcalc
from memcalc.records import dataclass, names_of, replace


@dataclass(frozen=True, slots=True)
class Point:
    """Two numbers and a list of its own."""

    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list)


def test_fields_come_from_positions_names_and_defaults():
    """Positions, names, defaults and factories fill a record as they do a dataclass, and no two share a factory's value."""
    assert (Point(1), Point(1, 3), Point(y=3, x=1)) == (Point(1, 2, []), Point(1, y=3), Point(1, 3))
    assert Point(1).tags is not Point(1).tags


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"z": 3})])
def test_what_is_missing_or_unknown_is_refused(args, kwargs):
    """A missing field, a field too many and an unknown name are TypeErrors."""
    with pytest.raises(TypeError, match="Point takes x, y, tags"):
        Point(*args, **kwargs)


def test_the_standard_tools_work():
    """replace, asdict, fields, repr, equality, hashing and pickling are those of a dataclass."""
    point = Point(1, tags=["a"])
    assert asdict(replace(point, y=5)) == {"x": 1, "y": 5, "tags": ["a"]}
    assert [f.name for f in fields(point)] == ["x", "y", "tags"]
    assert repr(point) == "Point(x=1, y=2, tags=['a'])"
    assert pickle.loads(pickle.dumps(point)) == point
    assert point != (1, 2, ["a"])


@dataclass(frozen=True, slots=True)
class Fixed:
    """Hashable."""

    a: int
    b: str = "b"


def test_records_of_hashable_fields_are_keys():
    """Equal records hash alike."""
    assert len({Fixed(1), Fixed(1, "b"), Fixed(2)}) == 2


def test_a_record_made_often_is_still_the_same_record():
    """The compiled constructor that takes over for a class made often fills, shares nothing and refuses as the first one."""

    @dataclass(frozen=True, slots=True)
    class Often:
        x: int
        y: int = 2
        tags: list[str] = field(default_factory=list)

    first = Often.__init__
    made = [Often(at, tags=["a"]) for at in range(200)]
    assert Often.__init__ is not first
    assert [(one.x, one.y, one.tags) for one in made] == [(at, 2, ["a"]) for at in range(200)]
    assert Often(1).tags == []
    assert Often(1).tags is not Often(1).tags
    assert replace(made[0], y=5).y == 5

    @dataclass(frozen=True, slots=True)
    class Empty:
        pass

    assert len({Empty() for _ in range(200)}) == 1
    for args, kwargs in (((), {}), ((1, 2, [], 4), {}), ((1,), {"z": 3})):
        with pytest.raises(TypeError):
            Often(*args, **kwargs)


def test_a_copy_with_changes_is_the_standard_librarys():
    """``replace`` changes what it is told, shares the rest, keeps nothing cached, and refuses what is no field."""

    @dataclass(frozen=True, slots=True)
    class Cached:
        x: int
        y: int = 2

        @cached_property
        def sum(self) -> int:
            return self.x + self.y

    first = Cached(1)
    assert first.sum == 3
    other = replace(first, y=5)
    assert (other, other.sum, first.sum) == (Cached(1, 5), 6, 3)
    assert other == dataclasses.replace(first, y=5)
    assert replace(first) == first
    for record in (first, Fixed(1)):
        with pytest.raises(TypeError, match="has no fields \\['z'\\]"):
            replace(record, z=3)

    @dataclasses.dataclass(frozen=True)
    class Plain:
        x: int
        y: int = 2

    assert replace(Plain(1), y=3) == Plain(1, 3)


def test_the_copy_modules_replace_is_ours():
    """``copy.replace`` (Python 3.13) asks a record for ``__replace__``, which is ours and refuses what is no field."""
    assert Point(1).__replace__(y=5) == Point(1, 5)
    with pytest.raises(TypeError, match="has no fields \\['z'\\]"):
        Fixed(1).__replace__(z=3)
    if sys.version_info >= (3, 13):
        assert copy.replace(Point(1), y=5) == Point(1, 5)


def test_threads_that_ask_at_once_are_all_answered():
    """What the standard library leaves on a class is made once, and at no time is it not there."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(40):

                @dataclass(frozen=True)
                class Asked:
                    x: int
                    y: int = 2

                made = [pool.submit(lambda kind: (kind.__match_args__, len(fields(kind))), Asked) for _ in range(8)]
                assert {one.result() for one in made} == {(("x", "y"), 2)}
    finally:
        sys.setswitchinterval(before)


def test_every_record_has_the_fields_of_a_dataclass():
    """What a record reads of its class by itself is what the standard library reads of it: names, order and defaults."""
    for module in pkgutil.walk_packages(memcalc.__path__, "memcalc."):
        if not module.name.startswith(
            ("memcalc.engines.trace", "memcalc.engines.measure", "memcalc.runtime", "memcalc.__main__")
        ):
            with contextlib.suppress(ImportError):
                import_module(module.name)
    modules = [module for name, module in sys.modules.items() if name.startswith("memcalc.")]
    known = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    records = {kind for kind in known if "_fields_of_record" in kind.__dict__}
    assert len(records) > 150
    for kind in records:
        read = dict(kind._fields_of_record)
        standard = {entry.name: entry for entry in dataclasses.fields(kind)}
        assert list(read) == list(standard), kind
        for name, default in read.items():
            known = default if isinstance(default, dataclasses.Field) else field(default=default)
            assert known.default is standard[name].default, (kind, name)
            assert known.default_factory is standard[name].default_factory, (kind, name)
        assert kind.__match_args__ == tuple(read)


def test_what_is_asked_of_a_class_is_made_then():
    """A record with a record for its base, a subclass of its own and a class constant: fields, patterns and instances agree."""

    @dataclass(frozen=True, slots=True)
    class Base:
        x: int
        tags: list[str] = field(default_factory=list)
        shared: ClassVar[int] = 7

    @dataclass(frozen=True, slots=True)
    class Derived(Base):
        tags: list[str] = field(default_factory=lambda: ["own"])
        y: int = 2

    class Plain(Derived):
        z = 3

    assert names_of(Plain(1)) == ("x", "tags", "y")
    assert [entry.name for entry in fields(Plain)] == ["x", "tags", "y"]
    assert Plain(1) == Plain(1, ["own"], 2)
    assert Base(1).tags == []
    match Plain(4):
        case Derived(x, tags, y):
            assert (x, tags, y) == (4, ["own"], 2)
    assert asdict(Base(1)) == {"x": 1, "tags": []}
    assert pickle.loads(pickle.dumps(Point(2))) == Point(2)
