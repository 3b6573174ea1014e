"""Tasks that say one thing of a text or a pair of texts: a class, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import LABELS, VALUE, Output, Outputs
from bootstrapnas.tasks.files import ROW, row_names, texts
from bootstrapnas.tasks.kind import Head, Kind
from bootstrapnas.tasks.known import KNOWN
from bootstrapnas.tasks.labels import class_indices, is_unlabelled, regression_targets
from bootstrapnas.tasks.metrics import METRICS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.files import Table
    from bootstrapnas.tasks.task import Task

TEXT_COLUMNS = ("text_a", "text_b")
_ROWS_AT_ONCE = 1000


def _check_texts(spec: Task) -> None:
    if not 1 <= len(spec.text_columns) <= 2 or len(set(spec.text_columns)) != len(spec.text_columns):
        raise UserError(f"text_columns must name one or two different columns, not {list(spec.text_columns)}")


def _check_classes(spec: Task) -> None:
    _check_texts(spec)
    if len(spec.label_names) < 2:
        raise UserError(f"task {spec.task_name} needs two classes or more, it has {list(spec.label_names)}")


def _num_labels(spec: Task) -> int:
    return 1 if spec.is_regression else len(spec.label_names)


def _metrics(spec: Task) -> tuple[str, ...]:
    return tuple(name for name, metric in METRICS.items() if metric.fits(_num_labels(spec)))


# -- rows and features -------------------------------------------------------------------------------------------------


def _rows(spec: Task, table: Table, split: str, source: str) -> Dataset:
    """Return the rows: ``text_a``, for pairs also ``text_b``, and ``label`` (class index, or number)."""
    from datasets import Dataset, Features, Value

    columns: dict[str, list[Any]] = {}
    names = row_names(table)
    for name, column in zip(TEXT_COLUMNS, spec.text_columns, strict=False):
        columns[name] = texts(table, column, source)
    where = f"{source}, column {spec.label_column!r}"
    values = table[spec.label_column]
    if spec.is_regression:
        columns["label"] = regression_targets(values, where, names)
    else:
        columns["label"] = class_indices(values, spec.label_names, where, names, coded=spec.task_name in KNOWN)
    types = {name: Value("string") for name in columns}
    types |= {"label": Value("float32" if spec.is_regression else "int64"), ROW: Value("int64")}
    return Dataset.from_dict({**columns, ROW: names}, features=Features(types))


def _is_labelled(spec: Task, value: Any) -> bool:
    """Whether a row has a label; -1 is one where it is a class or a number to predict."""
    if spec.task_name not in KNOWN and (spec.is_regression or "-1" in spec.label_names):
        return value not in (None, "")
    return not is_unlabelled(value)


def _features(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return one feature a row, cut to ``spec.max_seq_length`` tokens."""
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    columns_of_text = [name for name in TEXT_COLUMNS if name in rows.column_names]
    names = [name for name in tokenizer.model_input_names if name in tokenizer("a")]
    types = {name: List(Value("int32" if name == "input_ids" else "int8")) for name in names}
    features = Features({**types, "labels": rows.features["label"], "length": Value("int32")})
    parts = []
    for part in rows.iter(batch_size=_ROWS_AT_ONCE):
        encoded = tokenizer(*(part[name] for name in columns_of_text), truncation=True, max_length=spec.max_seq_length)
        columns = {name: encoded[name] for name in names}
        columns |= {"labels": part["label"], "length": [len(ids) for ids in encoded["input_ids"]]}
        parts.append(Dataset.from_dict(columns, features=features))
    return concatenate_datasets(parts)


# -- predictions and metrics -------------------------------------------------------------------------------------------


def _decode(spec: Task, outputs: Outputs, rows: Dataset, features: Dataset) -> list[Any]:
    """Return class indices or numbers."""
    found, width = [np.atleast_1d(row) for row in outputs["logits"]], _num_labels(spec)
    logits = np.stack(found) if found else np.zeros((0, width))
    if logits.ndim != 2 or logits.shape[1] != width:
        raise ValueError(f"logits of shape {logits.shape} do not fit {width} outputs")
    if not np.isfinite(logits).all():
        raise ValueError("the logits hold NaN or infinity: the model has diverged")
    return (logits[:, 0] if spec.is_regression else logits.argmax(axis=1)).tolist()


def _measure(spec: Task, predictions: Sequence[Any], rows: Dataset) -> dict[str, float]:
    found, labels = np.asarray(predictions), np.asarray(rows["label"])
    if labels.shape != found.shape or not len(labels):
        raise ValueError(f"labels of shape {labels.shape} do not fit predictions of shape {found.shape}, or are empty")
    usual = (REGRESSION if spec.is_regression else CLASSIFICATION).usual_metrics
    return {name: METRICS[name].function(found, labels) for name in spec.reported(usual)}


def _show(spec: Task, predictions: Sequence[Any], rows: Dataset) -> list[dict[str, Any]]:
    return [
        {"index": name, "prediction": float(value) if spec.is_regression else spec.label_names[int(value)]}
        for name, value in zip(row_names(rows), predictions, strict=True)
    ]


CLASSIFICATION = Kind(
    head=Head("AutoModelForSequenceClassification", "ForSequenceClassification", "single_label_classification"),
    outputs=(Output("logits", LABELS),),
    targets=("labels",),
    check=_check_classes,
    num_labels=_num_labels,
    metrics=_metrics,
    usual_metrics=("accuracy", "macro_f1"),
    means=("accuracy",),
    rows=_rows,
    is_labelled=_is_labelled,
    features=_features,
    decode=_decode,
    measure=_measure,
    show=_show,
)
REGRESSION = Kind(
    head=Head("AutoModelForSequenceClassification", "ForSequenceClassification", "regression"),
    outputs=(Output("logits", VALUE),),
    targets=("labels",),
    check=_check_texts,
    num_labels=_num_labels,
    metrics=_metrics,
    usual_metrics=("pearson", "spearmanr"),
    rows=_rows,
    is_labelled=_is_labelled,
    features=_features,
    decode=_decode,
    measure=_measure,
    show=_show,
)
