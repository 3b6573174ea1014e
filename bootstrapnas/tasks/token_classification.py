"""Token classification: a tag for every word of a text, such as the names in it or its parts of speech.

A model sees the words as one text with a blank between them, as it will see texts when it is deployed. The tag of a
word is that of its first token; the others have none to learn.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.outputs import IGNORED, LABELS, TOKENS, Output, Outputs
from bootstrapnas.progress import warn
from bootstrapnas.tasks.files import ROW, TAGS, WORDS, row_names
from bootstrapnas.tasks.kind import Head, Kind
from bootstrapnas.tasks.known import KNOWN
from bootstrapnas.tasks.labels import class_indices

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.files import Table
    from bootstrapnas.tasks.task import Task

WORD_COLUMNS = (WORDS, "words")
TAG_COLUMNS = ("ner_tags", TAGS, "labels", "pos_tags", "chunk_tags")
NONE = -1
"""The token of a word that has none, as it lies beyond the last one; what is said of such a word."""
_OUTSIDE = "O"
_CHUNKS = re.compile(r"O|[BIESLU]-.+", re.DOTALL)
_ENTITIES = ("f1", "precision", "recall", "accuracy")
_ROWS_AT_ONCE = 1000


def is_token_classification(table: Table, text_columns: Sequence[str] | None, label_column: str | None) -> bool:
    """Tell whether a file is of this kind: it has a usual or a given column of words, and words or tags are lists."""
    words = next((name for name in text_columns or WORD_COLUMNS if name in table), None)
    tags = [label_column] if label_column else TAG_COLUMNS
    return words is not None and any(isinstance(table[name][0], list) for name in (words, *tags) if name in table)


def columns_of(
    table: Table, text_columns: Sequence[str] | None, label_column: str | None, source: str
) -> tuple[tuple[str, ...], str]:
    """Return the columns of words and of tags, by the names that data sets use; `UserError` if there are no tags."""
    words = next((name for name in WORD_COLUMNS if name in table), WORDS)
    tags = label_column or next((name for name in TAG_COLUMNS if name in table), None)
    if tags is None:
        close = next((hint for column in table if (hint := near_miss(column, TAG_COLUMNS))), "")
        raise UserError(
            f"{source} has no column of tags ({listed(TAG_COLUMNS)}); name yours by --label_column; "
            f"found: {', '.join(table)}{close}"
        )
    return tuple(text_columns or (words,)), tags


def flat_tags(values: Sequence[Any], where: str, rows: Sequence[Any]) -> list[Any]:
    """Return all tags of a column, one after the other; `where` it is and the names of its `rows` are for messages.

    Raises
    ------
    UserError
        If a row has no list of names or numbers.
    """
    for row, value in zip(rows, values, strict=True):
        if not isinstance(value, list) or not all(isinstance(tag, str | int) and tag != "" for tag in value):
            raise UserError(f"{where}: row {row} has no list of tags, but {str(value)[:60]!r}")
    return [tag for value in values for tag in value]


def _check(spec: Task) -> None:
    if len(spec.text_columns) != 1:
        raise UserError(f"text_columns must name the one column of words, not {list(spec.text_columns)}")
    if len(spec.label_names) < 2:
        raise UserError(f"task {spec.task_name} needs two tags or more, it has {list(spec.label_names)}")


def _has_chunks(spec: Task) -> bool:
    """Whether the tags say where entities begin and end."""
    return all(map(_CHUNKS.fullmatch, spec.label_names))


def _metrics(spec: Task) -> tuple[str, ...]:
    return _ENTITIES if _has_chunks(spec) else ("accuracy",)


# -- rows and features -------------------------------------------------------------------------------------------------


def _rows(spec: Task, table: Table, split: str, source: str) -> Dataset:
    """Return the rows: ``words``, and the class index of each word's tag, ``label``."""
    from datasets import Dataset, Features, List, Value

    column, where = spec.text_columns[0], f"{source}, column {spec.label_column!r}"
    names = row_names(table)
    tags = flat_tags(table[spec.label_column], where, names)
    lengths = [len(value) for value in table[spec.label_column]]
    for row, words, count in zip(names, table[column], lengths, strict=True):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f"{source}: row {row} has no list of words in column {column!r}, but {str(words)[:60]!r}")
        if len(words) != count:
            raise UserError(f"{where}: row {row} has {count} tags for {len(words)} words")
        if not words:
            raise UserError(f"{source}: row {row} has no words in column {column!r}")
    of_word = [row for row, count in zip(names, lengths, strict=True) for _ in range(count)]
    indices = class_indices(tags, spec.label_names, where, of_word, coded=spec.task_name in KNOWN)
    ends = list(accumulate(lengths))
    label = [indices[end - count : end] for end, count in zip(ends, lengths, strict=True)]
    types = Features({"words": List(Value("string")), "label": List(Value("int32")), ROW: Value("int64")})
    return Dataset.from_dict({"words": table[column], "label": label, ROW: names}, features=types)


