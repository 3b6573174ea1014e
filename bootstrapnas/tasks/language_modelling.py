"""Language modelling: texts, one after the other in blocks of tokens, each of which is to be foretold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import Outputs
from bootstrapnas.tasks.files import TEXT, texts
from bootstrapnas.tasks.kind import Kind
from bootstrapnas.tasks.next_token import (
    HEAD,
    LESS_IS_BETTER,
    LOGITS,
    METRICS,
    Foretold,
    foretold,
    measure_foretold,
    show_foretold,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.files import Table
    from bootstrapnas.tasks.task import Task

_ROWS_AT_ONCE = 1000
_FEWEST_TOKENS = 2  # the first one of a block is not foretold


def _check(spec: Task) -> None:
    if len(spec.text_columns) != 1:
        raise UserError(f"text_columns must name the one column of text, not {list(spec.text_columns)}")
    if spec.label_column:
        raise UserError(f"task {spec.task_name} has no labels, but the label_column {spec.label_column!r}")
    if spec.max_seq_length < _FEWEST_TOKENS:
        raise UserError(f"max_seq_length must be at least {_FEWEST_TOKENS}, not {spec.max_seq_length}")


def _arrange(spec: Task, table: Table) -> Table:
    """Join the lines of a document where a data set has them as rows; leave out texts without a word."""
    column, begins = spec.text_columns[0], spec.document_start
    if begins is None:
        kept = [row for row, text in enumerate(table[column]) if not isinstance(text, str) or text.strip()]
        return {name: [values[row] for row in kept] for name, values in table.items()}
    documents: list[list[str]] = []
    for text in texts(table, column, spec.task_name):
        if not documents or re.match(begins, text):
            documents.append([])
        documents[-1].append(text)
    joined = ["".join(lines) for lines in documents]
    return {column: [text for text in joined if text.strip()]}


def _rows(spec: Task, table: Table, split: str, source: str) -> Dataset:
    """Return the documents: ``text``."""
    from datasets import Dataset, Features, Value

    return Dataset.from_dict(
        {TEXT: texts(table, spec.text_columns[0], source)}, features=Features({TEXT: Value("string")})
    )


def blocks_of(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Return the texts in blocks of ``spec.max_seq_length`` tokens, the last one shorter, int32.

    Every document begins and ends as the tokenizer has it begin, and with its token for the end of a text, if it has
    one.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = []
    for part in rows.iter(batch_size=_ROWS_AT_ONCE):
        for ids in tokenizer(part[TEXT])["input_ids"]:
            parts.append(np.asarray(ids if ids[-1:] == end else [*ids, *end], dtype=np.int32))
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    starts = range(0, len(tokens), spec.max_seq_length)
    blocks = [tokens[start : start + spec.max_seq_length] for start in starts]
    if len(blocks) > 1 and len(blocks[-1]) < _FEWEST_TOKENS:
        blocks.pop()
    if not blocks or len(blocks[0]) < _FEWEST_TOKENS:
        raise UserError(f"task {spec.task_name}: the texts have {len(tokens)} tokens in all, which is too few")
    return blocks


def _features(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the blocks; ``labels`` are the tokens themselves, as the models shift them."""
    from datasets import Dataset, Features, List, Value

    blocks = blocks_of(spec, rows, tokenizer)
    types = {"input_ids": List(Value("int32")), "attention_mask": List(Value("int8")), "labels": List(Value("int32"))}
    columns = {
        "input_ids": blocks,
        "attention_mask": [np.ones(len(block), np.int8) for block in blocks],
        "labels": blocks,
        "length": [len(block) for block in blocks],
    }
    return Dataset.from_dict(columns, features=Features({**types, "length": Value("int32")}))


def _measure(spec: Task, predictions: Sequence[Foretold], rows: Dataset) -> dict[str, float]:
    return measure_foretold(predictions)


def _show(spec: Task, predictions: Sequence[Foretold], rows: Dataset) -> list[dict[str, Any]]:
    return show_foretold(predictions, count())


def _decode(spec: Task, outputs: Outputs, rows: Dataset, features: Dataset) -> list[Foretold]:
    return foretold(outputs, features["labels"])


LANGUAGE_MODELLING = Kind(
    head=HEAD,
    outputs=(LOGITS,),
    targets=("labels",),
    check=_check,
    num_labels=lambda spec: 0,
    metrics=lambda spec: METRICS,
    usual_metrics=METRICS,
    rows=_rows,
    is_labelled=lambda spec, label: True,
    features=_features,
    decode=_decode,
    measure=_measure,
    show=_show,
    arrange=_arrange,
    less_is_better=LESS_IS_BETTER,
    causal=True,
)
