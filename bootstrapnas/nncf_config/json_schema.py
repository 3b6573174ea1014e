"""The JSON Schema of NNCF configs, by which editors complete, explain and check what people type. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bootstrapnas.nncf_config.effects import EFFECTS
from bootstrapnas.nncf_config.schema import REASON, Document, Section, as_list, section_in

TITLE = "NNCF config"
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a whole config: what `check_config` refuses by type, range or name, it refuses too."""
    schema = Document.model_json_schema(by_alias=True, schema_generator=_Generator)
    schema = {"$schema": _Generator.schema_dialect, **schema, "title": TITLE}
    for section in sections(Document):
        described = schema if section is Document else schema["$defs"][section.__name__]
        for name, field in section.model_fields.items():
            entry = described["properties"][field.alias or name]
            entry.pop("title", None)  # the key again
            reason = entry.pop(REASON, None)
            effect = EFFECTS.get(f"{section.__name__}.{name}")
            if reason is not None:
                entry["description"] = f"No effect: {reason}."
            elif effect is not None:
                entry["description"] = _LINK.sub(r"\1", effect)
            # A default that is an object repeats its own defaults.
            if isinstance(entry.get("default"), (dict, list)) or entry.get("default") is None:
                entry.pop("default", None)
    return schema


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """Yield a section and all sections in it, outermost first."""
    yield section
    for field in section.model_fields.values():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from sections(inner)


class _Generator(GenerateJsonSchema):
    """Where one entry may stand for a list of one, the schema allows both."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        found = super().function_before_schema(schema)
        return {"anyOf": [found["items"], found]} if schema["function"]["function"] is as_list else found