def _is_labelled(spec: Task, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and any(tag not in (None, -1, IGNORED) for tag in value)


def _features(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return one feature a row, cut to ``spec.max_seq_length`` tokens; ``first`` is each word's first token."""
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} does not tell where its tokens lie in a text")
    names = [name for name in tokenizer.model_input_names if name in tokenizer("a")]
    types = {name: List(Value("int32" if name == "input_ids" else "int8")) for name in names}
    types |= dict.fromkeys(("labels", "first"), List(Value("int32")))
    types |= {"length": Value("int32")}
    parts, cut, count = [], 0, 0
    for part in rows.iter(batch_size=_ROWS_AT_ONCE):
        encoded = tokenizer(
            [" ".join(words) for words in part["words"]],
            truncation=True,
            max_length=spec.max_seq_length,
            return_offsets_mapping=True,
        )
        columns = {name: encoded[name] for name in names}
        columns |= {"length": [len(ids) for ids in encoded["input_ids"]], "labels": [], "first": []}
        for words, tags, offsets in zip(part["words"], part["label"], encoded["offset_mapping"], strict=True):
            first = first_tokens(words, offsets)
            if set(first) == {NONE}:  # its loss would be no number
                raise UserError(
                    f"the tokenizer {tokenizer.name_or_path} makes no token of the words {words[:3]} within "
                    f"--max_seq_length {spec.max_seq_length}: leave such rows out"
                )
            labels = [IGNORED] * len(offsets)
            for place, tag in zip(first, tags, strict=True):
                if place != NONE:
                    labels[place] = tag
            cut, count = cut + first.count(NONE), count + len(words)
            columns["labels"].append(labels)
            columns["first"].append(first)
        parts.append(Dataset.from_dict(columns, features=Features(types)))
    if cut:
        warn(
            f"{cut} of {count} words have no token: they lie beyond --max_seq_length {spec.max_seq_length}, or the "
            "tokenizer knows nothing of them; where tags are measured they count as not found"
        )
    return concatenate_datasets(parts)


def first_tokens(words: Sequence[str], offsets: Sequence[Sequence[int]]) -> list[int]:
    """Return the first token of each word of a text, `NONE` if it has none.

    Parameters
    ----------
    words
        The words, which the text holds with a blank between them.
    offsets
        Start and end of each token in the text, in characters; equal for special tokens.
    """
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    first = [NONE] * len(words)
    for token, (start, end) in enumerate(offsets):
        if start == end:
            continue
        word = bisect_right(starts, end - 1) - 1  # by its last character: byte-level tokens may begin with the blank
        if word < len(words) and end - 1 < starts[word + 1] - 1 and first[word] == NONE:
            first[word] = token
    return first


# -- predictions and metrics -------------------------------------------------------------------------------------------


def _decode(spec: Task, outputs: Outputs, rows: Dataset, features: Dataset) -> list[list[int]]:
    """Return the class index of each word, `NONE` where it was cut off."""
    found = []
    for logits, first in zip(outputs["logits"], features["first"], strict=True):
        if logits.ndim != 2 or logits.shape[1] != len(spec.label_names):
            raise ValueError(f"logits of shape {logits.shape} do not fit {len(spec.label_names)} tags")
        if not (abs(logits) < float("inf")).all():
            raise ValueError("the logits hold NaN or infinity: the model has diverged")
        classes = logits.argmax(axis=1)
        found.append([NONE if place == NONE else int(classes[place]) for place in first])
    return found


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return the entities of a text, each its first word, the one after its last, and its type.

    As ``conlleval`` reads tags (Tjong Kim Sang & De Meulder 2003, CoNLL): an entity begins with B, or with I after
    another type or after none, so that IOB1 and IOB2 both are read; of IOBES and BILOU, S and U are whole entities and
    E and L their last words. The library seqeval reads them alike, and has had no release since 2020.
    """
    found: set[tuple[int, int, str]] = set()
    begin: int | None = None
    kind = ""
    for place, tag in enumerate([*tags, _OUTSIDE]):
        prefix, _, name = tag.partition("-")
        begins = prefix in ("B", "S", "U") or (prefix in ("I", "E", "L") and (begin is None or name != kind))
        if begin is not None and (begins or prefix == _OUTSIDE):
            found.add((begin, place, kind))
            begin = None
        if begins:
            begin, kind = place, name
        if begin is not None and prefix in ("E", "L", "S", "U"):
            found.add((begin, place + 1, kind))
            begin = None
    return found


def _named(spec: Task, classes: Sequence[int]) -> list[str]:
    return [_OUTSIDE if index == NONE else spec.label_names[index] for index in classes]


def _measure(spec: Task, predictions: Sequence[Sequence[int]], rows: Dataset) -> dict[str, float]:
    """Return the accuracy over words; with entities also their F1, precision and recall over all texts."""
    labels = list(rows["label"])
    right = sum(said == tag for pair in zip(predictions, labels, strict=True) for said, tag in zip(*pair, strict=True))
    accuracy = right / sum(map(len, labels))
    if not _has_chunks(spec):
        return {"accuracy": accuracy}
    said, true = (
        {(row, *entity) for row, classes in enumerate(of) for entity in entities(_named(spec, classes))}
        for of in (predictions, labels)
    )
    precision, recall = (len(said & true) / len(found) if found else 0.0 for found in (said, true))
    f1 = 2 * precision * recall / (precision + recall) if said & true else 0.0
    return dict(zip(_ENTITIES, (f1, precision, recall, accuracy), strict=True))


def _show(spec: Task, predictions: Sequence[Sequence[int]], rows: Dataset) -> list[dict[str, Any]]:
    """Return the tag of each word; nothing of one that was cut off."""
    return [
        {"index": name, "prediction": [None if tag == NONE else spec.label_names[tag] for tag in classes]}
        for name, classes in zip(row_names(rows), predictions, strict=True)
    ]


def _corpus(spec: Task, rows: Dataset) -> Iterator[str]:
    yield from (" ".join(words) for words in rows["words"])


TOKEN_CLASSIFICATION = Kind(
    head=Head("AutoModelForTokenClassification", "ForTokenClassification"),
    outputs=(Output("logits", f"{TOKENS} {LABELS}"),),
    targets=("labels",),
    check=_check,
    num_labels=lambda spec: len(spec.label_names),
    metrics=_metrics,
    usual_metrics=("accuracy",),
    rows=_rows,
    is_labelled=_is_labelled,
    features=_features,
    decode=_decode,
    measure=_measure,
    show=_show,
    corpus=_corpus,
)
