"""From rows to batches of tensors, padded only as far as a batch needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bootstrapnas.errors import UserError
from bootstrapnas.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_TEXT_COLUMNS = ("text_a", "text_b")
_ROWS_AT_ONCE = 1000


def tokenize(data: Dataset, tokenizer: PreTrainedTokenizerBase, spec: TaskSpec) -> Dataset:
    """Turn rows of `load_task` into token ids, cut to ``spec.max_seq_length`` and not padded.

    Returns
    -------
    Dataset
        ``input_ids``, ``attention_mask`` (``token_type_ids`` where the tokenizer gives them), ``labels``, and
        ``length`` in tokens. Hugging Face's Trainer takes its ``group_by_length`` order from ``length`` when
        ``remove_unused_columns=False``; otherwise it drops the column first and counts anew.
    """
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    texts = [name for name in _TEXT_COLUMNS if name in data.column_names]
    names = [name for name in tokenizer.model_input_names if name in tokenizer("a")]
    types = {name: List(Value("int32" if name == "input_ids" else "int8")) for name in names}
    features = Features({**types, "labels": data.features["label"], "length": Value("int32")})
    parts = []
    for rows in data.iter(batch_size=_ROWS_AT_ONCE):
        encoded = tokenizer(*(rows[name] for name in texts), truncation=True, max_length=spec.max_seq_length)
        columns = {name: encoded[name] for name in names}
        columns |= {"labels": rows["label"], "length": [len(ids) for ids in encoded["input_ids"]]}
        parts.append(Dataset.from_dict(columns, features=features))
    return concatenate_datasets(parts)


@dataclass(frozen=True)
class Collator:
    """Pads tokenized rows to the longest of their batch; made by `build_collator`."""

    padding: tuple[tuple[str, int], ...]
    side: str
    multiple_of: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ``[batch, tokens]`` tensors of the tokenizer's inputs, and what else the rows hold.

        ``labels`` is ``[batch]`` (int64 or float32), the optional ``teacher_logits`` ``[batch, num_labels]`` (float32),
        the optional ``index`` ``[batch]`` (int64). Other columns are left out.
        """
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // self.multiple_of) * self.multiple_of
        batch = {}
        for name, value in self.padding:
            if name not in rows[0]:
                continue
            tensor = torch.full((len(rows), width), value, dtype=torch.int64)
            for tokens, row in zip(tensor, rows, strict=True):
                ids = torch.as_tensor(row[name])
                start = width - len(ids) if self.side == "left" else 0
                tokens[start : start + len(ids)] = ids
            batch[name] = tensor
        for name in ("labels", "index"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "teacher_logits" in rows[0]:
            batch["teacher_logits"] = torch.tensor([row["teacher_logits"] for row in rows], dtype=torch.float32)
        return batch


def build_collator(tokenizer: PreTrainedTokenizerBase, multiple_of: int = 1) -> Collator:
    """Return the collator for rows of `tokenize`.

    Parameters
    ----------
    tokenizer
        Decides the padding tokens and the side.
    multiple_of
        Widths are rounded up to a multiple of this; 8 suits tensor cores.

    Raises
    ------
    UserError
        If the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no padding token; set its pad_token")
    values = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    padding = tuple((name, values.get(name, 0)) for name in tokenizer.model_input_names)
    return Collator(padding, tokenizer.padding_side, multiple_of)


def batches(dataset: Dataset, collator: Collator, batch_size: int) -> list[dict[str, Tensor]]:
    """Return a tokenized data set as batches of rows of like length, the longest first.

    Nearly nothing is padded that way, and what does not fit in memory fails at once. Each batch carries ``index``
    ``[batch]``, the positions of its rows in `dataset`.
    """
    lengths = list(dataset["length"])
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    found = []
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        columns = dataset[index]
        rows = [{name: values[i] for name, values in columns.items()} | {"index": row} for i, row in enumerate(index)]
        found.append(collator(rows))
    return found
