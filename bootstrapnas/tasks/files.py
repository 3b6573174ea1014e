"""Reading of data files: JSON lines, JSON arrays, CSV, texts and tagged words, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootstrapnas.errors import UserError, near_miss

if TYPE_CHECKING:
    from datasets import Dataset

Table = dict[str, list[Any]]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".txt", ".txt.gz", ".conll", ".conll.gz")
TEXT = "text"
"""The one column of a text file."""
WORDS, TAGS = "tokens", "tags"
"""The columns of a file of tagged words."""
ROW = "#row"
"""A column for messages and predictions: which row of its file a row is, where only some were taken."""


def read_table(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> Table:
    """Read a data file.

    Parameters
    ----------
    path
        JSON lines (``.jsonl``, ``.json``), one JSON array of objects (``.json``), CSV with a header (``.csv``), or a
        text whose rows are parted by blank lines (``.txt``), or of tagged words (``.conll``: a word a line, its tag the
        last field, the others by their number from 1, blank lines between the texts); UTF-8, each optionally with
        ``.gz``.
    columns
        The columns wanted; None reads those of the first row.
    optional
        Further columns wanted if the first row has them.

    Returns
    -------
    dict
        Column -> its values, row by row. The values of a CSV file are strings.

    Raises
    ------
    UserError
        If the file is missing, of another kind, unreadable, empty, or a row lacks a column.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory, not a data file; --dataset_dir takes a directory of them")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown kind of data file; give one of {', '.join(SUFFIXES)}")
    try:
        rows = _READERS[Path(path.name.removesuffix(".gz")).suffix](path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not rows:
        raise UserError(f"{path} holds no rows")
    wanted = list(rows[0][1]) if columns is None else list(columns)
    wanted += [column for column in optional if column in rows[0][1] and column not in wanted]
    for place, row in rows:
        for column in wanted:
            if column not in row:
                raise UserError(
                    f"{path} has no column {column!r} ({place}){near_miss(column, row)}; found: {', '.join(row)}"
                )
    return {column: [row[column] for _, row in rows] for column in wanted}


def texts(table: Table, column: str, source: str) -> list[str]:
    """Return a column of texts; raise `UserError` naming the row of a value that is none."""
    for row, text in zip(row_names(table), table[column], strict=True):
        if not isinstance(text, str):
            raise UserError(f"{source}: row {row} has no text in column {column!r}, but {text!r}")
    return table[column]


def row_names(rows: Table | Dataset) -> list[Any]:
    """Return what to call each row in messages and predictions: its number in the file."""
    columns = rows if isinstance(rows, dict) else rows.column_names
    return list(rows[ROW] if ROW in columns else range(len(rows[next(iter(columns))])))


def find_split(directory: str | os.PathLike[str], task_name: str, *names: str) -> Path | None:
    """Return the file of a split in `directory` or its subdirectory `task_name`, or None.

    `names` are tried in order, for example ``"validation_matched", "validation"``.
    """
    below = Path(directory, task_name)
    parent = below if below.is_dir() else Path(directory)
    candidates = (parent / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


Rows = list[tuple[str, dict[str, Any]]]
"""Where a row is, for messages, and what it holds."""


def _json_rows(path: Path) -> Rows:
    rows = []
    with _open(path) as file:
        if path.name.removesuffix(".gz").endswith(".json") and file.read(1) == "[":
            return _array_rows(path)
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg}); expected one object a line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            rows.append((f"line {number}", row))
    return rows


def _array_rows(path: Path) -> Rows:
    with _open(path) as file:
        try:
            found = json.load(file)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}")
    return [(f"row {number}", row) for number, row in enumerate(found)]


def _text_rows(path: Path) -> Rows:
    with _open(path) as file:
        parts = re.split(r"\n[ \t]*(?:\r?\n[ \t]*)+", file.read())
    texts = [part.strip("\r\n") for part in parts if part.strip()]
    return [(f"text {number}", {TEXT: text}) for number, text in enumerate(texts)]


def _csv_rows(path: Path) -> Rows:
    with _open(path) as file:
        reader = csv.DictReader(file, strict=True)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                header = len(reader.fieldnames or ())
                raise UserError(f"{path}, line {reader.line_num}: the row has not the {header} fields of the header")
            rows.append((f"line {reader.line_num}", row))
    return rows


def _tagged_rows(path: Path) -> Rows:
    """Read words and tags as CoNLL's shared tasks have them; lines that only part documents are left out.

    Besides the first and the last field, the words and their tags, every field that all lines have is a column, which
    is called by its number from 1.
    """
    found: list[tuple[int, list[list[str]]]] = []
    begun = False
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            fields = line.split()
            if not fields or fields[0] == "-DOCSTART-":
                begun = False
                continue
            if len(fields) < 2:
                raise UserError(f"{path}, line {number}: expected a word and its tag, found {line.strip()[:60]!r}")
            if not begun:
                found.append((number, []))
                begun = True
            found[-1][1].append(fields)
    width = min((len(fields) for _, lines in found for fields in lines), default=0)
    places = {WORDS: 0, TAGS: -1, **{str(place + 1): place for place in range(width)}}
    return [
        (f"line {number}", {name: [fields[place] for fields in lines] for name, place in places.items()})
        for number, lines in found
    ]


_READERS = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows, ".txt": _text_rows, ".conll": _tagged_rows}


def _open(path: Path) -> Any:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")
