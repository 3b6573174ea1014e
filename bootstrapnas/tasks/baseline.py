"""What a bag of words reaches on a task: the bar that a teacher must clear to prove anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bootstrapnas.errors import UserError
from bootstrapnas.tasks.scoring import compute_metrics

if TYPE_CHECKING:
    from datasets import Dataset

    from bootstrapnas.tasks.loading import TaskData


def tfidf_baseline(data: TaskData, split: str = "validation") -> float:
    """Fit TF-IDF features with logistic regression on the training rows; return the task's metric on a split.

    Raises
    ------
    UserError
        If the task is a regression.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if data.spec.is_regression:
        raise UserError(f"the TF-IDF baseline is for classes; task {data.spec.task_name} is a regression")
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    model.fit(_texts(data.train), list(data.train["label"]))
    rows = getattr(data, split)
    scores = np.zeros((len(rows), data.spec.num_labels))
    predicted = model.predict(_texts(rows))
    scores[np.arange(len(predicted)), predicted] = 1.0
    return compute_metrics(data.spec, scores, np.asarray(rows["label"]))[data.spec.metric]


def _texts(rows: Dataset) -> list[str]:
    columns = [rows[name] for name in ("text_a", "text_b") if name in rows.column_names]
    return ["\n".join(texts) for texts in zip(*columns, strict=True)]
