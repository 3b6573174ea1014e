"""The training rows that calibrate what is not trained."""

from __future__ import annotations

from typing import Any

from bootstrapnas.outputs import INDEX
from bootstrapnas.pipeline.arguments import StageTrainingArguments
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.tasks import batches


def calibration_batches(rows: Rows, count: int, training: StageTrainingArguments) -> list[dict[str, Any]]:
    """Return up to `count` batches of training rows, drawn by the seed, with their labels, on the training device."""
    train, size = rows.split("train"), training.per_device_train_batch_size
    sample = train.shuffle(seed=training.seed).select(range(min(len(train), count * size)))
    return [
        {name: tensor.to(training.device) for name, tensor in batch.items() if name != INDEX}
        for batch in batches(sample, rows.collator, size)
    ]
