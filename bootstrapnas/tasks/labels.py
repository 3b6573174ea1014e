"""From the labels of a file to classes or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.tasks.settings import ProblemType

_MOST_FLOAT_CLASSES = 32  # more different whole floats than this are a scale, not classes


def infer_labels(
    values: Sequence[Any], where: str, problem_type: ProblemType | None = None
) -> tuple[ProblemType, tuple[str, ...]]:
    """Tell from the training labels whether they are classes, and which.

    Parameters
    ----------
    values
        Strings, booleans, integers or floats. Strings that spell numbers, as in CSV, count as numbers.
    where
        The file and column, for messages.
    problem_type
        What the user says they are; None decides: numbers with a fraction are a regression.

    Returns
    -------
    tuple
        The problem type, and the classes in order of their indices: numbers by value, other names by alphabet; empty
        for a regression.

    Raises
    ------
    UserError
        If a label is missing, or a regression was asked for and a label is no number.
    """
    for row, value in enumerate(values):
        if value is None or value == "":
            raise UserError(f"{where}: row {row} has no label")
    numbers = [_number(value) for value in values]
    if problem_type == "regression" or (problem_type is None and _is_scale(values, numbers)):
        if None in numbers:
            raise UserError(f"{where}: label {values[numbers.index(None)]!r} is no number, as a regression needs")
        return "regression", ()
    names = {_name(value) for value in values}
    if None in numbers:
        return "single_label_classification", tuple(sorted(names))
    return "single_label_classification", tuple(sorted(names, key=float))


def class_indices(
    values: Sequence[Any], label_names: Sequence[str], where: str, rows: Sequence[Any], *, coded: bool
) -> list[int]:
    """Return the class index of each label; `where` they are and the names of their `rows` are for messages.

    `coded` says that the values may be the indices themselves, as in GLUE's own files.

    Raises
    ------
    UserError
        If a label is none of the classes; it names the row.
    """
    index = {str(i): i for i in range(len(label_names))} if coded else {}
    index |= {name: i for i, name in enumerate(label_names)}
    found = []
    for row, value in zip(rows, values, strict=True):
        name = _name(value)
        if name not in index:
            raise UserError(
                f"{where}: row {row} has the label {value!r}, which is none of the classes "
                f"{listed(label_names)}{near_miss(name, label_names)}"
            )
        found.append(index[name])
    return found


def regression_targets(values: Sequence[Any], where: str, rows: Sequence[Any]) -> list[float]:
    """Return each label as a number; raise `UserError` naming the row of one that is none."""
    found = []
    for row, value in zip(rows, values, strict=True):
        number = _number(value)
        if number is None:
            raise UserError(f"{where}: row {row} has the label {value!r}, which is no number")
        found.append(number)
    return found


def is_unlabelled(value: Any) -> bool:
    """Whether a test row has no label: none at all, or GLUE's -1."""
    return value is None or value == "" or _number(value) == -1


def _is_scale(values: Sequence[Any], found: Sequence[float | None]) -> bool:
    numbers = {number for number in found if number is not None}
    if None in found:
        return False
    if any(not number.is_integer() for number in numbers):
        return True
    return len(numbers) > _MOST_FLOAT_CLASSES and any(isinstance(value, float) for value in values)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _name(value: Any) -> str:
    """Return one name for one class, however it is written: 1, 1.0 and "1" are the class "1"."""
    number = _number(value)
    if number is not None:
        return str(int(number)) if number.is_integer() else str(number)
    return str(value).lower() if isinstance(value, bool) else str(value)
