"""The task of a stage, named by flags or inherited, and its rows for one tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerBase

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import GROUP, VOCABULARY, Outputs
from bootstrapnas.pipeline.arguments import TaskArguments
from bootstrapnas.tasks import (
    BUILTINS,
    SETTINGS,
    TASK_FILE,
    Collator,
    Generation,
    TaskData,
    TaskSpec,
    batches,
    build_collator,
    build_task_spec,
    changed_settings,
    compute_metrics,
    data_files,
    export_builtin,
    holds_out,
    load_task,
    tokenize,
    tokenize_to_measure,
    training_columns,
)

disable_progress_bars()

SPLITS = ("validation", "validation_mismatched", "test", "train")
_TRAINED_ON = ("task_name", "dataset_dir", "train_file")
_MOST_LOGITS = 1 << 28  # that are computed of a batch to evaluate on: 1 GiB at float32


def task_settings(spec: TaskSpec) -> dict[str, Any]:
    """Return what of a task decides a stage's result (not where its files lie)."""
    places = ("dataset_dir", "train_file", "validation_file", "test_file")
    entry = json.loads(json.dumps(asdict(spec)))
    return {"task": {key: value for key, value in entry.items() if key not in places}}


def data_inputs(spec: TaskSpec) -> dict[str, str]:
    """Return the files of a task by role, as inputs of a stage: their content decides its result."""
    return {f"{split}_data": str(path) for split, path in data_files(spec).items()}


def resolve_task(task: TaskArguments, *directories: str | None) -> TaskSpec:
    """Return the task that the flags name, or the one inherited from the first directory that has one.

    Flags that were given change the inherited task (its length, its number of rows, where its files lie).

    Raises
    ------
    UserError
        If no task is named nor inherited, or other training rows would validate than did in the directory.
    """
    limits: dict[str, Any] = {
        "max_seq_length": task.max_seq_length,
        "max_train_samples": task.max_train_samples,
        "max_validation_samples": task.max_eval_samples,
        "val_set_size": task.val_set_size,
    }
    settings: dict[str, dict[str, Any]] = {
        name: {field.name: value for field in fields(which) if (value := getattr(task, field.name)) is not None}
        for name, which in SETTINGS.items()
    }
    found = [directory for directory in directories if directory and (Path(directory) / TASK_FILE).is_file()]
    if task.task_name is not None or task.train_file is not None:
        spec = build_task_spec(
            task.task_name,
            dataset_dir=task.dataset_dir,
            train_file=task.train_file,
            validation_file=task.validation_file,
            test_file=task.test_file,
            text_columns=[c.strip() for c in task.text_columns.split(",")] if task.text_columns else None,
            label_column=task.label_column,
            metric=task.metric,
            answers=settings["answers"],
            instructions=settings["instructions"],
            masking=settings["masking"],
            **limits,
        )
        if found and holds_out(spec):
            before = TaskSpec.load(Path(found[0]) / TASK_FILE)
            if all(getattr(spec, name) == getattr(before, name) for name in _TRAINED_ON):
                _check_held_out(spec, before, found[0])
        return spec
    if found:
        before = TaskSpec.load(Path(found[0]) / TASK_FILE)
        changes: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
        if task.dataset_dir is not None:
            changes["dataset_dir"] = str(Path(task.dataset_dir).absolute())
        changes |= _files_of_its_own(task, before, found[0])
        has = {name: getattr(before, name) for name in SETTINGS}
        changes |= changed_settings(has, settings, before.task_name)
        if "evaluate_by" in settings["instructions"]:  # other metrics come of it
            changes["metric"] = ""
        spec = replace(before, **changes)
        _check_held_out(spec, before, found[0])
        return spec if task.metric is None else replace(spec, metric=spec.metric_named(task.metric))
    sources = [directory for directory in directories if directory is not None]
    missing = [directory for directory in sources if not Path(directory).is_dir()]
    if missing:
        raise UserError(
            f"{missing[0]} is no directory, so no task can be inherited from it; if it is a hub id, pass --task_name "
            "or --train_file"
        )
    looked = ", ".join(f"{directory} has no {TASK_FILE}" for directory in sources)
    raise UserError(f"no task: pass --task_name or --train_file (there is none to inherit: {looked})")


def _files_of_its_own(task: TaskArguments, before: TaskSpec, directory: str) -> dict[str, Any]:
    """Return what rows in files of their own change in an inherited task."""
    given = {name: value for name in ("validation_file", "test_file") if (value := getattr(task, name)) is not None}
    if given and before.train_file is None:
        raise UserError(
            f"--{next(iter(given))} is for tasks with a --train_file; {before.task_name}, which is inherited from "
            f"{directory}, takes its files from --dataset_dir"
        )
    found: dict[str, Any] = {name: str(Path(value).absolute()) for name, value in given.items()}
    return found | ({"val_set_size": task.val_set_size} if "validation_file" in given else {})


def _check_held_out(spec: TaskSpec, before: TaskSpec, directory: str) -> None:
    """Raise `UserError` if other training rows would validate than did in a directory, which has learnt the others."""
    if spec.val_set_size == before.val_set_size or not holds_out(spec):
        return
    now, then = (
        "a tenth of the rows" if each.val_set_size is None else f"--val_set_size {each.val_set_size}"
        for each in (spec, before)
    )
    raise UserError(
        f"{now} would be other rows than those held out of the training of {directory} ({then}), which has learnt some "
        "of them; --max_eval_samples takes fewer of the same"
    )


def has_task(task: TaskArguments, directory: str) -> bool:
    """Return whether the flags name a task, or the directory has one to inherit."""
    return task.task_name is not None or task.train_file is not None or (Path(directory) / TASK_FILE).is_file()


