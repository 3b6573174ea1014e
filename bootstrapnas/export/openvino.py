"""Write a model as an OpenVINO IR and prove that the files compute what the model computes."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bootstrapnas.artefacts import FORMAT, read_json, replacing_directory, versions, write_json, writing
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.export.causal import CausalConversion
from bootstrapnas.export.compression import (
    COMPRESSED,
    OF_INT8,
    WeightCompression,
    compress,
    compressed_weights,
    outer_layers,
    warn_of_widths,
)
from bootstrapnas.export.conversion import Conversion, EncoderConversion
from bootstrapnas.export.quantisation import (
    QUANTISED,
    Quantisation,
    check_calibration,
    count_operations,
    quantise,
)
from bootstrapnas.export.runtime import MODEL_FILE, complete, load_ir, load_unsaved
from bootstrapnas.export.verification import Difference, ExportError, TaskMetric

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXPORT_FILE = "export.json"
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
"""How far an output may be from torch's, in units of its scale where that is above 1, by format of the weights."""
WEIGHT_FORMATS = (*TOLERANCES, *COMPRESSED)
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
        One of `WEIGHT_FORMATS`.
    quant_mode
        ``"int8"`` where activations are quantised too.
    inputs, outputs
        Names.
    tolerance
        The largest difference that was allowed.
    max_abs_difference
        The largest difference from torch in float32, over all outputs and batches: of the files, or where they hold
        integers, of what was quantised.
    max_rel_difference
        The same, per output divided by that output's largest magnitude.
    difference
        How far the files are from torch.
    metric
        The task metric of the files, computed in float32; None where there was none to measure.
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
    quant_mode: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tolerance: float
    max_abs_difference: float
    max_rel_difference: float
    difference: Difference
    metric: float | None
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
    compression: WeightCompression | None = None,
    quantisation: Quantisation | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
    example_batches: Sequence[Mapping[str, Tensor]],
    tolerance: float | None = None,
    metric: TaskMetric | None = None,
) -> ExportResult:
    """Write `model` as an OpenVINO IR with dynamic batch and length.

    The saved files are read again, run on the CPU in float32 and compared with `model` on the example batches and on
    smaller, shorter and padded ones made from them. Of integers, the conversion is compared in float32 before it is
    quantised, and what the files differ by is recorded. The directory appears only when all agree; it has the layout
    that optimum-intel's ``OVModelFor…`` reads, and ``export.json`` with what was measured. An earlier export there is
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
        ``"fp32"``, or ``"fp16"`` to store weights in half the space, ``"int8"`` in a quarter, ``"int4"`` in about an
        eighth; what to compute in is chosen on loading.
    compression
        How to make integers of the weights; default: `WeightCompression` without arguments.
    quantisation
        To quantise activations as well; what is not quantised is stored in `weight_format`, fp32 or fp16.
    calibration
        What to quantise by: batches like the examples, best of a row each.
    example_batches
        Real batches, tensors of shape [batch, length] by input name; other entries are not looked at.
    tolerance
        Largest absolute difference of any output, as a share of its scale where that is above 1; default:
        `TOLERANCES`.
    metric
        What to measure of the files.

    Raises
    ------
    ExportError
        If conversion or quantisation fails, an output differs by more than `tolerance`, or the metric drops by more
        than `max_drop` or ``quantisation.max_drop``.
    UserError
        If an argument is unusable, or `directory` holds something else than an export.
    """
    check_formats(model, weight_format, quantised=quantisation is not None)
    if compression is not None and weight_format not in COMPRESSED:
        raise UserError(f"compression is for weight_format {' and '.join(COMPRESSED)}, not {weight_format}")
    directory = Path(directory)
    refuse_foreign(directory)
    reference = as_reference(model)
    name = type(model).__name__
    with computing_in_float32(reference), replacing_directory(directory) as temporary:
        conversion = conversion_class(reference)(reference, tokenizer, example_batches)
        if quantisation is not None:
            check_calibration(quantisation, calibration, conversion.inputs, metric)
        started = time.perf_counter()
        ir = conversion.convert()
        seconds = time.perf_counter() - started
        integers = quantisation is not None or weight_format in COMPRESSED
        exact = "fp32" if integers else weight_format
        remedy = "; use weight_format fp32 or a larger tolerance" if exact == "fp16" else ""
        plain: Difference | None = None
        if integers or weight_format == "fp16":  # what is rounded later is compared before
            unsaved = load_unsaved(ir)
            plain = conversion.compare(unsaved)
            check_difference(plain, _allowed(tolerance, "fp32"), f"fp32 IR of {name}", directory)
            conversion.check(unsaved, plain)
            del unsaved
        started = time.perf_counter()
        how: dict[str, Any] = {}
        if quantisation is not None:
            ir = quantise(ir, name, quantisation, calibration, conversion.inputs, metric)
            rows = sum(len(batch["input_ids"]) for batch in calibration)
            counts = count_operations(ir)
            how["quantisation"] = {**asdict(quantisation), "calibration_rows": rows, "operations": counts}
        elif weight_format in COMPRESSED:
            compression = compression or WeightCompression()
            items = [complete(batch, conversion.inputs) for batch in calibration] if compression.needs_data else []
            ir = compress(ir, name, weight_format, compression, items)
            weights = compressed_weights(ir)
            if weight_format == "int4":
                warn_of_widths(weights, compression, outer_layers(ir))
            stored = [asdict(group) for group in weights]
            settings = asdict(compression)
            if weight_format == "int8":
                settings = {name: settings[name] for name in OF_INT8}
            how["compression"] = {**settings, "calibration_rows": len(items), "weights": stored}
        seconds += time.perf_counter() - started
        _save(ir, temporary / MODEL_FILE, directory, half=weight_format == "fp16")
        del ir
        save_config(reference, temporary)
        loaded = load_ir(temporary, "f32")
        found = conversion.compare(loaded)
        if not integers:
            check_difference(found, _allowed(tolerance, exact), f"{exact} IR of {name}", directory, remedy)
            if plain is None:
                conversion.check(loaded, found)
        elif not math.isfinite(found.absolute):
            raise ExportError(f"the quantised IR of {name} returns {found.absolute}: {directory} was not written")
        measured = None if metric is None else metric.of(loaded)
        _check_drop(metric, measured, quantisation or compression, name, directory)
        del loaded
        tokenizer_note = conversion.save_tokenizer(temporary)
        verified = plain if integers and plain is not None else found
        result = ExportResult(
            directory=directory,
            kind=conversion.kind,
            weight_format=weight_format,
            quant_mode=None if quantisation is None else "int8",
            inputs=conversion.inputs,
            outputs=conversion.outputs,
            tolerance=_allowed(tolerance, exact),
            max_abs_difference=verified.absolute,
            max_rel_difference=verified.relative,
            difference=found,
            metric=measured,
            shapes=conversion.shapes,
            size=(temporary / MODEL_FILE).with_suffix(".bin").stat().st_size,
            seconds=seconds,
            tokenizer_ir=tokenizer_note is None,
        )
        write_json(temporary / EXPORT_FILE, {**record_of(result, tokenizer_note, metric), **how})
    return result


