"""Reading and writing NNCF configs: JSON with comments and trailing commas in, one-line messages or plain JSON out."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bootstrapnas.artefacts import write_text
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.nncf_config.schema import (
    NO_KERNELS,
    REASON,
    RNSGA2_KEYS,
    WIDTH_RULE,
    Document,
    InputInfo,
    MovementSparsity,
    Search,
    Section,
    Training,
    Width,
    section_in,
)

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class NNCFConfig:
    """A checked NNCF config.

    Attributes
    ----------
    path
        Where it comes from, for messages.
    raw
        The file's content as it was, the start of a changed copy. Not to be changed itself.
    document
        The same, checked and with defaults.
    """

    path: str
    raw: Mapping[str, Any]
    document: Document

    @property
    def training(self) -> Training:
        """``bootstrapNAS.training``. Raises `UserError` if the config has none."""
        training = self.document.bootstrap_nas.training
        if training is None:
            raise UserError(f"{self.path}: bootstrapNAS.training is missing; it says what is elastic")
        return training

    @property
    def search(self) -> Search:
        """``bootstrapNAS.search``, all defaults if the config has none."""
        return self.document.bootstrap_nas.search

    @property
    def movement(self) -> MovementSparsity:
        """The movement sparsity section. Raises `UserError` if the config has none."""
        if not self.document.compression:
            raise UserError(f"{self.path}: compression is missing; it needs an entry of algorithm 'movement_sparsity'")
        return self.document.compression[0]

    @property
    def ignored(self) -> tuple[tuple[str, str], ...]:
        """The settings of the file that change nothing here: (key path, reason)."""
        return tuple((_text(path, self.raw), reason) for path, reason in _ignored(self.document, ()))

    def names(self, key_path: str) -> bool:
        """Return whether the file itself sets a key, for example ``"bootstrapNAS.search.num_evals"``."""
        value: Any = self.raw
        for key in key_path.split("."):
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        return True


def read_config(path: str | os.PathLike[str]) -> NNCFConfig:
    """Read and check an NNCF config.

    Raises
    ------
    UserError
        If the file cannot be read, is not JSON (comments and trailing commas are), or says something that it may not.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"nncf_config {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read nncf_config {path}: {error}") from error
    return check_config(_parse(text, str(path)), str(path))


