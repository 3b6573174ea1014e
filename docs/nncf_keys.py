"""Write the table of keys in nncf_config.md, and the schema for editors, from the reader: ``python docs/nncf_keys.py``.

A key that acts needs an entry in `bootstrapnas/nncf_config/effects.py`; what has no effect says why in the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from bootstrapnas.artefacts import write_json
from bootstrapnas.nncf_config.effects import EFFECTS
from bootstrapnas.nncf_config.json_schema import json_schema, sections
from bootstrapnas.nncf_config.schema import REASON, Document, Section, section_in

PAGE = Path(__file__).parent / "nncf_config.md"
START, END = "<!-- keys: written by nncf_keys.py -->", "<!-- end of keys -->"


def keys(section: type[Section], path: str) -> Iterator[tuple[str, str, str]]:
    """Yield (key path, default, effect) of every key of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        key = path + (field.alias or name)
        inner = section_in(field.annotation)
        reason = field.json_schema_extra and field.json_schema_extra[REASON]
        if inner is not None and reason is None:
            yield from keys(inner, f"{key}[]." if _is_list(field.annotation) else f"{key}.")
        elif reason is not None:
            yield key, "", f"*no effect*: {reason}."
        else:
            yield key, _default(section, name), EFFECTS[f"{section.__name__}.{name}"]


def _is_list(annotation: Any) -> bool:
    return "tuple[" in str(annotation)


def _default(section: type[Section], name: str) -> str:
    value = section.model_fields[name].default
    if value is PydanticUndefined:
        return "required"
    return "" if value is None or value == () else f"`{json.dumps(value)}`"


def table(rows: list[tuple[str, str, str]], root: str) -> str:
    """Return Markdown; keys are shown below `root`."""
    lines = ["| key | default | effect |", "|---|---|---|"]
    lines += [f"| `{key.removeprefix(root)}` | {default} | {effect} |" for key, default, effect in rows]
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return the page with its tables written anew."""
    rows = list(keys(Document, ""))
    known = {f"{section.__name__}.{name}" for section in sections(Document) for name in section.model_fields}
    assert not EFFECTS.keys() - known, f"no such key: {EFFECTS.keys() - known}"
    roots = ("bootstrapNAS.training.", "bootstrapNAS.search.", "compression[].")
    parts = []
    for root in roots:
        parts.append(f"### `{root.rstrip('.')}`\n\n" + table([row for row in rows if row[0].startswith(root)], root))
    parts.append("### Top level\n\n" + table([row for row in rows if not row[0].startswith(roots)], ""))
    before, _, rest = text.partition(START)
    return before + START + "\n\n" + "\n\n".join(parts) + "\n\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    write_json(PAGE.with_suffix(".schema.json"), json_schema())
