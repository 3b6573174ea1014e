"""Outputs of a model over prepared batches, as fast as the machine allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bootstrapnas.errors import UserError
from bootstrapnas.outputs import INDEX, LOGITS, MASK, Output, Outputs
from bootstrapnas.reading import outputs_from

PRECISIONS = ("auto", "float32", "bfloat16")


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
def predict(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], outputs: Sequence[Output] = (LOGITS,)
) -> Outputs:
    """Return outputs of a model, row by row in the order of the data set, float32.

    What a causal model says of tokens that count for nothing (`Reduction.start`) is not computed, and what the rows of
    a batch begin with is read once.

    Parameters
    ----------
    model
        A Hugging Face model that returns `outputs`. Its device and dtype are used as they are.
    batches
        Model inputs, and ``"index"``, the row numbers.
    outputs
        What to keep of the model's outputs, each reduced batch by batch if it says so.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    reductions = [output.reduction for output in outputs if output.reduction is not None]
    others = {name for reduction in reductions for name in reduction.reads}
    starts = [reduction.start for reduction in reductions if reduction.start is not None]

    def run(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name not in others}
        if starts and len(starts) == len(outputs) and all(name in batch for name in starts):
            found = outputs_from(model, inputs, min(int(batch[name].min()) for name in starts) - 1)
        else:
            found = model(**inputs)
        return {output.name: found[output.name] for output in outputs}

    try:
        return collect(run, batches, outputs)
    finally:
        model.train(was_training)


def collect(
    run: Callable[[Mapping[str, Tensor]], Mapping[str, np.ndarray | Tensor]],
    batches: Iterable[Mapping[str, Tensor]],
    outputs: Sequence[Output],
) -> Outputs:
    """Return what `run` gives for each batch, row by row in the order of the data set; padding is cut off.

    Parameters
    ----------
    run
        Inputs of a batch -> arrays or tensors by output name, [batch, ...].
    batches
        Inputs, ``"attention_mask"`` if an output has an axis of tokens, and ``"index"``.
    outputs
        What to keep.
    """
    kept_outputs = [kept for output in outputs for kept in output.kept]
    rows: dict[str, dict[int, np.ndarray]] = {output.name: {} for output in kept_outputs}
    for batch in batches:
        inputs = {name: tensor for name, tensor in batch.items() if name != INDEX}
        found = _kept(run(inputs), outputs, inputs)
        for output in kept_outputs:
            arrays: Iterable[np.ndarray] = found[output.name]
            if output.per_token:
                kept = np.asarray(batch[MASK]) != 0
                arrays = [array[tokens] for array, tokens in zip(arrays, kept, strict=True)]
            rows[output.name].update(zip(np.asarray(batch[INDEX]).tolist(), arrays, strict=True))
    return {name: [found[row] for row in sorted(found)] for name, found in rows.items()}


def _kept(
    found: Mapping[str, np.ndarray | Tensor], outputs: Sequence[Output], batch: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Return the outputs of a batch, or what their reductions make of them, float32."""
    kept: dict[str, np.ndarray | Tensor] = {}
    for output in outputs:
        if output.reduction is None:
            kept[output.name] = found[output.name]
        else:
            kept |= output.reduction.function(torch.as_tensor(found[output.name]), batch)
    return {name: value.float().cpu().numpy() if isinstance(value, Tensor) else value for name, value in kept.items()}