def conversion_class(model: PreTrainedModel) -> type[Conversion]:
    """Return how models of this kind are converted and compared: the place where kinds part."""
    if not model.can_generate():
        return EncoderConversion
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__} has an encoder and a decoder; only models of one of them can be exported"
        )
    return CausalConversion


def check_formats(model: PreTrainedModel, weight_format: str, *, quantised: bool) -> None:
    """Raise `UserError` if a model of this kind is not exported in a weight format, or not quantised."""
    check_suitable(conversion_class(model), type(model).__name__, weight_format, quantised=quantised)


def check_suitable(kind: type[Conversion], name: str, weight_format: str, *, quantised: bool) -> None:
    """Do what `check_formats` does, for a model that is called `name`."""
    if weight_format not in WEIGHT_FORMATS:
        hint = near_miss(weight_format, WEIGHT_FORMATS)
        raise UserError(f"unknown weight_format {weight_format!r}, known: {listed(WEIGHT_FORMATS)}{hint}")
    for key in (f"weight_format {weight_format}", *([QUANTISED] if quantised else [])):
        if key in kind.unsuitable:
            raise UserError(f"{name} cannot be exported with {key}: {kind.unsuitable[key]}")
    if quantised and weight_format in COMPRESSED:
        raise UserError(f"quantisation makes integers of the weights too: weight_format must not be {weight_format}")


