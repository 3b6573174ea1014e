"""Stages that are killed with SIGKILL: the same command again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import LENGTH, succeed, write_config
from conftest import TaskFiles

from bootstrapnas.artefacts import digest, load_tensors, read_json
from bootstrapnas.pipeline.cli import to_arguments

PROJECT = Path(__file__).parents[1]
START_S = 90  # for a process to start and come to the point where it is killed, on a busy machine


class Runs:
    """The three stages that take long: how each is called, run once whole and once killed."""

    def __init__(self, root: Path, teacher: Path, config: Path) -> None:
        self.root = root
        training = {
            "model_name_or_path": teacher,
            "kd_teacher_model": teacher,
            "nncf_config": config,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "save_strategy": "steps",
            "save_steps": 4,
            "save_total_limit": 3,
        }
        self.flags: dict[str, dict[str, Any]] = {
            "train": {**training, "num_train_epochs": 6},
            "importance": training,
            "search": {
                "supernet_dir": root / "whole" / "train",
                "precision": "float32",
                "num_evals": 400,
                "population": 20,
            },
        }

    def directory(self, run: str, stage: str) -> Path:
        return self.root / run / stage

    def complete(self, run: str, stage: str) -> str:
        """Run a stage to its end, in this process; return what it said."""
        return succeed(stage, **self.flags[stage], output_dir=self.directory(run, stage)).err

    def kill(self, stage: str) -> None:
        """Start a stage in a process of its own and kill it when it is well under way."""
        directory = self.directory("killed", stage)
        flags = to_arguments({**self.flags[stage], "output_dir": directory})
        with (self.root / f"{stage}.log").open("w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "eftnas", stage, *flags],
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            under_way = UNDER_WAY[stage]
            deadline = time.monotonic() + START_S
            while not under_way(directory):
                assert process.poll() is None, (
                    f"{stage} ended before it was killed: {(self.root / log.name).read_text()}"
                )
                assert time.monotonic() < deadline, f"{stage} did not come far enough to be killed"
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert read_json(directory / "stage.json")["status"] == "running", f"{stage} was too fast to be killed"


def checkpoints(directory: Path) -> list[Path]:
    """Return the whole checkpoints, the oldest first."""
    found = [path for path in directory.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def has_checkpoint(step: int) -> Callable[[Path], bool]:
    return lambda directory: any(path.name == f"checkpoint-{step}" for path in checkpoints(directory))


def has_evaluations(count: int) -> Callable[[Path], bool]:
    def found(directory: Path) -> bool:
        log = directory / "evaluations.jsonl"
        return log.is_file() and log.read_bytes().count(b"\n") > count

    return found


UNDER_WAY = {
    "train": has_checkpoint(16),  # in the second of six epochs of twelve steps
    "importance": has_checkpoint(28),  # of 72 steps, while the threshold rises
    "search": has_evaluations(30),  # in the second of twenty generations
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> Runs:
    """The stages run whole (read-only) and killed (the tests' to resume; training twice)."""
    root = tmp_path_factory.mktemp("resume")
    teacher = root / "teacher"
    succeed(
        "finetune",
        model_name_or_path=tiny_bert_dir,
        train_file=tiny_task_files.train,
        validation_file=tiny_task_files.validation,
        max_seq_length=LENGTH,
        output_dir=teacher,
        num_train_epochs=4,
        learning_rate=1e-3,
        per_device_train_batch_size=16,
    )
    runs = Runs(root, teacher, write_config(root / "config.json"))
    for stage in runs.flags:
        runs.complete("whole", stage)
    with ThreadPoolExecutor() as pool:
        list(pool.map(runs.kill, runs.flags))
    shutil.copytree(runs.directory("killed", "train"), runs.directory("cut", "train"))
    return runs


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(path)[0]


def contents(directory: Path) -> dict[str, tuple[int, str]]:
    """Return modification time and digest of every file."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, digest(path)) for path in files}


def assert_equal_tensors(path: Path, expected: Path) -> None:
    found, wanted = tensors(path), tensors(expected)
    assert found.keys() == wanted.keys()
    different = [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)]
    assert not different


@pytest.mark.parametrize("stage", ["train", "importance"])
def test_killed_training_ends_with_the_same_tensors(runs: Runs, stage: str) -> None:
    said = runs.complete("killed", stage)
    assert f"{stage}: resuming from checkpoint-" in said
    file = {"train": "model.safetensors", "importance": "importance.safetensors"}[stage]
    killed, whole = runs.directory("killed", stage), runs.directory("whole", stage)
    assert_equal_tensors(killed / file, whole / file)
    assert digest(killed / file) == digest(whole / file)
    assert not checkpoints(killed)
    assert (killed / "eval_results.json").read_text() == (whole / "eval_results.json").read_text()


def test_killed_search_ends_with_the_same_front(runs: Runs) -> None:
    killed, whole = runs.directory("killed", "search"), runs.directory("whole", "search")
    evaluated = (killed / "evaluations.jsonl").read_bytes().count(b"\n") - 1
    assert evaluated < (whole / "evaluations.jsonl").read_bytes().count(b"\n") - 1
    assert f"search: {evaluated} evaluations found" in runs.complete("killed", "search")
    for name in ("pareto.json", "search_progression.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_checkpoint_cut_in_the_middle_is_passed_over(runs: Runs) -> None:
    *older, newest = checkpoints(runs.directory("cut", "train"))
    assert older
    state = newest / "trainer_state.json"
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    said = runs.complete("cut", "train")
    assert f"train: resuming from {older[-1].name}" in said.splitlines()
    path = Path("train", "model.safetensors")
    assert_equal_tensors(runs.root / "cut" / path, runs.root / "whole" / path)


@pytest.mark.parametrize("stage", ["train", "importance", "search"])
def test_a_finished_stage_is_found_again_and_left_alone(runs: Runs, stage: str) -> None:
    before = contents(runs.directory("whole", stage))
    said = runs.complete("whole", stage)
    assert said.splitlines() == [f"{stage}: finished already in {runs.directory('whole', stage)}"]
    assert contents(runs.directory("whole", stage)) == before
