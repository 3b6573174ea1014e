"""Outputs of a model over prepared batches, as fast as the machine allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bootstrapnas.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")
INDEX = "index"
"""Key of a batch's tensor of row numbers in the data set, shape [batch]."""


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))


def evaluation_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype for ``"auto"`` (bfloat16 where the hardware has it), ``"float32"`` or ``"bfloat16"``."""
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@torch.inference_mode()
def predict(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """Return the model's logits in the order of the data set, shape [rows, labels], float32.

    Parameters
    ----------
    model
        Returns an output with ``logits`` of shape [batch, labels]. Its device and dtype are used as they are.
    batches
        Model inputs plus ``"index"``, the row numbers; ``"labels"`` are not passed on.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    rows, parts = [], []
    for batch in batches:
        inputs = {k: v.to(device) for k, v in batch.items() if k not in (INDEX, "labels", "teacher_logits")}
        parts.append(model(**inputs).logits.float().cpu())
        rows.append(batch[INDEX])
    model.train(was_training)
    order = torch.cat(rows).argsort()
    return torch.cat(parts)[order].numpy()
