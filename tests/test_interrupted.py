"""Stages that are interrupted or find no room to write: the same command again ends as if nothing had happened.

`tests/test_resume.py` kills processes; here a stage is interrupted in the tests' own process, so that many ways of
training can be tried. Dropout is on, as in the tiny BERT's config.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import LENGTH, eftnas, interrupted_at, succeed, write_config
from conftest import TaskFiles

from bootstrapnas.artefacts import load_tensors, read_json

STAGES = [
    {"train_dims": ["width"], "epochs": 1, "init_lr": 1e-3, "width_indicator": 2, "sample_rate": 2},
    {"train_dims": ["width", "depth"], "epochs": 2, "init_lr": 5e-4, "width_indicator": -1, "depth_indicator": 2},
]
INNER = {"kd_mode": "self_attention_distillation"}
ROWS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # name: (stage, optimiser step at which it is interrupted, flags); checkpoints every 4 steps, 12 steps an epoch
    "finetune, random order": ("finetune", 17, {"train_sampling_strategy": "random"}),
    "finetune, best epoch": (
        "finetune",
        30,
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "learning_rate": 2e-2},
    ),
    "train, two stages": ("train", 18, {}),
    "train, accumulation": ("train", 7, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    "train, hidden states and relations": ("train", 18, INNER),
    # within the warm-up it is killed in test_resume.py
    "importance before the warm-up": ("importance", 7, {}),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> Path:
    directory = tmp_path_factory.mktemp("interrupted") / "teacher"
    files = {"train_file": tiny_task_files.train, "validation_file": tiny_task_files.validation}
    succeed(
        "finetune", model_name_or_path=tiny_bert_dir, **files, max_seq_length=LENGTH, output_dir=directory,
        num_train_epochs=2, learning_rate=1e-3, per_device_train_batch_size=16,
    )  # fmt: skip
    return directory


@pytest.mark.parametrize("name", ROWS)
def test_an_interrupted_stage_ends_with_the_same_tensors(name: str, teacher: Path, tmp_path: Path) -> None:
    stage, stop, changes = ROWS[name]

    def stages(config: dict[str, Any]) -> None:
        config["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"] = STAGES

    flags: dict[str, Any] = {
        "model_name_or_path": teacher,
        "kd_teacher_model": teacher,
        "per_device_train_batch_size": 8,
        "save_strategy": "steps",
        "save_steps": 4,
        "logging_steps": 3,
    }
    if stage == "finetune":
        flags |= {"learning_rate": 1e-3, "num_train_epochs": 3, "dropout": 0.2}
    else:
        flags["nncf_config"] = write_config(tmp_path / "config.json", stages)
    flags |= changes
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    succeed(stage, **flags, output_dir=whole)
    with interrupted_at(stop):
        outcome = eftnas(stage, **flags, output_dir=cut)
    assert outcome.status == 130
    assert outcome.err.endswith("eftnas: interrupted; the same command resumes\n")
    assert read_json(cut / "stage.json")["status"] == "running"
    torch.manual_seed(99)  # what the process did before does not count
    said = succeed(stage, **flags, output_dir=cut).err
    assert f"{stage}: resuming from checkpoint-{4 * (stop // 4)}" in said
    file = "importance.safetensors" if stage == "importance" else "model.safetensors"
    found, wanted = (load_tensors(directory / file)[0] for directory in (cut, whole))
    assert [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)] == []
    assert (cut / "eval_results.json").read_text() == (whole / "eval_results.json").read_text()
    if stage == "train":
        assert (cut / "sampled.json").read_bytes() == (whole / "sampled.json").read_bytes(), "earlier losses count"
    assert not list(cut.glob("checkpoint-*"))


# -- a full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: writes fail in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["checkpoint", "optimiser", "model", "scores", "cache", "ir"])
def test_a_full_disk_is_told_in_a_line_and_the_stage_resumes(
    what: str, teacher: Path, tmp_path: Path, tiny_task_files: TaskFiles
) -> None:
    flags: dict[str, Any] = {"model_name_or_path": teacher, "per_device_train_batch_size": 96, "num_train_epochs": 1}
    command, size = "finetune", (teacher / "model.safetensors").stat().st_size
    limit = size // 2
    if what == "optimiser":
        limit = int(size * 1.5)  # Adam's two moments are twice the model
    elif what == "model":
        flags["save_strategy"] = "no"
    elif what == "scores":
        command, limit = "importance", 6000
        flags |= {"criterion": "l1", "criterion_batches": 1}
    elif what == "cache":
        flags |= {"kd_teacher_model": teacher, "kd_cache_dir": tmp_path / "cache", "save_strategy": "no"}
        rows = tiny_task_files.train.read_text() * 10
        (tmp_path / "train.jsonl").write_text(rows)
        flags |= {"train_file": tmp_path / "train.jsonl", "validation_file": tiny_task_files.validation}
        limit = 6000
    elif what == "ir":
        command, flags = "export", {"model_dir": teacher}
    out = tmp_path / "out"
    with files_at_most(limit):
        outcome = eftnas(command, **flags, output_dir=out)
    told = [line for line in outcome.err.splitlines() if line.startswith("eftnas: ")]
    assert outcome.status == 2, outcome.err
    assert len(told) == 1, outcome.err
    assert told[0].startswith("eftnas: error: cannot write ")
    assert f"{out}/." not in told[0], "a temporary directory is nobody's business"
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    assert not left or read_json(out / "stage.json")["status"] == "running"
    assert not [name for name in left if name.startswith("checkpoint-")]
    assert not list(tmp_path.glob("cache/*"))
    succeed(command, **flags, output_dir=out)
    assert read_json(out / "stage.json")["status"] == "complete"