def refuse_foreign(directory: Path) -> None:
    """Raise `UserError` rather than replace a directory that is no export."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / EXPORT_FILE).is_file():
        raise UserError(f"{directory} is not empty and holds no export; choose another directory")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another directory")


def as_reference(model: PreTrainedModel) -> PreTrainedModel:
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
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and its tensors in half precision in float32, and afterwards all back as they were.

    That is exact both ways, and there are never two whole copies.
    """
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in HALVES]
    before = [tensor.dtype for tensor in tensors]
    training = [module for module in model.modules() if module.training]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for tensor, dtype in zip(tensors, before, strict=True):
            tensor.data = tensor.data.to(dtype)


def save_config(model: PreTrainedModel, directory: Path) -> None:
    """Write ``config.json``, and what a model that generates is asked to do by default."""
    with writing(directory):
        model.config.save_pretrained(directory)
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
    config = read_json(directory / "config.json")
    config.pop("auto_map", None)  # it names a Python file that an IR does not need
    write_json(directory / "config.json", config)


def _allowed(tolerance: float | None, exact: str) -> float:
    """Return how far an IR of weights in the format `exact` may be from torch."""
    return TOLERANCES[exact] if tolerance is None else tolerance


def check_difference(found: Difference, tolerance: float, what: str, directory: Path, remedy: str = "") -> None:
    """Raise `ExportError` if what was written is further from torch than is allowed."""
    if not found.error <= tolerance:  # so that NaN fails
        raise ExportError(
            f"the {what} differs from torch by {found.absolute:.3g} ({found.relative:.2g} of the outputs' scale), more "
            f"than the tolerance {tolerance:.3g}: {directory} was not written{remedy}"
        )


def _check_drop(
    metric: TaskMetric | None,
    measured: float | None,
    settings: Quantisation | WeightCompression | None,
    name: str,
    directory: Path,
) -> None:
    """Raise `ExportError` if the task metric has become worse than allowed."""
    if metric is None or measured is None or settings is None or settings.max_drop is None:
        return
    if not metric.drop(measured) <= settings.max_drop:  # so that NaN fails
        allowed = f"{100 * settings.max_drop:g}"
        lost = f"lost more than {allowed} points" if metric.greater_is_better else f"grown by more than {allowed} %"
        raise ExportError(
            f"the quantised IR of {name} has {metric.name} {measured:.4f}, torch {metric.torch:.4f}: it has {lost}; "
            f"{directory} was not written"
        )


def _save(ir: Any, path: Path, directory: Path, *, half: bool) -> None:
    import openvino as ov

    with writing(directory):
        ov.save_model(ir, path, compress_to_fp16=half)


def record_of(result: ExportResult, tokenizer_note: str | None, metric: TaskMetric | None) -> dict[str, Any]:
    """Return what ``export.json`` says."""
    measured = None
    if metric is not None:
        measured = {"name": metric.name, "torch": metric.torch, "ir": result.metric, "precision": "f32"}
        measured |= {"split": metric.split, "rows": metric.rows}
    return {
        "format": FORMAT,
        "kind": result.kind,
        "weight_format": result.weight_format,
        "quant_mode": result.quant_mode,
        "inputs": result.inputs,
        "outputs": result.outputs,
        "size": result.size,
        "verified": {
            "tolerance": result.tolerance,
            "max_abs_difference": result.max_abs_difference,
            "max_rel_difference": result.max_rel_difference,
            "shapes": result.shapes,
        },
        "difference": {"precision": "f32", **asdict(result.difference)},
        "metric": measured,
        "tokenizer_ir": result.tokenizer_ir,
        "tokenizer_note": tokenizer_note,
        "versions": versions(),
    }
