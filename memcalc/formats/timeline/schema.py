"""The JSON Schema of a timeline."""

from __future__ import annotations

from typing import Any

from memcalc.tape.events import PHASES, ROLES

_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object that has these keys, all of them, and no other."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False, **more}


def _column(said: str, items: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "array", "items": items or _COUNT, "description": said}


def _or_null(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "null"}]}


_WHEN = {"instant": _COUNT, "phase": {"$ref": "#/$defs/phase"}, "iteration": _COUNT}
_DEFS: dict[str, Any] = {
    "phase": {"enum": list(PHASES)},
    "role": {"enum": list(ROLES)},
    "when": _object(_WHEN),
    "moment": _object({"instant": _COUNT, "bytes": _COUNT, "phase": {"$ref": "#/$defs/phase"}, "iteration": _COUNT}),
    "shape": _or_null({"type": "array", "items": _COUNT}),
    "group": _object({"name": _TEXT, "bytes": _COUNT, "share": {"type": "number"}, "buffers": _COUNT}),
    "node": _object(
        {"name": _TEXT, "path": _TEXT, "bytes": _COUNT, "own": _COUNT, "buffers": _COUNT,
         "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        description="A module: its own bytes, and bytes with everything under its dotted path.",
    ),
    "life": _object(
        {"site": _TEXT, "bytes": _COUNT, "requested": _COUNT, "role": {"$ref": "#/$defs/role"},
         "shape": {"$ref": "#/$defs/shape"}, "dtype": _TEXT, "module": _TEXT, "operator": _TEXT, "stream": {"type": "integer"},
         "born": {"$ref": "#/$defs/when"}, "dies": _or_null({"$ref": "#/$defs/when"})},
    ),
}  # fmt: skip
_MOMENT = {"$ref": "#/$defs/moment"}
_PEAK = _object(
    {
        **_DEFS["moment"]["properties"],
        "allocated": _or_null(_COUNT),
        "reserved": _or_null(_COUNT),
        "by_role": {"type": "object", "propertyNames": {"$ref": "#/$defs/role"}, "additionalProperties": _COUNT},
        "by_module": {"type": "array", "items": {"$ref": "#/$defs/group"}},
        "by_operator": {"type": "array", "items": {"$ref": "#/$defs/group"}},
        "modules": {"$ref": "#/$defs/node"},
        "largest": {"type": "array", "items": {"$ref": "#/$defs/life"}},
        "highest_allocated": _or_null(_MOMENT),
        "highest_reserved": _or_null(_MOMENT),
    },
    description="The window's highest instant, in the document's measure, and what is alive then; each grouping sums to bytes.",
)
_BUFFERS = _object(
    {
        **{
            name: _column(f"The {said}, as an index into strings.")
            for name, said in (
                ("site", "name of the tensor, state or bucket"), ("role", "role"),
                ("module", "dotted path of the module that made it"), ("operator", "operator that made it"),
                ("dtype", "dtype"), ("place", "place: device, host or managed"),
            )
        },
        "shape": _column("The shape, as an index into shapes."),
        "requested": _column("Bytes the tensor needs."),
        "stream": _column("The CUDA stream it is allocated on.", {"type": "integer"}),
        "born": _column("The instant of its allocation."),
        "dies": _column("The instant of its free, or null.", {"type": ["integer", "null"], "minimum": 0}),
    },
    description="One column for each attribute, one entry for each allocation, in order of birth.",
)  # fmt: skip

SCHEMA: dict[str, Any] = {
    "title": "memcalc timeline",
    "description": (
        "A training step, allocation by allocation. Instant i is the moment just after the i-th allocation or free, from 0. "
        "Bytes are integers; null is not modelled."
    ),
    "$defs": _DEFS,
    **_object(
        {
            "schema_version": {"const": 1},
            "title": _TEXT,
            "measure": {"enum": ["requested", "rounded"], "description": "What total and the peak count a buffer as."},
            "instants": {**_COUNT, "description": "How many instants there are: allocations and frees."},
            "window": {**_column("The instants [start, stop) in which the peak is looked for."), "minItems": 2, "maxItems": 2},
            "roles": _column("Roles that take bytes, from the bottom of the stacked picture up.", {"$ref": "#/$defs/role"}),
            "phases": {
                "type": "array",
                "items": _object(
                    {"phase": {"$ref": "#/$defs/phase"}, "iteration": _COUNT, "start": _COUNT, "stop": _COUNT,
                     "peak": _object({"instant": _COUNT, "bytes": _COUNT})}
                ),
                "description": "Stretches of instants start <= i < stop, in order and without a gap.",
            },
            "peak": _PEAK,
            "strings": _column("Names, each once.", _TEXT),
            "shapes": _column("Shapes, each once; null where none is known.", {"$ref": "#/$defs/shape"}),
            "buffers": _BUFFERS,
            "events": _column(
                "One number for each instant: k where buffer k - 1 is born, -k where it dies.",
                {"type": "integer", "not": {"const": 0}},
            ),
            "total": _column("Live bytes on the device after each event."),
            "allocated": _or_null(_column("What the caching allocator counts after each event.")),
            "reserved": _or_null(_column("What the caching allocator then holds from the driver.")),
            "footprint": {"type": ["object", "null"], "description": "As memcalc schema footprint describes it."},
        }
    ),
}  # fmt: skip
