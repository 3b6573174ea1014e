"""What an IR computes, held against what torch computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from bootstrapnas.errors import UserError
from bootstrapnas.export.runtime import Runner


class ExportError(UserError):
    """The model cannot be converted, or the converted model computes something else."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two models are apart, over all outputs and batches. NaN if one of them returns NaN.

    Attributes
    ----------
    absolute
        The largest difference.
    relative
        The largest one, per output divided by that output's largest magnitude.
    error
        What a tolerance bounds: the same, but divided by that magnitude only where it is above 1.
    agreement
        The share of all last axes (of classes, of positions) whose largest entry is at the same place; of outputs
        whose last axis is a single number, and of hidden states, it says nothing.
    """

    absolute: float
    relative: float
    error: float
    agreement: float


@dataclass(frozen=True)
class TaskMetric:
    """What an IR is worth: the metric of its task, beside torch's on the same rows.

    Attributes
    ----------
    name
        Of the metric.
    split
        Where the rows are from.
    rows
        How many they are.
    torch
        The model's own metric, in float32.
    batches
        The rows, as the metric is measured on them.
    of
        Measures it.
    greater_is_better
        Whether more of it is better.
    """

    name: str
    split: str
    rows: int
    torch: float
    batches: Sequence[Mapping[str, Tensor]] = field(repr=False)
    of: Callable[[Runner], float] = field(repr=False)
    greater_is_better: bool = True

    def drop(self, measured: float) -> float:
        """Return how much worse than torch's a metric is: what it lost, or of perplexities, by which share it grew."""
        return self.torch - measured if self.greater_is_better else (measured - self.torch) / self.torch


def difference(found: Sequence[Mapping[str, np.ndarray]], wanted: Sequence[Mapping[str, np.ndarray]]) -> Difference:
    """Return how far outputs are apart.

    Parameters
    ----------
    found, wanted
        Outputs by name, a mapping a batch, in the same order.

    Raises
    ------
    ExportError
        If an output has another shape.
    """
    absolute: dict[str, float] = {}
    scale: dict[str, float] = {}
    same = total = 0
    for ours, theirs in zip(found, wanted, strict=True):
        check_shapes(ours, theirs)
        for name, right in theirs.items():
            apart = float(np.abs(ours[name] - right).max())
            absolute[name] = float(np.maximum(absolute.get(name, 0.0), apart))  # unlike max(), keeps NaN
            scale[name] = max(scale.get(name, 0.0), float(np.abs(right).max()))
            places = ours[name].argmax(axis=-1) == right.argmax(axis=-1)
            same, total = same + int(places.sum()), total + places.size
    tiny = float(np.finfo(np.float32).tiny)
    return Difference(
        absolute=float(np.max(list(absolute.values()))),
        relative=float(np.max([absolute[name] / max(scale[name], tiny) for name in absolute])),
        error=float(np.max([absolute[name] / max(scale[name], 1.0) for name in absolute])),
        agreement=same / total,
    )


def check_shapes(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Raise `ExportError` if an output has another shape than it should have."""
    for name, right in wanted.items():
        if found[name].shape != right.shape:
            raise ExportError(f"the IR's {name} has shape {found[name].shape}, torch's {right.shape}")


def probe_batches(batch: Mapping[str, Tensor], pad: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield what to compare on: a batch, its first row, its first half of the tokens, and its last quarter padded.

    A model traced with one shape or without padding may be right on that alone. Rows without any token to attend to
    are left out: what attention makes of them is undefined.

    Parameters
    ----------
    batch
        Tensors of shape [batch, length].
    pad
        The token that pads: heads of decoders tell by it where a text ends.
    """
    length = batch["input_ids"].shape[1]
    variants = [dict(batch), {k: v[:1] for k, v in batch.items()}]
    variants.append({k: v[:, : (length + 1) // 2] for k, v in batch.items()})
    if "attention_mask" in batch:
        mask = batch["attention_mask"].clone()
        mask[:, length - length // 4 :] = 0
        ids = batch["input_ids"] if pad is None else batch["input_ids"].masked_fill(mask == 0, pad)
        variants.append({**batch, "input_ids": ids, "attention_mask": mask})
    for variant in variants:
        if "attention_mask" in variant:
            attended = variant["attention_mask"].any(dim=1)
            variant = {k: v[attended] for k, v in variant.items()}
        if variant["input_ids"].numel():
            yield variant
