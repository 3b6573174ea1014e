"""`TaskSpec`: all that later stages need to know of a task, as one small file in every artefact."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import get_args

from bootstrapnas.artefacts import FORMAT, check_format, read_json, write_json
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.tasks.generation import Generation
from bootstrapnas.tasks.kind import Head, Kind
from bootstrapnas.tasks.kinds import KINDS
from bootstrapnas.tasks.settings import AnswerSettings, InstructionSettings, MaskingSettings, ProblemType
from bootstrapnas.tasks.task import Task

TASK_FILE = "task.json"
SETTINGS = {"answers": AnswerSettings, "instructions": InstructionSettings, "masking": MaskingSettings}
"""What only tasks of one kind have, by the field of `TaskSpec`."""


@dataclass(frozen=True)
class TaskSpec(Task):
    """A task with what follows from its kind. It is checked when it is made."""

    def __post_init__(self) -> None:
        if self.problem_type not in get_args(ProblemType):
            raise UserError(f"problem_type {self.problem_type!r} is none of {listed(get_args(ProblemType))}")
        if self.answers is not None and self.problem_type != "question_answering":
            raise UserError(f"task {self.task_name} is no question answering; it has no settings 'answers'")
        if self.instructions is not None and self.problem_type != "instructions":
            raise UserError(f"task {self.task_name} has no instructions, nor settings 'instructions'")
        if self.masking is not None and self.problem_type != "masked_language_modelling":
            raise UserError(f"task {self.task_name} hides no tokens; it has no settings 'masking'")
        self.kind.check(self)
        if self.label_column in self.text_columns:
            raise UserError(f"column {self.label_column!r} cannot be both text and label")
        if self.dataset_dir is not None and self.train_file is not None and not self.parts:
            raise UserError(f"task {self.task_name} reads its files ({self.train_file}, ...); it takes no dataset_dir")
        for name in ("max_seq_length", "max_train_samples", "max_validation_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be positive, not {value}")
        if self.val_set_size is not None and self.val_set_size < 0:
            raise UserError(f"val_set_size must be at least 0, not {self.val_set_size}")
        if not self.metric:
            object.__setattr__(self, "metric", self.metrics[0])
        if self.metric not in self.metrics:
            self.metric_named(self.metric)

    @property
    def kind(self) -> Kind:
        """What kind of task it is."""
        return KINDS[self.problem_type]

    @property
    def head(self) -> Head:
        """The head that a model needs for the task."""
        return self.kind.head

    @property
    def num_labels(self) -> int:
        """Width of the model's head: the number of classes, 1 for a regression."""
        return self.kind.num_labels(self)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What a model's config calls the columns of its head: the classes, or Hugging Face's placeholders."""
        return self.label_names or tuple(f"LABEL_{index}" for index in range(self.num_labels))

    @property
    def generation(self) -> Generation | None:
        """How texts are written, if models are measured by those."""
        return None if self.kind.generation is None else self.kind.generation(self)

    def greedily(self) -> TaskSpec:
        """Return the task as an IR is measured by it: texts, if they are written, are so without beams."""
        if self.generation is None or self.instructions is None:
            return self
        return replace(self, instructions=replace(self.instructions, num_beams=1))

    @property
    def maximise(self) -> bool:
        """Whether more of the metric that selects is better."""
        return self.metric not in self.kind.less_is_better

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics that the task may be selected by."""
        return self.kind.metrics(self)

    @property
    def reported_metrics(self) -> tuple[str, ...]:
        """The names of the metrics that are reported, the one that selects first."""
        return self.reported(self.kind.usual_metrics)

    def metric_named(self, name: str) -> str:
        """Return the metric that somebody calls `name`, with or without Hugging Face's prefix ``eval_``.

        Raises
        ------
        UserError
            If the task does not produce it; the message lists what it produces.
        """
        plain = name.removeprefix("eval_")
        if plain not in self.metrics:
            raise UserError(
                f"task {self.task_name} has no metric {name!r}{near_miss(plain, self.metrics)}; "
                f"it has: {listed(self.metrics)}"
            )
        return plain

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the task to a JSON file, atomically."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskSpec:
        """Read a task from a file of `save`.

        Raises
        ------
        UserError
            If the file is missing, no JSON, of a newer format, or has unknown, missing or ill-typed entries.
        """
        from pydantic import TypeAdapter, ValidationError

        found = read_json(path)
        if not isinstance(found, dict):
            raise UserError(f"{path} is not a task: it holds no JSON object")
        check_format(path, found)
        found.pop("format", None)
        known = [field.name for field in fields(cls)]
        for key in found:
            if key not in known:
                raise UserError(f"{path}: unknown key {key!r}{near_miss(key, known)}")
        try:
            # Through JSON, because only there does the strict mode take a list for a tuple.
            return TypeAdapter(cls).validate_json(json.dumps(found), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{path}: {'.'.join(map(str, first['loc'])) or 'task'}: {first['msg']}") from error
