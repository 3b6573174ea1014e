"""Extractive question answering: the answer is a span of a text, or, as in SQuAD 2.0, there may be none.

A text that is longer than the model takes becomes several overlapping windows, each a feature of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import TOKENS, Output, Outputs
from bootstrapnas.progress import warn
from bootstrapnas.tasks.files import ROW, row_names, texts
from bootstrapnas.tasks.kind import Head, Kind
from bootstrapnas.tasks.settings import AnswerSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.files import Table
    from bootstrapnas.tasks.task import Task

COLUMNS = ("question", "context")
LABEL_COLUMN = "answers"
NONE = -1
"""Where a text has no answer, or a token is none of the text's."""
_ROWS_AT_ONCE = 1000
_LEAST_ROOM = 8  # tokens of a window besides those it shares: question, special tokens, a step forward


def settings_of(spec: Task) -> AnswerSettings:
    """Return a task's settings, which a task of this kind has."""
    assert spec.answers is not None
    return spec.answers


def _check(spec: Task) -> None:
    if spec.answers is None:
        raise UserError(f"task {spec.task_name}: question answering needs the settings 'answers'")
    if len(spec.text_columns) != 2:
        raise UserError(f"text_columns must name the question's and the text's, not {list(spec.text_columns)}")
    for name in ("doc_stride", "n_best_size", "max_answer_length"):
        value = getattr(spec.answers, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be positive, not {value}")
    most, stride = spec.max_seq_length - _LEAST_ROOM, spec.answers.stride(spec.max_seq_length)
    if most < 1:
        raise UserError(f"max_seq_length {spec.max_seq_length} is too short for a question and a text")
    if stride > most:
        raise UserError(
            f"doc_stride {stride} leaves no room in windows of {spec.max_seq_length} tokens (max_seq_length) for the "
            f"question and a step forward; it must be at most {most}"
        )


# -- rows --------------------------------------------------------------------------------------------------------------


def _rows(spec: Task, table: Table, split: str, source: str) -> Dataset:
    """Return the rows: ``id``, ``question``, ``context``, all ``answers``, and where one ``start``s and ``end``s.

    The position, in characters, is that of the first answer that the text holds: at its ``answer_start`` or, if that
    says something else, where the text has it nearest to there. Training rows whose answers the text does not hold are
    dropped, with one warning.
    """
    from datasets import Dataset, Features, List, Value

    question, context = (texts(table, column, source) for column in spec.text_columns)
    where = f"{source}, column {spec.label_column!r}"
    rows = row_names(table)
    answers = [
        _answers(value, f"{where}, row {row}") for row, value in zip(rows, table[spec.label_column], strict=True)
    ]
    if split == "train" and not any(answers):
        raise UserError(f"{where}: no row has an answer")
    if not settings_of(spec).version_2_with_negative and not all(answers):
        row = rows[answers.index([])]
        raise UserError(f"{where}: row {row} has no answer; pass --version_2_with_negative if questions may have none")
    ids = [str(name) for name in table.get("id", rows)]
    columns: dict[str, list[Any]] = {name: [] for name in ("id", *COLUMNS, "answers", "start", "end", ROW)}
    dropped = 0
    for name, asked, text, given, row in zip(ids, question, context, answers, rows, strict=True):
        start, end = _locate(text, given)
        if given and start == NONE and split == "train":
            dropped += 1
            continue
        values = (name, asked, text, [answer for answer, _ in given], start, end, row)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    if dropped:
        warn(f"{where}: {dropped} of {len(ids)} rows are left out, as their text does not hold their answer")
        if dropped == len(ids):
            raise UserError(f"{where}: no text holds its answer")
    types: dict[str, Any] = dict.fromkeys(columns, Value("string"))
    types |= {"answers": List(Value("string")), "start": Value("int32"), "end": Value("int32"), ROW: Value("int64")}
    return Dataset.from_dict(columns, features=Features(types))


def is_question_answering(table: Table, text_columns: Sequence[str] | None, label_column: str | None) -> bool:
    """Tell whether a file is of this kind: its labels are answers, or its usual columns are there and no label is."""
    label = label_column or (LABEL_COLUMN if LABEL_COLUMN in table else None)
    if label is not None:
        found = next((value for value in table.get(label, ()) if value), None)
        found = found[0] if isinstance(found, list) else found
        return isinstance(found, dict) or (isinstance(found, str) and '"text"' in found and found[:1] in "{[")
    return text_columns is None and all(column in table for column in COLUMNS) and "label" not in table


def _answers(value: Any, where: str) -> list[tuple[str, int | None]]:
    """Return the answers of a row with their positions: ``{"text": […], "answer_start": […]}``, or a list of such."""
    if isinstance(value, str) and value[:1] in ("{", "["):  # of a CSV file
        with contextlib.suppress(json.JSONDecodeError):  # told below
            value = json.loads(value)
    if value is None or value in ("", []):
        return []
    found: list[tuple[str, int | None]] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or "text" not in entry:
            raise UserError(f'{where}: expected {{"text": […], "answer_start": […]}}, found {str(value)[:60]!r}')
        names, starts = entry["text"], entry.get("answer_start")
        names = [names] if isinstance(names, str) else list(names or [])
        starts = list(starts) if isinstance(starts, list | tuple) else [starts] * len(names)
        if len(starts) != len(names):
            raise UserError(f"{where}: {len(names)} texts do not fit {len(starts)} answer_start")
        if not all(isinstance(name, str) for name in names) or not all(isinstance(n, int | None) for n in starts):
            raise UserError(f"{where}: text must be strings and answer_start whole numbers, not {str(value)[:60]!r}")
        found += zip(names, starts, strict=True)
    return [
        (text.strip(), None if start is None else start + len(text) - len(text.lstrip()))
        for text, start in found
        if text.strip()
    ]


def _locate(context: str, answers: Sequence[tuple[str, int | None]]) -> tuple[int, int]:
    """Return start and end of the first answer that `context` holds, in characters."""
    for text, given in answers:
        start = NONE if given is None else given
        if start < 0 or context[start : start + len(text)] != text:
            words = rf"(?<!\w){re.escape(text)}(?!\w)"
            found = [match.start() for match in re.finditer(words, context)]
            found = found or [match.start() for match in re.finditer(re.escape(text), context)]
            start = min(found, key=lambda place: abs(place - start), default=NONE)
        if start != NONE:
            return start, start + len(text)
    return NONE, NONE


def _is_labelled(spec: Task, value: Any) -> bool:
    return value is not None and (settings_of(spec).version_2_with_negative or bool(_answers(value, "test")))


# -- features ----------------------------------------------------------------------------------------------------------


def _features(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the windows of every row.

    ``start_positions`` and ``end_positions`` are tokens: of the answer where the window holds all of it, else of the
    classification token. For decoding: ``row``, ``cls`` (that token), and the ``char_start`` and ``char_end`` of each
    token in the text, `NONE` for those of the question and special ones.
    """
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} does not tell where its tokens lie in a text")
    names = [name for name in tokenizer.model_input_names if name in tokenizer("a")]
    types = {name: List(Value("int32" if name == "input_ids" else "int8")) for name in names}
    types |= dict.fromkeys(("start_positions", "end_positions", "length", "row", "cls"), Value("int32"))
    types |= dict.fromkeys(("char_start", "char_end"), List(Value("int32")))
    parts = []
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        columns = _windows(spec, part, tokenizer, names)
        columns["row"] = [first + row for row in columns["row"]]
        parts.append(Dataset.from_dict(columns, features=Features(types)))
    return concatenate_datasets(parts)


def _windows(
    spec: Task, rows: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> dict[str, list[Any]]:
    stride = settings_of(spec).stride(spec.max_seq_length)
    room = spec.max_seq_length - tokenizer.num_special_tokens_to_add(pair=True) - stride
    questions = _shortened([question.lstrip() for question in rows["question"]], tokenizer, max(1, room // 2))
    # A tokenizer that pads on the left is of a model that reads the text first.
    text_first = tokenizer.padding_side == "left"
    encoded = tokenizer(
        *((rows["context"], questions) if text_first else (questions, rows["context"])),
        truncation="only_first" if text_first else "only_second",
        max_length=spec.max_seq_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    columns: dict[str, list[Any]] = {name: encoded[name] for name in names}
    columns |= {"row": encoded["overflow_to_sample_mapping"], "length": [len(ids) for ids in encoded["input_ids"]]}
    columns |= {name: [] for name in ("start_positions", "end_positions", "cls", "char_start", "char_end")}
    text = 0 if text_first else 1
    for window, (ids, row) in enumerate(zip(encoded["input_ids"], columns["row"], strict=True)):
        inside = np.array([which == text for which in encoded.sequence_ids(window)])
        offsets = np.where(inside[:, None], np.asarray(encoded["offset_mapping"][window]), NONE)
        cls = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        start, end = _span(offsets, rows["start"][row], rows["end"][row])
        columns["start_positions"].append(cls if start == NONE else start)
        columns["end_positions"].append(cls if end == NONE else end)
        columns["cls"].append(cls)
        columns["char_start"].append(offsets[:, 0])
        columns["char_end"].append(offsets[:, 1])
    return columns


def _shortened(questions: list[str], tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """Cut questions to `most` tokens, so that every window has room for the text."""
    encoded = tokenizer(
        questions, add_special_tokens=False, truncation=True, max_length=most, return_offsets_mapping=True
    )
    return [
        question[: offsets[-1][1]] if len(offsets) == most else question
        for question, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]


def _span(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return the first and last token of the characters ``start`` to ``end``, `NONE` unless all of them are there."""
    tokens = np.flatnonzero(offsets[:, 0] != NONE)
    if start == NONE or not len(tokens) or offsets[tokens[0], 0] > start or offsets[tokens[-1], 1] < end:
        return NONE, NONE
    first = tokens[np.argmax(offsets[tokens, 1] > start)]
    last = tokens[len(tokens) - 1 - np.argmax(offsets[tokens[::-1], 0] < end)]
    return int(first), int(last)


# -- predictions and metrics -------------------------------------------------------------------------------------------


def _decode(spec: Task, outputs: Outputs, rows: Dataset, features: Dataset) -> list[str]:
    """Return the best answer of each row over its windows; ``""`` where there is none."""
    settings, contexts = settings_of(spec), rows["context"]
    char_start, char_end = _arrays(features, "char_start"), _arrays(features, "char_end")
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(rows)
    none = np.full(len(rows), np.inf)
    windows = zip(features["row"], features["cls"], outputs["start_logits"], outputs["end_logits"], strict=True)
    for window, (row, cls, start, end) in enumerate(windows):
        none[row] = min(none[row], float(start[cls]) + float(end[cls]))
        found = _best_span(start, end, np.flatnonzero(char_start[window] != NONE), settings)
        if found is not None and found[0] > best[row][0]:
            text = contexts[row][char_start[window][found[1]] : char_end[window][found[2]]]
            best[row] = (found[0], text)
    if not settings.version_2_with_negative:
        return [text for _, text in best]
    return [
        "" if none[row] - score > settings.null_score_diff_threshold else text for row, (score, text) in enumerate(best)
    ]


def _best_span(
    start: np.ndarray, end: np.ndarray, tokens: np.ndarray, settings: AnswerSettings
) -> tuple[float, int, int] | None:
    """Return the score, first and last token of a window's best answer among `tokens`; None if there is none."""
    firsts = tokens[np.argsort(-start[tokens], kind="stable")[: settings.n_best_size]]
    lasts = tokens[np.argsort(-end[tokens], kind="stable")[: settings.n_best_size]]
    scores = start[firsts][:, None] + end[lasts][None, :]
    length = lasts[None, :] - firsts[:, None] + 1
    scores = np.where((length >= 1) & (length <= settings.max_answer_length), scores, -np.inf)
    if not scores.size or scores.max() == -np.inf:
        return None
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[first, last]), int(firsts[first]), int(lasts[last])


def _arrays(features: Dataset, column: str) -> list[np.ndarray]:
    """Return a column of lists as arrays, without making Python numbers of them."""
    lists = features.with_format("arrow")[:][column].combine_chunks()
    flat, lengths = lists.flatten().to_numpy(zero_copy_only=False), lists.value_lengths().to_numpy(zero_copy_only=False)
    return [flat[start:end] for start, end in pairwise([0, *np.cumsum(lengths)])]


def exact_and_f1(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of a prediction, each against the answer that fits best (Rajpurkar et al. 2016, 2018).

    A question without an answer is answered rightly by ``""`` alone.
    """
    return _exact_and_f1(prediction, tuple(answers) or ("",))


@lru_cache(maxsize=1 << 17)  # the subnets of a search say much the same
def _exact_and_f1(prediction: str, answers: tuple[str, ...]) -> tuple[float, float]:
    from torchmetrics.functional.text import squad

    target = {"id": "0", "answers": {"text": list(answers), "answer_start": [0] * len(answers)}}
    found = squad([{"id": "0", "prediction_text": prediction}], [target])
    return float(found["exact_match"]) / 100, float(found["f1"]) / 100


def _measure(spec: Task, predictions: Sequence[str], rows: Dataset) -> dict[str, float]:
    """Return ``exact_match`` and ``f1``; where some questions have no answer, also of both sorts apart."""
    answers = list(rows["answers"])
    scores = np.array([exact_and_f1(*pair) for pair in zip(predictions, answers, strict=True)]).reshape(-1, 2)
    exact, f1 = (float(value) for value in scores.mean(axis=0))
    found = {"f1": f1, "exact_match": exact}
    if settings_of(spec).version_2_with_negative:
        has_answer = np.array([bool(names) for names in answers])
        for sort, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
            if chosen.any():
                found[f"{sort}_f1"] = float(scores[chosen, 1].mean())
                found[f"{sort}_exact_match"] = float(scores[chosen, 0].mean())
    return found


def _show(spec: Task, predictions: Sequence[str], rows: Dataset) -> list[dict[str, Any]]:
    triples = zip(row_names(rows), rows["id"], predictions, strict=True)
    return [{"index": row, "id": name, "prediction": text} for row, name, text in triples]


QUESTION_ANSWERING = Kind(
    head=Head("AutoModelForQuestionAnswering", "ForQuestionAnswering"),
    outputs=(Output("start_logits", TOKENS), Output("end_logits", TOKENS)),
    targets=("start_positions", "end_positions"),
    check=_check,
    num_labels=lambda spec: 2,
    metrics=lambda spec: ("f1", "exact_match"),
    usual_metrics=("f1", "exact_match"),
    rows=_rows,
    is_labelled=_is_labelled,
    features=_features,
    decode=_decode,
    measure=_measure,
    show=_show,
    optional_columns=("id",),
    means=("f1", "exact_match"),
)
