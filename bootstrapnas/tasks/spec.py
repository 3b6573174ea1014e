"""`TaskSpec`: all that later stages need to know of a task, as one small file in every artefact."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from bootstrapnas.artefacts import FORMAT, check_format, read_json, write_json
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.tasks.heads import HEADS, Head
from bootstrapnas.tasks.metrics import check_metric

ProblemType = Literal["single_label_classification", "regression"]
TASK_FILE = "task.json"


@dataclass(frozen=True)
class TaskSpec:
    """A text classification or regression task: where its rows are and what is to be made of them.

    Parameters
    ----------
    task_name
        A GLUE task, ``"builtin-text"``, or ``"files"``.
    text_columns
        The one or two columns that hold the text.
    label_names
        The classes in the order of their indices; empty for a regression.
    problem_type
        As in a Hugging Face config.
    metric
        The metric that stages select by; greater is better.
    max_seq_length
        Tokens to which a row is cut.
    label_column
        The column that holds the label.
    dataset_dir
        Local directory of the task's splits; None reads the hub (GLUE) or the installed packages (builtin-text).
    train_file, validation_file, test_file
        The splits of the task ``"files"``: JSON lines or CSV.
    max_train_samples, max_validation_samples
        Sizes of random subsets; None takes all rows.
    seed
        Decides those subsets.
    """

    task_name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    problem_type: ProblemType
    metric: str
    max_seq_length: int
    label_column: str = "label"
    dataset_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.problem_type not in get_args(ProblemType):
            raise UserError(f"problem_type {self.problem_type!r} is neither {' nor '.join(get_args(ProblemType))}")
        if not 1 <= len(self.text_columns) <= 2 or len(set(self.text_columns)) != len(self.text_columns):
            raise UserError(f"text_columns must name one or two different columns, not {list(self.text_columns)}")
        if self.label_column in self.text_columns:
            raise UserError(f"column {self.label_column!r} cannot be both text and label")
        if self.dataset_dir is not None and self.train_file is not None:
            raise UserError(f"task {self.task_name} reads its files ({self.train_file}, ...); it takes no dataset_dir")
        if not self.is_regression and len(self.label_names) < 2:
            raise UserError(f"task {self.task_name} needs two classes or more, it has {list(self.label_names)}")
        for name in ("max_seq_length", "max_train_samples", "max_validation_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be positive, not {value}")
        check_metric(self.metric, self.num_labels)

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers to predict rather than classes."""
        return self.problem_type == "regression"

    @property
    def num_labels(self) -> int:
        """Width of the model's output: the number of classes, 1 for a regression."""
        return 1 if self.is_regression else len(self.label_names)

    @property
    def head(self) -> Head:
        """The head that a model needs for the task."""
        return HEADS[self.problem_type]

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
