"""JSON Schemas of what people write and of what they read, so that editors complete job files and scripts check answers."""

from __future__ import annotations

import ast
import inspect
from copy import deepcopy
from itertools import pairwise
from types import ModuleType
from typing import Any

from memcalc.errors import InputError, did_you_mean

NAMES = ("job", "sweep", "footprint", "measurement", "timeline")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of that name.

    Raises:
        InputError: there is none.
    """
    if name == "job":
        return _job()
    if name == "sweep":
        from memcalc.sweep.spec import sweep_schema

        return {"$schema": DIALECT, **sweep_schema()}
    if name == "footprint":
        return _footprint()
    if name == "measurement":
        from memcalc.measurement import schema as measurement_schema

        return {"$schema": DIALECT, **measurement_schema()}
    if name == "timeline":
        from memcalc.formats.timeline.schema import SCHEMA

        return {"$schema": DIALECT, **SCHEMA}
    raise InputError("schema", name, "is not a schema memcalc has", did_you_mean(name, NAMES))


def _job() -> dict[str, Any]:
    """A job's schema, in which the keys of a group may also stand flat."""
    from memcalc import job as job_module
    from memcalc.job import FLAT, SECTIONS, Job

    document = Job.model_json_schema()
    said = field_docs(job_module)
    for name, definition in [("Job", document), *document["$defs"].items()]:
        for key, value in definition["properties"].items():
            if text := said.get((name, key)):
                value["description"] = text
    for key, section in FLAT.items():
        definition = document["$defs"][SECTIONS[section].__name__]["properties"][key]
        document["properties"][key] = deepcopy(definition)
    # sizes and shares may be written with their units
    for place in (document["properties"], document["$defs"]["Hardware"]["properties"]):
        place["memory"] = {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}, {"type": "null"}],
                           "description": "Bytes, or a size with its unit: 24GiB, 80GB."}  # fmt: skip
        place["headroom"] = {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"type": "string"}],
                             "description": "The share to leave free: 0.05 or 5%."}  # fmt: skip
    return {"$schema": DIALECT, "title": "memcalc job", **{k: v for k, v in document.items() if k != "title"}}


def field_docs(module: ModuleType) -> dict[tuple[str, str], str]:
    """(class, field) -> the string that stands under it in the module's source.

    pydantic reads them too (``use_attribute_docstrings``), but whenever the class is made, which every start would pay.
    """
    said = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            for field, after in pairwise(node.body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                    said[node.name, field.target.id] = " ".join(str(ast.literal_eval(after.value)).replace("``", "`").split())
    return said


def _footprint() -> dict[str, Any]:
    """A footprint's schema, from its dataclasses."""
    from pydantic import TypeAdapter

    from memcalc.footprint import Footprint

    document = TypeAdapter(Footprint).json_schema(mode="serialization")
    properties = {"schema_version": {"const": 1}, **document["properties"]}
    # every buffer is listed only when an explanation is asked for
    required = ["schema_version", *(key for key in document["properties"] if key != "buffers")]
    return {"$schema": DIALECT, "title": "memcalc footprint", **document, "properties": properties, "required": required}
