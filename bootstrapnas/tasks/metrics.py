"""Metrics of classification and regression, by name; greater is better for every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Metric:
    """A function of predictions and labels (both ``[rows]``), and the number of outputs it is for (None: 2 or more)."""

    function: Callable[[Array, Array], float]
    num_labels: int | None = None

    def fits(self, num_labels: int) -> bool:
        """Whether the metric is for a model with `num_labels` outputs (1: a regression)."""
        return num_labels > 1 if self.num_labels is None else num_labels == self.num_labels


def _accuracy(predictions: Array, labels: Array) -> float:
    return float((predictions == labels).mean())


def _f1(predictions: Array, labels: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))


def _macro_f1(predictions: Array, labels: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews_correlation(predictions: Array, labels: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: Array, labels: Array) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearmanr(predictions: Array, labels: Array) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(measure: Callable[..., tuple[float, float]], predictions: Array, labels: Array) -> float:
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(measure(predictions.astype(np.float64), labels.astype(np.float64))[0])


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "f1": Metric(_f1, num_labels=2),
    "macro_f1": Metric(_macro_f1),
    "matthews_correlation": Metric(_matthews_correlation),
    "pearson": Metric(_pearson, num_labels=1),
    "spearmanr": Metric(_spearmanr, num_labels=1),
}