def inherited_task(directory: str) -> TaskSpec:
    """Return the task of an artefact directory."""
    if not (Path(directory) / TASK_FILE).is_file():
        raise UserError(f"{directory} has no {TASK_FILE}: it was not made by this program")
    return TaskSpec.load(Path(directory) / TASK_FILE)


def check_writing(task: TaskArguments, spec: TaskSpec) -> None:
    """Raise `UserError` if flags say how texts are written to measure a model, and none are."""
    for field in fields(Generation):
        if spec.instructions is not None and spec.generation is None and getattr(task, field.name) is not None:
            raise UserError(
                f"--{field.name} is for --evaluate_by generate: task {spec.task_name} is measured by "
                f"{spec.instructions.evaluate_by} here, for which nothing is written"
            )


def check_split(name: str) -> None:
    """Raise `UserError` if no task has a split of that name."""
    if name not in SPLITS:
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, not {name!r}")


def with_fixed_data(spec: TaskSpec, directory: Path) -> TaskSpec:
    """Write a built-in data set below `directory`, so that later stages read the very same rows."""
    if spec.task_name not in BUILTINS or spec.dataset_dir is not None:
        return spec
    return replace(spec, dataset_dir=str(export_builtin(directory / "data", spec.task_name).absolute()))


@dataclass(frozen=True)
class Part:
    """Some rows of a split: what they are measured with, and in which batches."""

    spec: TaskSpec
    rows: Dataset
    features: Dataset
    batches: list[dict[str, Any]]

    def measure(self, outputs: Outputs) -> dict[str, float]:
        """Return the task's metrics (fractions) of a model's outputs on them; `UserError` if it diverged."""
        check_finite(outputs, "the model's outputs")
        return compute_metrics(self.spec, outputs, self.rows, self.features)


class Rows:
    """A task's rows for one tokenizer: tokenized splits and batches of true length.

    Rows of the test split are limited for a measurement alone, by `max_test_samples`: no later stage inherits that.
    """

    def __init__(
        self,
        spec: TaskSpec,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
        max_test_samples: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size of evaluations must be at least 1, not {batch_size}")
        self.spec, self.tokenizer, self.batch_size = spec, tokenizer, batch_size
        self.data: TaskData = load_task(spec, max_test_samples)
        self.collator: Collator = build_collator(tokenizer, spec)
        self._features: dict[str, Dataset] = {}
        self._learnt: dict[str, Dataset] = {}

    def rows(self, name: str) -> Dataset:
        """Return the rows of a split: ``train``, ``validation``, ``validation_mismatched`` or ``test``."""
        return self.data.split(name)

    def split(self, name: str) -> Dataset:
        """Return a tokenized split to train on; kept, as a criterion of importance looks at it first."""
        if name not in self._learnt:
            features = tokenize(self.rows(name), self.tokenizer, self.spec)
            self._learnt[name] = features.select_columns(training_columns(features, self.collator))
        return self._learnt[name]

    def features(self, name: str) -> Dataset:
        """Return a tokenized split with all that decoding needs; kept, as a search measures it many times."""
        if name not in self._features:
            self._features[name] = tokenize_to_measure(self.rows(name), self.tokenizer, self.spec)
        return self._features[name]

    def batches(self, name: str, *, tail: bool = False) -> list[dict[str, Any]]:
        """Return a split as batches of similar length, to evaluate on: inputs and ``index``.

        With `tail` they may be larger: they are for `predict`, which computes the outputs of the last tokens only.
        """
        return self._batches(self.features(name), tail=tail)

    def parts(self, name: str, rows: int) -> list[Part]:
        """Return a split in random parts of at least so many rows (the same ones each time), to evaluate one by one."""
        whole = self.rows(name)
        order = list(range(len(whole)))
        Random(self.spec.seed).shuffle(order)
        starts = range(0, max(len(order) - rows + 1, 1), rows)
        ends = [*starts[1:], len(order)]
        return [self._part(whole.select(order[start:end])) for start, end in zip(starts, ends, strict=True)]

    def _part(self, rows: Dataset) -> Part:
        features = tokenize_to_measure(rows, self.tokenizer, self.spec)
        return Part(self.spec, rows, features, self._batches(features, tail=True))

    def _batches(self, features: Dataset, *, tail: bool) -> list[dict[str, Any]]:
        wanted = (*self.collator.inputs, *self.collator.read, "length", GROUP)
        inputs = [column for column in features.column_names if column in wanted]
        outputs = [output for output in self.spec.kind.outputs if output.last == VOCABULARY]
        if self.spec.generation is not None or not outputs:
            return list(batches(features.select_columns(inputs), self.collator, self.batch_size))
        found = (output.reduction.start for output in outputs if tail and output.reduction is not None)
        starts = next((name for name in found if name in inputs), None)
        most = _MOST_LOGITS // len(self.tokenizer)
        return list(batches(features.select_columns(inputs), self.collator, self.batch_size, most, starts))

    def measure(self, name: str, outputs: Outputs) -> dict[str, float]:
        """Return the task's metrics (fractions) of a model's outputs on a split; `UserError` if it diverged."""
        return Part(self.spec, self.rows(name), self.features(name), []).measure(outputs)


def check_finite(outputs: Outputs, whose: str) -> None:
    """Raise `UserError` if outputs hold NaN or infinity."""
    if not all(np.isfinite(row).all() for rows in outputs.values() for row in rows):
        raise UserError(f"{whose} hold NaN or infinity: its training diverged; train it with a lower --learning_rate")