def check_config(raw: Any, path: str = "NNCF config") -> NNCFConfig:
    """Check the content of an NNCF config; `path` names it in messages.

    Raises
    ------
    UserError
        If a key is unknown, or a value of the wrong type, out of range or against another one.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold a JSON object, not {_shown(raw)}")
    try:
        return NNCFConfig(path, raw, Document.model_validate(raw))
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A list with a bad entry is also reported as too short.
        errors = [one for one in found if not any(_inside(other["loc"], one["loc"]) for other in found)]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{path}: {_explain(errors[0], raw)}{more}") from None


def sequence_length(config: NNCFConfig) -> int:
    """Return the number of tokens of a sequence, from ``input_info``.

    Raises
    ------
    UserError
        If there is no ``input_info``, or its inputs differ in length.
    """
    inputs: tuple[InputInfo, ...] = config.document.input_info
    lengths = sorted({entry.sample_size[1] for entry in inputs})
    if len(lengths) != 1:
        found = f"has inputs of {' and '.join(map(str, lengths))} tokens" if lengths else "is missing"
        raise UserError(f"{config.path}: input_info {found}; it gives the one sequence length that costs are for")
    return lengths[0]


def search_settings(config: NNCFConfig) -> dict[str, Any]:
    """Return what ``bootstrapNAS.search`` sets, by the names of the search's own settings.

    What the file leaves out is left out here too, so that the search's defaults hold. Points in NNCF's units, [millions
    of MACs, minus a percentage], become [MACs, minus a fraction]; a metric from -1 to 0 is a fraction already. NNCF
    subtracts ``acc_delta`` from ``ref_acc``: beside one that is a fraction it is a fraction as well, and becomes points
    of a percent. One that is not below ``ref_acc``, and so cannot be meant as a fraction, is in points already.
    """
    fields = type(config.search).model_fields
    settings: dict[str, Any] = {
        name: getattr(config.search, name)
        for name in fields
        if name in config.search.model_fields_set
        and not _reason(config.search, name)
        and name not in ("batchnorm_adaptation", "eval_metric_name")
    }
    if "aspiration_points" in settings:
        settings["aspiration_points"] = tuple(
            (1e6 * macs, metric if metric >= -1 else metric / 100) for macs, metric in settings["aspiration_points"]
        )
    if settings.get("acc_delta", math.inf) < settings.get("ref_acc", -1.0) <= 1:
        settings["acc_delta"] = round(100 * settings["acc_delta"], 10)
    return settings


# -- JSON --------------------------------------------------------------------------------------------------------------

_POSITION: Final = re.compile(r" near (\d+)")
_CODE_POINT: Final = re.compile(r"U\+([0-9a-f]{4,6})")
_NAMED: Final = re.compile(r"b'(\w+)'")


def _parse(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        # JSON5 includes comments and trailing commas. pyjson5 is compiled and released for every current Python; a
        # reader in pure Python is a thousand times slower, which shows on files with hundreds of node names.
        import pyjson5
    try:
        return pyjson5.decode(text)
    except pyjson5.Json5DecoderException as error:
        message = str(error.args[0])
        position = _POSITION.search(message)
        line = text.count("\n", 0, int(position[1]) - 1) + 1 if position else 1
        raise UserError(f"{path} is not JSON at line {line}: {_readable(message)}") from None


def _readable(message: str) -> str:
    message = _POSITION.sub("", message).replace("b'comma'", "','").replace("b'JSON5Value'", "a value")
    message = _CODE_POINT.sub(lambda match: repr(chr(int(match[1], 16))), message)
    return _NAMED.sub(r"\1", message)


def write_config(path: str | os.PathLike[str], raw: Mapping[str, Any]) -> None:
    """Write an NNCF config, atomically, as `format_config` lays it out."""
    write_text(path, format_config(raw))


def format_config(raw: Mapping[str, Any]) -> str:
    """Return an NNCF config as plain JSON that people can read: short lists stay on one line."""
    return _layout(raw, "") + "\n"


def _layout(value: Any, indent: str) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value:
        return line
    flat = isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value)
    if flat and len(indent) + len(line) <= 100:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_layout(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _layout(item, inner) for item in value) + f"\n{indent}]"


# -- what is wrong, and where ------------------------------------------------------------------------------------------

_EXPECTED: Final = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_type": "must be an integer",
    "less_than_equal": "must be at most {le:g}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "model_type": "must be an object",
    "string_type": "must be a string",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "tuple_type": "must be a list",
}


def _inside(path: KeyPath, outer: KeyPath) -> bool:
    return len(path) > len(outer) and path[: len(outer)] == outer


def _explain(error: ErrorDetails, raw: Mapping[str, Any]) -> str:
    path, kind, context = error["loc"], error["type"], error.get("ctx", {})
    where = _text(path, raw)
    if kind == "extra_forbidden":
        section = _section_at(path[:-1])
        known = [field.alias or name for name, field in section.model_fields.items()]
        return f"unknown key {where}{near_miss(str(path[-1]), known)}"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "value_error":
        return f"{where}.{context['error']}" if where else str(context["error"])
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else f"is wrong ({error['msg']})"
    words = re.findall(r"'([^']*)'", expected) if kind == "literal_error" else []
    return f"{where} {expected}, not {_shown(error['input'])}{near_miss(str(error['input']), words)}"


def _section_at(path: KeyPath) -> type[Section]:
    """Return the type of the object at a key path."""
    section: type[Section] = Document
    for key in path:
        if isinstance(key, str):
            fields = {field.alias or name: field for name, field in section.model_fields.items()}
            section = section_in(fields[key].annotation) or section
    return section


def _text(path: Sequence[str | int], raw: Any) -> str:
    """Return a key path as in ``a.b[0].c``; the index of an object that stands for a list of one is left out."""
    text = ""
    value = raw
    for key in path:
        if isinstance(key, int):
            if not isinstance(value, list):
                continue
            text += f"[{key}]"
            value = value[key] if key < len(value) else None
        else:
            text += f".{key}" if text else key
            value = value.get(key) if isinstance(value, dict) else None
    return text


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- what has no effect ------------------------------------------------------------------------------------------------


def _reason(section: Section, name: str) -> str | None:
    extra = type(section).model_fields[name].json_schema_extra
    reason = extra.get(REASON) if isinstance(extra, dict) else None
    return None if reason is None else str(reason)


def _ignored(section: Section, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    for name, field in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        here = (*path, field.alias or name)
        reason = _reason(section, name)
        if reason is not None:
            if value:  # nought, false and nothing ask for what is done anyway
                yield here, reason
        elif isinstance(value, Section):
            yield from _ignored(value, here)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Section):
                    yield from _ignored(item, (*here, index))
                elif item == "kernel" and name in ("available_elasticity_dims", "train_dims"):
                    yield (*here, index), NO_KERNELS
    if isinstance(section, Training):
        yield from _never_trained(section, path)
    if isinstance(section, Width) and section.overwrite_groups is not None:
        for name in WIDTH_RULE:
            if name in section.model_fields_set:
                yield (*path, name), "overwrite_groups_widths lists the widths"
    if isinstance(section, Search) and section.algorithm != "RNSGA2":
        for name in RNSGA2_KEYS:
            if name in section.model_fields_set:
                yield (*path, name), "it belongs to RNSGA2"
    if isinstance(section, Width) and section.external_importance_path and section.filter_importance != "external":
        yield (*path, "external_importance_path"), f"filter_importance is {section.filter_importance!r}, not 'external'"


def _never_trained(training: Training, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield what is said of a dimension that no stage trains, and of stages' rates beside one over all of them."""
    trained = {dim for stage in training.stages for dim in stage.train_dims}
    for dim in ("width", "depth"):
        section: Section = getattr(training.elasticity, dim)
        if dim not in trained and any(getattr(section, name) for name in section.model_fields_set):
            yield (*path, "elasticity", dim), f"no stage trains {dim}"
    if training.lr_schedule.params.base_lr is not None:
        for index, stage in enumerate(training.schedule.list_stage_descriptions or ()):
            if stage.epochs_lr is not None:
                where = (*path, "schedule", "list_stage_descriptions", index, "epochs_lr")
                yield where, "lr_schedule gives one learning rate over all stages"
