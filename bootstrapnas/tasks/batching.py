"""From rows to batches of tensors, padded only as far as a batch needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import GROUP, IGNORED, INDEX, TEACHER, Output
from bootstrapnas.tasks.spec import TaskSpec

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def tokenize(data: Dataset, tokenizer: PreTrainedTokenizerBase, spec: TaskSpec) -> Dataset:
    """Turn rows of `load_task` into the features that a model sees, at most ``spec.max_seq_length`` tokens, not padded.

    Returns
    -------
    Dataset
        ``input_ids``, ``attention_mask`` (``token_type_ids`` where the tokenizer gives them), the targets of the kind
        of task, and ``length`` in tokens. Hugging Face's Trainer takes its ``group_by_length`` order from ``length``
        when ``remove_unused_columns=False``; otherwise it drops the column first and counts anew. Further columns are
        what the outputs are decoded with; `training_columns` says which are not.
    """
    return spec.kind.features(spec, data, tokenizer)


def tokenize_to_measure(data: Dataset, tokenizer: PreTrainedTokenizerBase, spec: TaskSpec) -> Dataset:
    """Turn rows into what a model is measured with: mostly the features of `tokenize`."""
    return (spec.kind.probes or spec.kind.features)(spec, data, tokenizer)


@dataclass(frozen=True)
class Collator:
    """Pads features to the longest of their batch; made by `build_collator`."""

    padding: tuple[tuple[str, int], ...]
    side: str
    multiple_of: int
    targets: tuple[str, ...]
    outputs: tuple[Output, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a model takes as they are."""
        return tuple(name for name, _ in self.padding)

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that reductions of outputs read besides."""
        return tuple(name for output in self.outputs if output.reduction for name in output.reduction.reads)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ``[batch, tokens]`` tensors of the tokenizer's inputs, and what else the rows hold.

        Targets are ``[batch]``, or ``[batch, tokens]`` padded by -100 (int64 or float32); a teacher's outputs,
        ``teacher_<name>``, have the axes of the output (float32, padded by 0); ``index`` is ``[batch]`` (int64). What
        reductions read is ``[batch]``, or ``[batch, most]`` padded by -100. Other columns are left out.
        """
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // self.multiple_of) * self.multiple_of
        batch = {}
        for name, value in self.padding:
            if name in rows[0]:
                batch[name] = self._padded([row[name] for row in rows], width, value, torch.int64)
        for name in self.read:
            if name in rows[0]:
                values = [row[name] for row in rows]
                lists = isinstance(values[0], Sequence)
                most = max(map(len, values)) if lists else 0
                batch[name] = self._padded(values, most, IGNORED, torch.int64) if lists else torch.tensor(values)
        for name in (*self.targets, INDEX):
            if name not in rows[0]:
                continue
            values = [row[name] for row in rows]
            if isinstance(values[0], Sequence):
                batch[name] = self._padded(values, width, IGNORED, torch.int64)
            else:
                batch[name] = torch.tensor(values)
        for output in self.outputs:
            name = TEACHER + output.name
            if name not in rows[0]:
                continue
            values = [row[name] for row in rows]
            if output.per_token:
                batch[name] = self._padded(values, width, 0, torch.float32)
            else:
                batch[name] = torch.tensor(values, dtype=torch.float32)
        return batch

    def _padded(self, rows: Sequence[Any], width: int, value: int, dtype: torch.dtype) -> Tensor:
        """Return rows of ``[tokens, ...]`` as one tensor ``[batch, width, ...]``."""
        import torch

        tensors = [torch.as_tensor(row, dtype=dtype) for row in rows]
        padded = torch.full((len(rows), width, *tensors[0].shape[1:]), value, dtype=dtype)
        for place, tensor in zip(padded, tensors, strict=True):
            start = width - len(tensor) if self.side == "left" else 0
            place[start : start + len(tensor)] = tensor
        return padded


def build_collator(tokenizer: PreTrainedTokenizerBase, spec: TaskSpec, multiple_of: int = 1) -> Collator:
    """Return the collator for features of `tokenize`.

    Parameters
    ----------
    tokenizer
        Decides the padding tokens and the side. Of a causal task that is the right one, and any token will do, as
        nothing sees it: the one that ends a text, where the tokenizer has none to pad with.
    spec
        The task decides which columns are targets and which outputs a teacher may have given.
    multiple_of
        Widths are rounded up to a multiple of this; 8 suits tensor cores.

    Raises
    ------
    UserError
        If the tokenizer has no padding token.
    """
    pad, causal = tokenizer.pad_token_id, spec.kind.causal
    if pad is None and causal:
        pad = tokenizer.eos_token_id or 0
    if pad is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no padding token; set its pad_token")
    values = {"input_ids": pad, "token_type_ids": tokenizer.pad_token_type_id}
    padding = tuple((name, values.get(name, 0)) for name in tokenizer.model_input_names)
    side = "right" if causal else tokenizer.padding_side
    return Collator(padding, side, multiple_of, spec.kind.targets, spec.kind.outputs)


def training_columns(features: Dataset, collator: Collator) -> list[str]:
    """Return the columns of features that a training batch is made of, and ``length``."""
    return [name for name in features.column_names if name in (*collator.inputs, *collator.targets, "length")]


def batches(
    dataset: Dataset,
    collator: Collator,
    batch_size: int,
    most_tokens: float = math.inf,
    starts: str | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield a tokenized data set as batches of rows of like length, the longest first.

    Nearly nothing is padded that way, and what does not fit in memory fails at once. Rows of one ``group``, where there
    is such a column, share batches: their texts begin alike. The group of the longest row comes first. Each batch
    carries ``index`` ``[batch]``, the positions of its rows in `dataset`.

    A batch of more than one row has at most `most_tokens` tokens whose outputs are computed, padding too: all of them,
    or those that `predict` computes where the column `starts` has each row's first that counts (`Reduction.start`).
    """
    lengths = list(dataset["length"])
    grouped = list(dataset[GROUP]) if GROUP in dataset.column_names else [0] * len(lengths)
    groups: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        groups.setdefault(grouped[row], []).append(row)
    first = [1] * len(lengths) if starts is None else list(dataset[starts])
    for order in groups.values():
        for index in _cut(order, lengths, first, batch_size, most_tokens):
            columns = dataset[index]
            rows = [{name: values[i] for name, values in columns.items()} | {INDEX: row} for i, row in enumerate(index)]
            yield collator(rows)


def _cut(
    order: Sequence[int], lengths: Sequence[int], starts: Sequence[int], most_rows: int, most_tokens: float
) -> Iterator[list[int]]:
    """Yield rows, which are in order of their lengths, in batches as large as the limits of `batches` let them be."""
    batch: list[int] = []
    for row in order:
        grown = [*batch, row]
        tokens = lengths[grown[0]] - min(starts[each] for each in grown) + 1
        if batch and (len(batch) == most_rows or len(grown) * tokens > most_tokens):
            yield batch
            grown = [row]
        batch = grown
    if batch:
        yield batch
