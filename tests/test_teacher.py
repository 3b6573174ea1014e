"""A teacher's outputs on all rows: computed once, found again, computed anew when anything has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import succeed
from conftest import TaskFiles, build_tiny_bert
from datasets import Dataset

from bootstrapnas.artefacts import load_tensors
from bootstrapnas.errors import UserError
from bootstrapnas.outputs import LOGITS, Output
from bootstrapnas.pipeline import teacher as teaching
from bootstrapnas.pipeline.arguments import DistillationArguments, StageTrainingArguments
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import load_tokenizer
from bootstrapnas.pipeline.teacher import _cache_key, _cached, _flat, prepare_lesson, with_teacher_outputs
from bootstrapnas.tasks import build_task_spec


class World:
    """A teacher, a task, a cache, and how often the teacher was asked."""

    def __init__(self, root: Path, teacher: Path, files: TaskFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.asked = root, 0
        self.teacher = Path(shutil.copytree(teacher, root / "teacher"))
        self.train = Path(shutil.copy(files.train, root / "train.jsonl"))
        self.validation = files.validation
        predict = teaching.predict

        def counted(*args: Any) -> Any:
            self.asked += 1
            return predict(*args)

        monkeypatch.setattr(teaching, "predict", counted)

    def outputs(self, length: int = 32, **settings: Any) -> list[list[float]]:
        spec = build_task_spec(train_file=self.train, validation_file=self.validation, max_seq_length=length)
        rows = Rows(spec, load_tokenizer(str(self.teacher)))
        arguments = StageTrainingArguments(output_dir="unused", **settings)
        train = with_teacher_outputs(rows, rows.split("train"), str(self.teacher), arguments, str(self.root / "cache"))
        return list(train["teacher_logits"])

    @property
    def kept(self) -> list[Path]:
        return sorted((self.root / "cache").iterdir())


@pytest.fixture
def world(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, tiny_bert_dir, tiny_task_files, monkeypatch)


def test_outputs_are_computed_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    first = world.outputs()
    assert f"teacher outputs written to {world.kept[0]}" in capsys.readouterr().err
    assert world.outputs() == first
    assert world.asked == 1
    assert capsys.readouterr().err == f"teacher outputs found in {world.kept[0]}\n"
    moved = world.root / "elsewhere"
    world.teacher.rename(moved)
    world.teacher = moved
    assert world.outputs() == first
    assert (world.asked, len(world.kept)) == (1, 1)


def another_teacher(world: World) -> None:
    build_tiny_bert(1).save_pretrained(world.teacher)


def another_text(world: World) -> None:
    lines = world.train.read_text().splitlines()
    row = json.loads(lines[5])
    lines[5] = json.dumps({**row, "text": "street " + row["text"]})
    world.train.write_text("\n".join(lines))


def rows_moved(world: World) -> None:
    lines = world.train.read_text().splitlines()
    world.train.write_text("\n".join([*lines[1:], lines[0]]))


@pytest.mark.parametrize("change", [another_teacher, another_text, rows_moved])
def test_a_change_is_a_miss(world: World, change: Callable[[World], None]) -> None:
    first = world.outputs()
    change(world)
    second = world.outputs()
    assert second != first
    assert (world.asked, len(world.kept)) == (2, 2)


@pytest.mark.parametrize("settings", [{"length": 6}, {"bf16": True}], ids=lambda settings: next(iter(settings)))
def test_length_and_precision_count(world: World, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = {"float32": torch.float32, "auto": torch.bfloat16}
    monkeypatch.setattr(teaching, "evaluation_dtype", lambda precision, device: dtypes[precision])
    world.outputs()
    world.outputs(**settings)
    assert (world.asked, len(world.kept)) == (2, 2)


@pytest.mark.parametrize("damage", ["cut", "garbled", "rows"])
def test_a_damaged_file_is_made_anew(world: World, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = world.outputs()
    (path,) = world.kept
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "garbled":
        path.write_bytes(b"\xff" * path.stat().st_size)
    else:
        teaching.save_tensors(path, {"logits": torch.ones(3), "logits.lengths": torch.tensor([3])}, {})
    capsys.readouterr()
    assert world.outputs() == first
    warning, written = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path} is corrupt: ")
    assert warning.endswith("; the teacher's outputs are computed anew")
    assert written == f"teacher outputs written to {path}"
    assert world.asked == 2
    assert load_tensors(path)[0]["logits"].shape == (96 * 3,)


def test_outputs_of_any_shape_survive_the_disk(tmp_path: Path) -> None:
    outputs = (Output("start", "tokens"), Output("tags", "tokens labels"), LOGITS)
    rows = [torch.randn(length, generator=torch.Generator().manual_seed(length)).numpy() for length in (3, 5, 2)]
    found = {
        "start": rows,
        "tags": [row[:, None] * [1.0, 2.0] for row in rows],
        "logits": [row[:2] for row in rows],
    }
    path = tmp_path / "outputs.safetensors"
    teaching.save_tensors(path, _flat(found), {})
    again = _cached(path, outputs, 3)
    assert again is not None
    for name, arrays in found.items():
        assert [array.tolist() for array in again[name]] == [array.tolist() for array in arrays]


def test_the_key_does_not_depend_on_how_rows_are_chunked() -> None:
    from datasets import concatenate_datasets

    rows = [{"input_ids": [1, 2]}, {"input_ids": [3]}, {"input_ids": [4, 5, 6]}]
    whole = Dataset.from_list(rows)
    parts = concatenate_datasets([Dataset.from_list(rows[:1]), Dataset.from_list(rows[1:])])
    shifted = Dataset.from_list([{"input_ids": [1]}, {"input_ids": [2, 3]}, {"input_ids": [4, 5, 6]}])

    def key(dataset: Dataset) -> str:
        return _cache_key("teacher", dataset, (LOGITS,), [0, 1], torch.float32)

    assert key(whole) == key(parts)
    assert key(whole.select([2, 0, 1]).select([1, 2, 0])) == key(whole)
    assert key(whole) != key(shifted)


def test_stages_share_a_cache(tmp_path: Path, world: World) -> None:
    common = {
        "model_name_or_path": world.teacher,
        "kd_teacher_model": world.teacher,
        "train_file": world.train,
        "validation_file": world.validation,
        "max_seq_length": 32,
        "kd_cache_dir": tmp_path / "cache",
        "max_steps": 1,
    }
    said = succeed("finetune", **common, output_dir=tmp_path / "one").err
    assert "teacher outputs written" in said
    said = succeed("finetune", **common, seed=1, output_dir=tmp_path / "two").err
    assert "teacher outputs found" in said
    assert world.asked == 1


def test_what_several_gpus_compute_inside_is_not_compared(
    tiny_bert_dir: Path, tiny_task_files: TaskFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageTrainingArguments, "n_gpu", 2)
    spec = build_task_spec(train_file=tiny_task_files.train, validation_file=tiny_task_files.validation)
    rows, training = Rows(spec, load_tokenizer(str(tiny_bert_dir))), StageTrainingArguments(output_dir="unused")
    kd = DistillationArguments(kd_teacher_model=str(tiny_bert_dir), kd_mode="hidden_states")
    with pytest.raises(UserError, match="--kd_mode hidden_states compares what one GPU computes, and there are 2"):
        prepare_lesson(rows, rows.split("train"), kd, training, build_tiny_bert())
