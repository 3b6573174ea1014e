"""Convert a model directory to OpenVINO IR, verified against torch on real rows, and quantise it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

from bootstrapnas.errors import UserError
from bootstrapnas.export import WEIGHT_FORMATS, ExportResult, Quantisation, WeightCompression, export_openvino
from bootstrapnas.export.compression import COMPRESSED
from bootstrapnas.export.onnx import check_encoder, check_installed, export_onnx
from bootstrapnas.export.openvino import check_formats
from bootstrapnas.export.quantisation import PRESETS, SMOOTH_QUANT_ALPHA
from bootstrapnas.extraction import MERGE, adapter_beside, load_config
from bootstrapnas.pipeline.arguments import OutputArguments, TaskArguments, flag, required
from bootstrapnas.pipeline.data import data_inputs, has_task, resolve_task, task_settings
from bootstrapnas.pipeline.export_data import CALIBRATION_ROWS, ExportData, task_data, text_data
from bootstrapnas.pipeline.models import fit_length, load_as_saved, load_for_task, load_tokenizer
from bootstrapnas.pipeline.stages import begin
from bootstrapnas.progress import notice, warn
from bootstrapnas.tasks import TASK_FILE, TaskSpec
from bootstrapnas.tasks.next_token import HEAD

# ruff: noqa: UP045

FORMATS = ("openvino", "onnx")
TEMPORARY = ".ir."
WORTH_A_WARNING = 0.01
"""Drop of a metric (a fraction) from which the user is told what helps."""


@dataclass
class ExportArguments:
    """What to export, and how."""

    _argument_group_name = "export"

    model_dir: str = required("A model directory: a teacher, an extracted subnet, any fine-tuned model.")
    format: str = flag("openvino", "openvino or onnx (encoders in float32).")
    weight_format: str = flag("fp32", f"Of the weights alone: {', '.join(WEIGHT_FORMATS)}.")
    quant_mode: Optional[str] = flag(
        None, "int8: quantise an encoder's weights and activations, by calibration on training rows."
    )
    calibration_samples: int = flag(CALIBRATION_ROWS, "Rows to calibrate by, at their own length.")
    calibration_file: Optional[str] = flag(
        None,
        "Calibrate by this instead of training rows: of a task, a file as its training file; of a model without a "
        "task, a text a line (.txt) or a table with a column text.",
    )
    preset: str = flag(PRESETS[0], f"Of quant_mode: {' or '.join(PRESETS)} (symmetric activations throughout).")
    smooth_quant_alpha: float = flag(
        SMOOTH_QUANT_ALPHA, "Of quant_mode: how much of activations' ranges moves into weights, 0 to 1; -1: none."
    )
    ignored_operations: Optional[str] = flag(
        None, "Of quant_mode: a regular expression; operations of the IR whose name begins with it stay in float."
    )
    max_metric_drop: Optional[float] = flag(
        None,
        "Of integers: points of the metric (of 100) that may be lost on validation rows, or per cent by which a "
        "perplexity may grow. Of quant_mode, activations go back to float until no more is; else the export fails.",
    )
    sym: bool = flag(False, "Of weight_format int8 and int4: integers around 0, without zero points.")
    group_size: int = flag(
        128, "Of weight_format int4: weights of a row that share a scale; -1: all. Smaller where it divides no row."
    )
    ratio: float = flag(1.0, "Of weight_format int4: share of the weights that become int4; the others become int8.")
    all_layers: bool = flag(False, "Of weight_format int4: embeddings and the last layer become int4 too, not int8.")
    awq: bool = flag(False, "Of weight_format int4: scale channels by the activations that meet them, by calibration.")
    scale_estimation: bool = flag(False, "Of weight_format int4: choose scales by what layers put out, by calibration.")
    no_metric: bool = flag(False, "Do not measure the task metric of the model and its IR.")


GROUPS = (ExportArguments, TaskArguments, OutputArguments)
BY_DATA = "for --quant_mode int8, and --awq, --scale_estimation or a --ratio below 1"
OF_TASK = {field.name for field in fields(TaskArguments)} - {"max_seq_length"}  # which cuts texts without a task too
OF_QUANT_MODE = ("preset", "smooth_quant_alpha", "ignored_operations")
OF_INT4 = ("group_size", "ratio", "all_layers", "awq", "scale_estimation")


def run(
    arguments: ExportArguments, task_args: TaskArguments, output: OutputArguments, *, typed: Mapping[str, Any]
) -> Path:
    """Export; return the output directory."""
    quantisation, compression = check(arguments, typed)
    is_onnx = arguments.format == "onnx"
    spec: TaskSpec | None = None
    if has_task(task_args, arguments.model_dir):
        spec = fit_length(resolve_task(task_args, arguments.model_dir), typed, arguments.model_dir)
    elif (
        not Path(arguments.model_dir).is_dir()
        or not OF_TASK.isdisjoint(typed)
        or (arguments.max_metric_drop is not None and not HEAD.is_in(load_config(arguments.model_dir).architectures))
    ):
        resolve_task(task_args, arguments.model_dir)  # says that there is none, and how to name one
    stage = begin(
        "export",
        output.output_dir,
        typed,
        {
            "model": arguments.model_dir,
            "calibration": arguments.calibration_file,
            **(data_inputs(spec) if spec else {}),
        },
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec) if spec else None,
    )
    if stage.finished:
        return stage.directory
    for leftover in stage.directory.glob(f"{TEMPORARY}*"):  # of an export that was killed
        shutil.rmtree(leftover)
    load_config(arguments.model_dir)  # says so if it is no model
    adapter = adapter_beside(arguments.model_dir)
    if adapter is not None:
        warn(f"{arguments.model_dir} is a base without its adapter, which is in {adapter}: {MERGE}")
    tokenizer = load_tokenizer(arguments.model_dir)
    by_data = quantisation is not None or (compression is not None and compression.needs_data)
    if arguments.calibration_file is not None and spec is not None and not by_data:
        raise UserError(f"--calibration_file is {BY_DATA}; nothing else of a task's model is calibrated")
    wanted = arguments.calibration_samples if by_data else 0
    calibration: dict[str, Any] = {"calibration_rows": wanted, "calibration_file": arguments.calibration_file}
    model = load_as_saved(arguments.model_dir) if spec is None else load_for_task(arguments.model_dir, spec)
    if is_onnx:
        check_encoder(model)
    check_formats(model, arguments.weight_format, quantised=quantisation is not None)
    if spec is None:
        measured = model.can_generate() and not arguments.no_metric
        data = text_data(model, tokenizer, length=task_args.max_seq_length, measured=measured, **calibration)
        if not arguments.no_metric and not measured:
            notice(f"export: no metric is measured: {arguments.model_dir} has no {TASK_FILE}; --task_name names a task")
    else:
        data = task_data(spec, model, tokenizer, measured=not arguments.no_metric, **calibration)
    with tempfile.TemporaryDirectory(dir=stage.directory, prefix=TEMPORARY) as temporary:
        place = Path(temporary) / "ir"
        common: dict[str, Any] = {"example_batches": data.examples, "metric": data.metric}
        try:
            if is_onnx:
                result = export_onnx(model, tokenizer, place, **common)
            else:
                result = export_openvino(
                    model,
                    tokenizer,
                    place,
                    weight_format=arguments.weight_format,
                    compression=compression,
                    quantisation=quantisation,
                    calibration=data.calibration,
                    **common,
                )
        except UserError as error:  # of a directory that is gone when it is read
            hidden = rf"{re.escape(temporary)}{re.escape(os.sep)}[^\s:{re.escape(os.sep)}]+"
            raise UserError(re.sub(hidden, lambda _: str(stage.directory), str(error))) from error
        for file in place.iterdir():
            os.replace(file, stage.directory / file.name)
    if spec is not None:
        spec.save(stage.directory / TASK_FILE)
    describe(arguments, result, data)
    figures: dict[str, Any] = {
        "weight_format": result.weight_format,
        "quant_mode": result.quant_mode,
        "size": result.size,
    }
    figures |= {"max_abs_difference": result.max_abs_difference, "tolerance": result.tolerance}
    stage.complete(**figures)
    return stage.directory


def check(arguments: ExportArguments, typed: Mapping[str, Any]) -> tuple[Quantisation | None, WeightCompression | None]:
    """Return what the flags say of integers; raise `UserError` if they contradict each other."""
    if arguments.format not in FORMATS:
        raise UserError(f"--format must be {' or '.join(FORMATS)}, not {arguments.format!r}")
    if arguments.format == "onnx":
        check_installed()
        for name in ("weight_format", "quant_mode"):
            if name in typed and typed[name] != "fp32":
                raise UserError(f"--{name} {typed[name]} is for --format openvino; ONNX is written in float32")
    quantised, integers = arguments.quant_mode is not None, arguments.weight_format in COMPRESSED
    for names, concerned, what in (
        (OF_QUANT_MODE, quantised, "--quant_mode int8"),
        (OF_INT4, arguments.weight_format == "int4", "--weight_format int4"),
        (("sym",), integers, "--weight_format int8 or int4"),
        (("max_metric_drop",), quantised or integers, "--quant_mode int8 and --weight_format int8 or int4"),
    ):
        for name in names:
            if name in typed and not concerned:
                raise UserError(f"--{name} is for {what}")
    if quantised and arguments.quant_mode != "int8":
        raise UserError(f"--quant_mode must be int8, not {arguments.quant_mode!r}")
    if arguments.calibration_samples < 1:
        raise UserError(f"--calibration_samples must be at least 1, not {arguments.calibration_samples}")
    if arguments.max_metric_drop is not None and arguments.no_metric:
        raise UserError("--max_metric_drop needs the metric that --no_metric leaves out")
    max_drop = None if arguments.max_metric_drop is None else arguments.max_metric_drop / 100
    quantisation = compression = None
    if quantised:
        quantisation = Quantisation(
            preset=arguments.preset,
            smooth_quant_alpha=arguments.smooth_quant_alpha,
            ignored=() if arguments.ignored_operations is None else (arguments.ignored_operations,),
            max_drop=max_drop,
        )
    elif integers:
        compression = WeightCompression(
            sym=arguments.sym,
            group_size=arguments.group_size,
            ratio=arguments.ratio,
            all_layers=arguments.all_layers,
            awq=arguments.awq,
            scale_estimation=arguments.scale_estimation,
            max_drop=max_drop,
        )
    by_data = quantisation is not None or (compression is not None and compression.needs_data)
    if "calibration_samples" in typed and not by_data:
        raise UserError(f"--calibration_samples is {BY_DATA}")
    return quantisation, compression


def describe(arguments: ExportArguments, result: ExportResult, data: ExportData) -> None:
    """Print what came out."""
    how = "int8 weights and activations" if result.quant_mode else result.weight_format
    parts = [
        f"export: {how}, {result.size / 1e6:.1f} MB",
        f"within {result.max_abs_difference:.1e} of torch, {result.max_rel_difference:.1e} of the outputs' scale "
        f"(allowed {result.tolerance:.0e}, of scales above 1)",
    ]
    if result.difference.absolute != result.max_abs_difference:
        parts[-1] += f" before rounding, {result.difference.relative:.1%} of the outputs' scale after it"
        if result.kind == "causal":
            parts[-1] += f", the same likeliest token at {result.difference.agreement:.1%} of the tokens"
    metric = data.metric
    if metric is not None and result.metric is not None:
        parts.append(f"{metric.name} {result.metric:.4f} (torch {metric.torch:.4f}) on {metric.rows} rows")
        drop = metric.drop(result.metric)
        if drop > WORTH_A_WARNING and arguments.max_metric_drop is None:
            integers = result.quant_mode is not None or result.weight_format in COMPRESSED
            remedy = " (--max_metric_drop 1 bounds that)" if integers else ""
            how = f"dropped by {100 * drop:.1f} points" if metric.greater_is_better else f"grown by {drop:.1%}"
            warn(f"{metric.name} has {how}{remedy}")
    notice(", ".join(parts))
