"""The GLUE tasks (Wang et al., 2019, https://arxiv.org/abs/1804.07461) as data."""

from __future__ import annotations

from dataclasses import dataclass

HUB_ID = "nyu-mll/glue"
MAX_SEQ_LENGTH = 128


@dataclass(frozen=True)
class GlueTask:
    """What tells one GLUE task from another.

    Parameters
    ----------
    text_columns
        The one or two columns of text.
    label_names
        The classes in the order of their indices; empty for a regression.
    metrics
        What is reported; the first one selects.
    """

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
    "mnli": GlueTask(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "rte": GlueTask(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("pearson", "spearmanr")),
}
