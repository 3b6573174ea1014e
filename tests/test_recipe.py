"""``eftnas run``: all stages from one recipe, found again, refused when it changes, started over."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import contents, eftnas, succeed, write_config
from conftest import TaskFiles

from bootstrapnas.artefacts import open_stage, read_json, write_text
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline import export
from eftnas import recipe as recipe_module
from eftnas.recipe import Run, merged, read_recipe, resolve_model, with_effect

ROOT = Path(__file__).parents[1]
BRIEF = {"per_device_train_batch_size": 16, "learning_rate": 1e-3}


def write_recipe(directory: Path, model: Path, files: TaskFiles, **changes: Any) -> Path:
    recipe = {
        "output_dir": str(directory / "run"),
        "model_name_or_path": str(model),
        "nncf_config": str(write_config(directory / "config.json")),
        "task": {
            "train_file": str(files.train),
            "validation_file": str(files.validation),
            "test_file": str(files.test),
        },
        "training": {"bf16": "auto"},
        "stages": {
            "finetune": {**BRIEF, "num_train_epochs": 2},
            "importance": BRIEF,
            "train": {**BRIEF, "num_train_epochs": 1},
            "search": {"num_evals": 10, "population": 5, "objectives": "divergence,macs"},
        },
        "subnets": {"half": {"max_macs_ratio": 0.6}, "least": {"subnet": "min"}},
        "quantise": {"half": {"quant_mode": "int8", "calibration_samples": 8}},
        "report": {"split": "test", "repeats": 2},
        "variants": {"other": {"output_dir": str(directory / "other"), "stages": {"train": {"num_train_epochs": 3}}}},
        **changes,
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.mark.parametrize("fast", [True, False])
def test_float32_is_told_where_bfloat16_is_no_faster(
    fast: bool,
    tmp_path: Path,
    tiny_bert_dir: Path,
    tiny_task_files: TaskFiles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def first_stage(self: Run, command: str, wired: dict[str, Any], chosen: dict[str, Any]) -> None:
        asked.append(wired["bf16"])
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe_module, "fast_bfloat16", lambda device: fast)
    monkeypatch.setattr(Run, "stage", first_stage)
    recipe = read_recipe(str(write_recipe(tmp_path, tiny_bert_dir, tiny_task_files)))
    with pytest.raises(KeyboardInterrupt):
        Run(recipe, tmp_path / "run").all()
    assert asked == [fast]
    assert ("bf16 auto: float32" in capsys.readouterr().err) == (not fast)


def test_a_recipe_runs_is_found_again_and_refuses_to_change(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles
) -> None:
    recipe, run = write_recipe(tmp_path, tiny_bert_dir, tiny_task_files), tmp_path / "run"
    first = succeed("run", config=recipe)
    for name in ("half", "least"):
        assert (run / "subnets" / name / "model.safetensors").is_file()
        assert (run / "ir" / name / "openvino_model.xml").is_file()
        assert "Measurements" in (run / "subnets" / name / "README.md").read_text()
    report = read_json(run / "report" / "report.json")
    assert [row["name"] for row in report["rows"]] == ["full", "half", "least", "half int8"]
    macs = [row["macs"] for row in report["rows"]]
    assert macs[2] <= macs[1] == macs[3] <= 0.6 * macs[0]
    assert report["rows"][3]["size_mb"] == pytest.approx(
        (run / "ir" / "half-int8" / "openvino_model.bin").stat().st_size / 1e6
    )
    assert report["rows"][3]["size_mb"] < 0.5 * report["rows"][1]["size_mb"]
    assert "latency" in first.out
    assert "half" in first.out
    search = read_json(run / "search" / "stage.json")
    assert search["settings"]["ref_acc"] == read_json(run / "teacher" / "eval_results.json")["accuracy"]
    assert search["inputs"]["teacher"]["path"] == str(run / "teacher")

    weights = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    second = succeed("run", config=recipe)
    assert second.err.count("finished already") == 10  # four stages, four exports, two extractions
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == weights

    changed = yaml.safe_load(recipe.read_text())
    changed["stages"]["finetune"]["num_train_epochs"] = 1
    changed |= {"subnets": {"least": {"subnet": "min"}}, "quantise": {}}
    recipe.write_text(yaml.safe_dump(changed))
    refused = eftnas("run", config=recipe)
    assert refused.status == 2
    assert "holds another run (num_train_epochs: 2.0 there, 1.0 here); the recipe or its inputs" in refused.err
    assert "--fresh" in refused.err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == weights
    succeed("run", config=recipe, fresh=True)
    assert read_json(run / "teacher" / "stage.json")["settings"]["num_train_epochs"] == 1
    assert {path.name for path in (run / "ir").iterdir()} == {"full", "least"}, "what was there is deleted"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle_name_or_path": "x"}, "unknown key 'modle_name_or_path'; did you mean 'model_name_or_path'?"),
        ({"stages": {"finetun": {}}}, "unknown key 'stages.finetun'; did you mean 'finetune'?"),
        ({"subnets": {}}, "subnets: "),
        ({"quantise": {"haf": {}}}, "quantise: there is no subnet 'haf'; did you mean 'half'?"),
        ({"student": "master"}, "student: "),
        ({"report": {"split": "tset"}}, "report.split: "),
    ],
)
def test_a_mistaken_recipe_is_told_in_a_line(
    change: dict[str, Any], message: str, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert_dir, tiny_task_files, **change)
    outcome = eftnas("run", config=recipe)
    assert outcome.status == 2
    assert outcome.err.startswith(f"eftnas: error: recipe {recipe}: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_variants_change_a_recipe(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> None:
    recipe = write_recipe(tmp_path, tiny_bert_dir, tiny_task_files)
    plain, other = read_recipe(str(recipe)), read_recipe(str(recipe), "other")
    assert plain.stages.train["num_train_epochs"] == 1
    assert other.stages.train == {**plain.stages.train, "num_train_epochs": 3}
    assert other.output_dir != plain.output_dir
    with pytest.raises(UserError, match=r"has no variant 'lonk' \(it has: other\)"):
        read_recipe(str(recipe), "lonk")
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}) == {
        "a": {"b": 4, "c": 2},
        "d": {"e": 5},
    }


def test_subnets_may_be_fine_tuned(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles, macs_as_ms: object
) -> None:
    """Without an NNCF config, too. The report says what a search by latency predicted of them, and of which rows it is.

    There are none of the split that the recipe names.
    """
    changes = {"subnets": {"least": {"subnet": "0"}}, "nncf_config": None, "quantise": {}}
    split = {"split": "validation_mismatched", "repeats": 2}
    recipe = write_recipe(tmp_path, tiny_bert_dir, tiny_task_files, **changes, report=split)
    plain = yaml.safe_load(recipe.read_text())
    plain["stages"]["finetune-subnet"] = {**BRIEF, "num_train_epochs": 1}
    plain["stages"]["search"]["objectives"] = "divergence,latency"
    recipe.write_text(yaml.safe_dump(plain))
    said, run = succeed("run", config=recipe).err, tmp_path / "run"
    assert said.count("teacher outputs written to") == 1  # importance, train and this stage share them
    assert said.count("teacher outputs found in") == 2
    extracted, tuned = (read_json(run / kind / "least" / "subnet.json") for kind in ("extracted", "subnets"))
    assert tuned["costs"] == extracted["costs"]
    assert Path(tuned["finetuned"]["model"]["path"]) == run / "extracted" / "least"
    assert "Measurements" in (run / "subnets" / "least" / "README.md").read_text()
    ir = read_json(run / "ir" / "least" / "stage.json")
    assert Path(ir["inputs"]["model"]["path"]) == run / "subnets" / "least"
    rows = read_json(run / "report" / "report.json")["rows"]
    assert [row["name"] for row in rows] == ["full", "least"]
    assert rows[1]["predicted_latency_ms"] == read_json(run / "search" / "pareto.json")["front"][0]["values"]["latency"]
    assert rows[0]["predicted_latency_ms"] > rows[1]["predicted_latency_ms"]
    assert (
        "warning: report.split validation_mismatched: task files has no labelled split 'validation_mismatched'; the "
        "report is of the validation rows\n"
    ) in said
    text = (run / "report" / "report.md").read_text()
    assert "- accuracy on the 48 rows of the validation split, by the IR computed in float32." in text
    assert "| predicted latency (ms) |" in text
    assert "- Predicted latencies are the search's, by its latency table: fp32 weights, f32, batch 1, " in text


def test_a_model_may_lie_in_a_package() -> None:
    assert Path(resolve_model("package:json/tool")).parent == Path(json.__file__).parent
    assert resolve_model("bert-base-uncased") == "bert-base-uncased"
    with pytest.raises(UserError, match="'no_such_package' is not installed"):
        resolve_model("package:no_such_package/model")


@pytest.mark.parametrize(
    ("stages", "others", "told"),
    [
        ([], ["thesis.tex"], "holds thesis.tex, which no run wrote"),
        ([], ["teacher/lesson.md"], "holds teacher, which no run wrote"),
        ([], ["space.json"], "holds no stage of one; delete it yourself"),
        (["teacher", "supernet"], ["space.json", "thesis.tex"], "holds thesis.tex, which no run wrote"),
        (["teacher", "mine"], [], "holds mine, which no run wrote"),
        (["teacher", "ir/full"], ["ir/mine/weights"], "holds ir/mine, which no run wrote"),
        (["teacher"], ["data/train.jsonl"], "holds data, which no run wrote"),
        (["teacher", "ir/full"], ["space.json", ".space.json.k3x", "teacher_outputs/1.safetensors"], None),
        ([], [], None),
    ],
)
def test_fresh_deletes_runs_only(
    stages: list[str],
    others: list[str],
    told: str | None,
    tmp_path: Path,
    tiny_bert_dir: Path,
    tiny_task_files: TaskFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, root = write_recipe(tmp_path, tiny_bert_dir, tiny_task_files), tmp_path / "run"
    root.mkdir()
    for name in stages:
        open_stage(root / name, {"teacher": "finetune", "ir/full": "export"}.get(name, "train"), {}, {})
    for name in others:
        write_text(root / name, "years of work")
    before = contents(root)
    monkeypatch.setattr(Run, "all", lambda self: self.root)
    outcome = eftnas("run", config=recipe, fresh=True)
    if told is None:
        assert (outcome.status, list(root.iterdir())) == (0, [])
    else:
        assert outcome.status == 2
        assert outcome.err == f"eftnas: error: --fresh deletes runs only: output_dir {root} {told}\n"
        assert contents(root) == before


@pytest.mark.parametrize(
    ("task", "place", "deleted"),
    [("builtin-arithmetic", "data", True), ("builtin-arithmetic", "..", False), ("mine", "data", False)],
)
def test_fresh_deletes_the_rows_that_a_run_of_another_task_made(
    task: str,
    place: str,
    deleted: bool,
    tmp_path: Path,
    tiny_bert_dir: Path,
    tiny_task_files: TaskFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, root = write_recipe(tmp_path, tiny_bert_dir, tiny_task_files), tmp_path / "run"
    rows = root / "data" / "train.jsonl"
    write_text(rows, "{}")
    write_text(root / place / "train.jsonl", "{}")
    settings = {"task": {"task_name": task}}
    open_stage(root / "teacher", "finetune", settings, {"train_data": root / place / "train.jsonl"}).complete()
    monkeypatch.setattr(Run, "all", lambda self: self.root)
    assert eftnas("run", config=recipe, fresh=True).status == (0 if deleted else 2)
    assert rows.is_file() is not deleted


@contextmanager
def held_by_another(directory: Path) -> Iterator[None]:
    """What another process does that works in a directory."""
    file = os.open(directory, os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
    os.close(file)


def test_two_runs_at_once_are_refused(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> None:
    recipe, root = write_recipe(tmp_path, tiny_bert_dir, tiny_task_files), tmp_path / "run"
    write_text(root / "teacher" / "stage.json", "{}")
    with held_by_another(root):
        for fresh in (False, True):
            outcome = eftnas("run", config=recipe, fresh=fresh)
            told = f"another run works in {root}: wait until it has ended, or choose another"
            assert (outcome.status, outcome.out, outcome.err) == (2, "", f"eftnas: error: {told}\n")
    assert [path.name for path in root.iterdir()] == ["teacher"]


def test_what_is_refused_leaves_the_directory_that_another_run_has_just_made(
    tmp_path: Path, tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with ExitStack() as other:

        def begin(*_: Any) -> tuple[None, None]:
            write_text(out / "stage.json", "{}")
            other.enter_context(held_by_another(out))
            return None, None

        monkeypatch.setattr(export, "check", begin)
        outcome = eftnas("export", model_dir=tiny_bert_dir, output_dir=out)
        assert outcome.status == 2
        assert outcome.err.startswith(f"eftnas: error: another run works in {out}: ")
        assert (out / "stage.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("command", "chosen", "idle"),
    [
        ("train", {}, set()),
        ("train", {"kd_mode": "hidden_states"}, {"kd_cache_dir"}),
        ("search", {"objectives": "divergence,macs"}, set()),
        ("search", {"num_evals": 40}, {"kd_teacher_model"}),
        ("importance", {"criterion": "movement"}, set()),
        ("importance", {"criterion": "l1"}, {"kd_cache_dir", "kd_teacher_model", "learning_rate"}),
    ],
)
def test_a_run_wires_no_flag_in_vain(tmp_path: Path, command: str, chosen: dict[str, Any], idle: set[str]) -> None:
    config = write_config(tmp_path / "config.json")
    wired = {"nncf_config": config, "kd_teacher_model": "t", "kd_cache_dir": "c", "learning_rate": 1e-3}
    assert set(wired) - set(with_effect(command, wired, chosen)) == idle
    in_config = write_config(tmp_path / "other.json", lambda raw: raw.update(kd_mode="hidden_states"))
    assert "kd_cache_dir" not in with_effect(command, {**wired, "nncf_config": in_config}, chosen)


def test_the_quick_start_is_a_valid_recipe() -> None:
    path = ROOT / "running_commands" / "quickstart.yaml"
    plain, long = read_recipe(str(path)), read_recipe(str(path), "long")
    assert plain.nncf_config is not None
    assert (ROOT / plain.nncf_config).is_file()
    assert long.stages.train["num_train_epochs"] == 3 * plain.stages.train["num_train_epochs"]
    assert list(plain.subnets) == ["half", "third", "best"]
