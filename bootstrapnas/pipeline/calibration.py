"""The training rows that calibrate what is not trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.importance import find_criterion
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


def calibrated_scores(
    criterion: str, model: PreTrainedModel, rows: Rows, count: int, training: StageTrainingArguments
) -> dict[str, Tensor]:
    """Return a criterion's scores of a model, moved to the training device, by up to `count` `calibration_batches`."""
    inputs = calibration_batches(rows, count, training)
    model.to(training.device)
    return find_criterion(criterion)(model, Blueprint.of(model), inputs, lambda scored, batch: scored(**batch).loss)
