"""Write a model as an OpenVINO IR and prove that the files compute what the model computes."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bootstrapnas.artefacts import FORMAT, read_json, replacing_directory, versions, write_json, writing
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.export.causal import CausalConversion
from bootstrapnas.export.conversion import Conversion, EncoderConversion
from bootstrapnas.export.runtime import MODEL_FILE, load_ir
from bootstrapnas.export.verification import Difference, ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXPORT_FILE = "export.json"
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
"""Weight formats, and how far an output may be from torch's, in units of its scale where that is above 1."""


HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A verified IR.

    Attributes
    ----------
    directory
        Where it is.
    kind
        ``"encoder"`` or ``"causal"``.
    weight_format
        ``"fp32"`` or ``"fp16"``.
    inputs, outputs
        Names.
    tolerance
        The largest difference that was allowed.
    max_abs_difference
        The largest difference from torch in float32, over all outputs and batches.
    max_rel_difference
        The same, per output divided by that output's largest magnitude.
    shapes
        [batch, length] of what was compared.
    size
        Bytes of the weights file.
    seconds
        What the conversion took, without verification.
    tokenizer_ir
        Whether the tokenizer is there as an IR too.
    """

    directory: Path
    kind: str
    weight_format: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tolerance: float
    max_abs_difference: float
    max_rel_difference: float
    shapes: tuple[tuple[int, int], ...]
    size: int
    seconds: float
    tokenizer_ir: bool


def export_openvino(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: str | os.PathLike[str],
    *,
    weight_format: str = "fp32",
    example_batches: Sequence[Mapping[str, Tensor]],
    tolerance: float | None = None,
) -> ExportResult:
    """Write `model` as an OpenVINO IR with dynamic batch and length.

    The saved files are read again, run on the CPU in float32 and compared with `model` on the example batches and on
    smaller, shorter and padded ones made from them. The directory appears only when all agree; it has the layout that
    optimum-intel's ``OVModelFor…`` reads, and ``export.json`` with what was measured. An earlier export there is
    replaced.

    Parameters
    ----------
    model
        For example from `bootstrapnas.extraction`. Weights in bfloat16 or float16 are float32 meanwhile. Left as it is
        found.
    tokenizer
        Saved with the model, also as ``openvino_tokenizer.xml`` if openvino_tokenizers is installed and converts it.
        It decides which inputs the IR has; without it the first example batch does.
    directory
        Where to write.
    weight_format
        ``"fp32"``, or ``"fp16"`` to store weights in half the space; what to compute in is chosen on loading.
    example_batches
        Real batches, tensors of shape [batch, length] by input name; other entries are not looked at.
    tolerance
        Largest absolute difference of any output, as a share of its scale where that is above 1; default:
        `TOLERANCES`.

    Raises
    ------
    ExportError
        If conversion fails or an output differs by more than `tolerance`.
    UserError
        If an argument is unusable, or `directory` holds something else than an export.
    """
    import openvino as ov

    if weight_format not in TOLERANCES:
        hint = near_miss(weight_format, TOLERANCES)
        raise UserError(f"unknown weight_format {weight_format!r}, known: {listed(TOLERANCES)}{hint}")
    directory = Path(directory)
    refuse_foreign(directory)
    tolerance = TOLERANCES[weight_format] if tolerance is None else tolerance
    reference = _reference(model)
    with _in_float32(reference), _evaluating(reference), replacing_directory(directory) as temporary:
        conversion = conversion_of(reference, tokenizer, example_batches)
        if weight_format in conversion.unsuitable:
            raise UserError(f"weight_format {weight_format}: {conversion.unsuitable[weight_format]}")
        started = time.perf_counter()
        ir = conversion.convert()
        with writing(directory):
            ov.save_model(ir, temporary / MODEL_FILE, compress_to_fp16=weight_format == "fp16")
        seconds = time.perf_counter() - started
        del ir
        loaded = load_ir(temporary, "f32")
        found = conversion.compare(loaded)
        if not found.error <= tolerance:  # so that NaN fails
            remedy = "; use weight_format fp32 or a larger tolerance" if weight_format == "fp16" else ""
            raise ExportError(
                f"the {weight_format} IR of {type(model).__name__} differs from torch by {found.absolute:.3g} "
                f"({found.relative:.2g} of the outputs' scale), more than the tolerance {tolerance:.3g}: "
                f"{directory} was not written{remedy}"
            )
        conversion.check(loaded, found)
        del loaded
        _save_config(reference, temporary)
        tokenizer_note = conversion.save_tokenizer(temporary)
        result = _result(conversion, found, directory, temporary, weight_format, tolerance, seconds, tokenizer_note)
        _save_result(result, tokenizer_note, temporary)
    return result


def conversion_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, batches: Sequence[Mapping[str, Tensor]]
) -> Conversion:
    """Return how a model of this kind is converted and compared: the place where kinds of models part."""
    if not model.can_generate():
        return EncoderConversion(model, tokenizer, batches)
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__} has an encoder and a decoder; only models of one of them can be exported"
        )
    return CausalConversion(model, tokenizer, batches)


def refuse_foreign(directory: Path) -> None:
    """Raise `UserError` rather than replace a directory that is no export."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / EXPORT_FILE).is_file():
        raise UserError(f"{directory} is not empty and holds no export; choose another directory")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another directory")


def _reference(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model on the CPU; a copy only if it is elsewhere."""
    known = (torch.float32, *HALVES)
    other = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype not in known})
    if other:
        name = type(model).__name__
        raise UserError(
            f"export needs a model in float32, bfloat16 or float16; {name} has parameters in {listed(other)}"
        )
    return model if model.device.type == "cpu" else copy.deepcopy(model).cpu()


@contextlib.contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Turn tensors in half precision into float32, and afterwards back: exact both ways, and never two whole copies."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in HALVES]
    before = [tensor.dtype for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(tensors, before, strict=True):
            tensor.data = tensor.data.to(dtype)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and afterwards each back in its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _save_config(model: PreTrainedModel, directory: Path) -> None:
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    config = read_json(directory / "config.json")
    config.pop("auto_map", None)  # it names a Python file that an IR does not need
    write_json(directory / "config.json", config)


def _result(
    conversion: Conversion,
    found: Difference,
    directory: Path,
    temporary: Path,
    weight_format: str,
    tolerance: float,
    seconds: float,
    tokenizer_note: str | None,
) -> ExportResult:
    return ExportResult(
        directory=directory,
        kind=conversion.kind,
        weight_format=weight_format,
        inputs=conversion.inputs,
        outputs=conversion.outputs,
        tolerance=tolerance,
        max_abs_difference=found.absolute,
        max_rel_difference=found.relative,
        shapes=conversion.shapes,
        size=(temporary / MODEL_FILE).with_suffix(".bin").stat().st_size,
        seconds=seconds,
        tokenizer_ir=tokenizer_note is None,
    )


def _save_result(result: ExportResult, tokenizer_note: str | None, directory: Path) -> None:
    write_json(
        directory / EXPORT_FILE,
        {
            "format": FORMAT,
            "kind": result.kind,
            "weight_format": result.weight_format,
            "inputs": result.inputs,
            "outputs": result.outputs,
            "size": result.size,
            "verified": {
                "tolerance": result.tolerance,
                "max_abs_difference": result.max_abs_difference,
                "max_rel_difference": result.max_rel_difference,
                "shapes": result.shapes,
            },
            "tokenizer_ir": result.tokenizer_ir,
            "tokenizer_note": tokenizer_note,
            "versions": versions(),
        },
    )
