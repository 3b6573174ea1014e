"""What a bag of words reaches on a task: the bar that a teacher must clear to prove anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootstrapnas.errors import UserError
from bootstrapnas.tasks.sequence import TEXT_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset

    from bootstrapnas.tasks.loading import TaskData


def tfidf_baseline(data: TaskData, split: str = "validation") -> float:
    """Fit TF-IDF features with logistic regression on the training rows; return the task's metric on a split.

    Raises
    ------
    UserError
        If the task is no classification of texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    spec = data.spec
    if not spec.is_classification:
        raise UserError(f"the TF-IDF baseline is for classes of texts, not for task {spec.task_name}")
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    train, rows = data.split("train"), data.split(split)
    model.fit(_texts(train), list(train["label"]))
    return spec.kind.measure(spec, model.predict(_texts(rows)), rows)[spec.metric]


def _texts(rows: Dataset) -> list[str]:
    columns = [rows[name] for name in TEXT_COLUMNS if name in rows.column_names]
    return ["\n".join(texts) for texts in zip(*columns, strict=True)]
