"""The JSON Schema of NNCF configs: it is valid, it allows what the reader allows, and refuses what it can."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import published_configs
import pytest
from command_line import CONFIG
from jsonschema import Draft202012Validator

from bootstrapnas.cli import main
from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config import check_config, read_config
from bootstrapnas.nncf_config.effects import EFFECTS
from bootstrapnas.nncf_config.json_schema import json_schema, sections
from bootstrapnas.nncf_config.schema import Document, Search
from bootstrapnas.search import SearchSettings

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "nncf_config.schema.json"
CONFIGS = sorted((ROOT / "nncf_configs").rglob("*.json"))
VALIDATOR = Draft202012Validator(json_schema())


def changed(path: str, value: Any) -> Any:
    """Return a config with the value at a path of keys changed."""
    raw = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    at: Any = raw
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    at[last] = value
    return raw


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


def test_the_file_is_what_the_command_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """If this fails: python docs/nncf_keys.py."""
    assert main(["config", "schema"]) == 0
    printed = capsys.readouterr().out
    assert FILE.read_text(encoding="utf-8") == printed
    assert main(["config", "schema", "--output", str(tmp_path / "s.json")]) == 0
    assert main(["config", "schema", "--output", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == printed


def test_another_file_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{}", encoding="utf-8")
    for target in (path, tmp_path):
        assert main(["config", "schema", "--output", str(target)]) == 2
        assert capsys.readouterr().err == (
            f"bootstrapnas: error: {target} holds something else than the schema of NNCF configs; "
            "choose another --output\n"
        )
    assert path.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_files_of_the_project_are_valid(path: Path) -> None:
    VALIDATOR.validate(read_config(path).raw)


@pytest.mark.parametrize(
    "raw",
    [
        published_configs.lonas_llama(2),
        published_configs.lonas_bert(2),
        published_configs.shears(),
        changed("compression", [CONFIG["compression"]]),
        changed("input_info", CONFIG["input_info"][0]),
        changed("compression.ignored_scopes", "{re}.*pooler.*"),
        changed("$schema", "../docs/nncf_config.schema.json"),
        changed("bootstrapNAS.training.elasticity.width.overwrite_groups", None),
    ],
)
def test_what_the_reader_takes_is_valid(raw: Any) -> None:
    check_config(raw)
    VALIDATOR.validate(raw)


@pytest.mark.parametrize(
    "raw",
    [
        changed("bootstrapNas", {}),
        changed("bootstrapNAS.serch", {}),
        changed("bootstrapNAS.search.num_evals", "many"),
        changed("bootstrapNAS.search.num_evals", 0),
        changed("bootstrapNAS.search.crossover_prob", 1.5),
        changed("bootstrapNAS.training.schedule.list_stage_descriptions", [{"epochs": 1}]),
        changed("bootstrapNAS.training.schedule.list_stage_descriptions.0.train_dims", ["widht"]),
        changed("bootstrapNAS.training.elasticity.width.overwrite_groups", [[]]),
        changed("compression", [CONFIG["compression"], CONFIG["compression"]]),
        changed("compression.params", {"warmup_start_epoch": 1}),
        changed("input_info", {"sample_size": [1]}),
    ],
)
def test_what_the_reader_refuses_by_name_type_or_range_is_not_valid(raw: Any) -> None:
    with pytest.raises(UserError):
        check_config(raw)
    assert not VALIDATOR.is_valid(raw)


def test_every_key_is_described() -> None:
    schema = json_schema()
    for section in sections(Document):
        described = schema if section is Document else schema["$defs"][section.__name__]
        for key, entry in described["properties"].items():
            holds_section = "$defs" in json.dumps(entry)
            assert entry.get("description") or holds_section, f"{section.__name__}.{key}"
            assert "](" not in entry.get("description", "")
    assert schema["$defs"]["Kernel"]["properties"]["max_num_kernels"]["description"].startswith("No effect: ")
    assert (
        EFFECTS["Depth.fixed_skipped_blocks"]
        == (schema["$defs"]["Depth"]["properties"]["fixed_skipped_blocks"]["description"])
    )


def test_defaults_of_the_search_are_not_nncfs() -> None:
    properties = json_schema()["$defs"][Search.__name__]["properties"]
    defaults = {name: entry["default"] for name, entry in properties.items() if "default" in entry}
    assert (defaults["num_evals"], defaults["population"]) == (SearchSettings().num_evals, SearchSettings().population)
    assert "mutation_prob" not in defaults


def test_the_schema_key_is_for_editors() -> None:
    assert check_config({"$schema": "anything", "input_info": []}).ignored == ()
