"""The task of a stage, named by flags or inherited, and its rows for one tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerBase

from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.arguments import TaskArguments
from bootstrapnas.tasks import (
    BUILTIN_TEXT,
    TASK_FILE,
    Collator,
    TaskData,
    TaskSpec,
    batches,
    build_collator,
    build_task_spec,
    compute_metrics,
    data_files,
    export_builtin,
    load_task,
    tokenize,
)

disable_progress_bars()


def task_settings(spec: TaskSpec) -> dict[str, Any]:
    """Return what of a task decides a stage's result (not where its files lie)."""
    places = ("dataset_dir", "train_file", "validation_file", "test_file")
    entry = json.loads(json.dumps(vars(spec)))
    return {"task": {key: value for key, value in entry.items() if key not in places}}


def data_inputs(spec: TaskSpec) -> dict[str, str]:
    """Return the files of a task by role, as inputs of a stage: their content decides its result."""
    return {f"{split}_data": str(path) for split, path in data_files(spec).items()}


def resolve_task(task: TaskArguments, *directories: str | None) -> TaskSpec:
    """Return the task that the flags name, or the one inherited from the first directory that has one.

    Flags that were given change the inherited task (its length, its number of rows, where its files lie).
    """
    limits: dict[str, Any] = {
        "max_seq_length": task.max_seq_length,
        "max_train_samples": task.max_train_samples,
        "max_validation_samples": task.max_eval_samples,
    }
    if task.task_name is not None or task.train_file is not None:
        return build_task_spec(
            task.task_name,
            dataset_dir=task.dataset_dir,
            train_file=task.train_file,
            validation_file=task.validation_file,
            test_file=task.test_file,
            text_columns=[c.strip() for c in task.text_columns.split(",")] if task.text_columns else None,
            label_column=task.label_column,
            **limits,
        )
    for directory in directories:
        if directory is not None and (Path(directory) / TASK_FILE).is_file():
            spec = TaskSpec.load(Path(directory) / TASK_FILE)
            changes: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
            if task.dataset_dir is not None:
                changes["dataset_dir"] = str(Path(task.dataset_dir).absolute())
            return replace(spec, **changes)
    looked = ", ".join(
        f"{directory} {f'has no {TASK_FILE}' if Path(directory).is_dir() else 'is no directory'}"
        for directory in directories
        if directory is not None
    )
    raise UserError(f"no task: pass --task_name or --train_file (there is none to inherit: {looked})")


def inherited_task(directory: str) -> TaskSpec:
    """Return the task of an artefact directory."""
    if not (Path(directory) / TASK_FILE).is_file():
        raise UserError(f"{directory} has no {TASK_FILE}: it was not made by this program")
    return TaskSpec.load(Path(directory) / TASK_FILE)


def with_fixed_data(spec: TaskSpec, directory: Path) -> TaskSpec:
    """Write the built-in data set below `directory`, so that later stages read the very same rows."""
    if spec.task_name != BUILTIN_TEXT or spec.dataset_dir is not None:
        return spec
    return replace(spec, dataset_dir=str(export_builtin(directory / "data").absolute()))


class Rows:
    """A task's rows for one tokenizer: tokenized splits and batches of true length."""

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size of evaluations must be at least 1, not {batch_size}")
        self.spec, self.tokenizer, self.batch_size = spec, tokenizer, batch_size
        self.data: TaskData = load_task(spec)
        self.collator: Collator = build_collator(tokenizer)

    def split(self, name: str) -> Dataset:
        """Return a tokenized split: ``train``, ``validation``, ``validation_mismatched`` or ``test``."""
        rows = getattr(self.data, name)
        if rows is None:
            raise UserError(f"task {self.spec.task_name} has no labelled split {name!r}")
        return tokenize(rows, self.tokenizer, self.spec)

    def batches(self, name: str) -> list[dict[str, Any]]:
        """Return a split as batches of similar length."""
        return batches(self.split(name), self.collator, self.batch_size)

    def labels(self, name: str) -> np.ndarray:
        """Return the labels of a split, shape [rows]."""
        return np.asarray(getattr(self.data, name)["label"])


def measure_logits(rows: Rows, split: str, logits: np.ndarray) -> dict[str, float]:
    """Return the task's metrics (fractions) of a model's outputs, shape [rows, labels]; `UserError` if it diverged."""
    check_finite(logits, "the model's outputs")
    return compute_metrics(rows.spec, logits, rows.labels(split))


def check_finite(logits: np.ndarray, whose: str) -> None:
    """Raise `UserError` if outputs hold NaN or infinity."""
    if not np.isfinite(logits).all():
        raise UserError(f"{whose} hold NaN or infinity: its training diverged; train it with a lower --learning_rate")
