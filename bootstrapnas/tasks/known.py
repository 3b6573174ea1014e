"""Public data sets as data: the GLUE tasks (Wang et al., 2019, https://arxiv.org/abs/1804.07461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootstrapnas.tasks.spec import ProblemType

_GLUE = "nyu-mll/glue"


@dataclass(frozen=True)
class KnownTask:
    """What tells one task from another.

    Attributes
    ----------
    hub
        Hub id of the data set, and the name of its configuration if it has several.
    text_columns
        The one or two columns of text.
    label_names
        The classes in the order of their indices; empty where there are none.
    metrics
        What is reported; the first one selects.
    problem_type
        As in `TaskSpec`.
    label_column
        The column that holds the label.
    max_seq_length
        Tokens to which a row is cut unless a flag says otherwise.
    """

    hub: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    problem_type: ProblemType = "single_label_classification"
    label_column: str = "label"
    max_seq_length: int = 128


KNOWN: dict[str, KnownTask] = {
    "cola": KnownTask(
        (_GLUE, "cola"), ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")
    ),
    "mnli": KnownTask((_GLUE, "mnli"), ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "mrpc": KnownTask(
        (_GLUE, "mrpc"), ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy")
    ),
    "qnli": KnownTask((_GLUE, "qnli"), ("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": KnownTask((_GLUE, "qqp"), ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "rte": KnownTask((_GLUE, "rte"), ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "sst2": KnownTask((_GLUE, "sst2"), ("sentence",), ("negative", "positive")),
    "stsb": KnownTask((_GLUE, "stsb"), ("sentence1", "sentence2"), (), ("pearson", "spearmanr"), "regression"),
}
