"""What long work shows while it runs, and what it reports to integrations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command_line import LENGTH, succeed, write_config
from conftest import TaskFiles
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import integration_utils

from bootstrapnas.pipeline import arguments
from bootstrapnas.progress import Ticker
from bootstrapnas.training import _Progress


class Ledger(TrainerCallback):
    """An integration that keeps what it is told."""

    entries: list[dict[str, Any]] = []  # noqa: RUF012 - of the class, as the Trainer makes the instance

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.entries.append({"step": state.global_step, **logs})


def test_an_integration_and_the_terminal_are_told_of_subnets(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "ledger", Ledger)
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["ledger"])
    monkeypatch.setattr(Ledger, "entries", [])
    said = succeed(
        "train",
        model_name_or_path=tiny_bert_dir,
        train_file=tiny_task_files.train,
        validation_file=tiny_task_files.validation,
        max_seq_length=LENGTH,
        nncf_config=write_config(tmp_path / "config.json"),
        output_dir=tmp_path / "supernet",
        num_train_epochs=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        logging_steps=2,
        eval_strategy="epoch",
        report_to="ledger",
    ).err
    losses = [entry for entry in Ledger.entries if "loss" in entry]
    assert [entry["step"] for entry in losses] == [2, 4, 6, 8, 10, 12]
    for entry in losses:
        each = [entry[f"loss_{name}"] for name in ("max", "random", "min")]
        assert entry["loss"] == pytest.approx(sum(each) / 3, rel=1e-4)
        assert "learning_rate" in entry
    evaluations = [entry for entry in Ledger.entries if "eval_accuracy_min" in entry]
    assert [entry["step"] for entry in evaluations] == [6, 12]
    assert all("eval_accuracy_max" in entry for entry in evaluations)
    lines = [line for line in said.splitlines() if line.startswith("supernet: ")]
    assert len(lines) >= 10
    shown = r"loss [\d.]+ \(max [\d.]+, random [\d.]+, min [\d.]+\), random \d+% of the MACs, lr [\d.e-]+"
    assert re.fullmatch(rf"supernet: 11/12, \d+ s, \d+ s left, {shown}", lines[-2])


def test_time_left_goes_by_the_steps_since_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that resumes at step 50 of 100 has not done fifty steps in no time."""
    with Ticker("work", 100) as ticker:
        ticker.update(50)
        ticker._started -= 30.0
        ticker.update(60, "loss 1")
        ticker.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "work: 50/100, 0 s",
        "work: 60/100, 30 s, 120 s left, loss 1",
        "work: 100/100, 30 s",
    ]


def test_a_stage_that_ends_before_its_learning_rate_is_done_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    progress, state = _Progress("importance", stop_after=10), TrainerState(max_steps=60)
    for state.global_step in (0, 10):
        progress.on_train_begin(None, state, TrainerControl())
        progress.close()
    assert capsys.readouterr().err.splitlines() == ["importance: 0/10, 0 s", "importance: 10/10, 0 s"]


def test_a_log_moves_before_the_first_tenth_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    def later(seconds: float) -> None:
        ticker._started -= seconds
        ticker._told -= seconds

    with Ticker("work", 1000) as ticker:
        ticker.update(0)
        later(50)
        ticker.update(1)
        later(50)
        ticker.update(2)
        later(900)
        ticker.update(20)
        later(150)
        ticker.update(23)
        later(150)
        ticker.update(26)
    assert capsys.readouterr().err.splitlines() == [
        "work: 0/1000, 0 s",
        "work: 2/1000, 100 s, 13 h 52 min left",
        "work: 20/1000, 17 min, 13 h 37 min left",
        "work: 26/1000, 22 min, 13 h 32 min left",
    ]
