"""The task metric of a model directory, an extracted subnet or an OpenVINO IR."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from transformers import PreTrainedModel

from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import evaluation_dtype
from bootstrapnas.export import load_ir
from bootstrapnas.export.runtime import check_is_ir
from bootstrapnas.extraction import load_config
from bootstrapnas.outputs import LABELS, Outputs
from bootstrapnas.pipeline.arguments import TaskArguments, flag
from bootstrapnas.pipeline.data import Rows, check_split, check_writing, resolve_task
from bootstrapnas.pipeline.harness import harness_tasks, measure_by_harness
from bootstrapnas.pipeline.models import (
    class_order,
    fit_length,
    load_for_task,
    load_tokenizer,
    outputs_of,
    outputs_of_ir,
)
from bootstrapnas.pipeline.stages import check_whole
from bootstrapnas.progress import notice
from bootstrapnas.tasks import TaskSpec, write_predictions

# ruff: noqa: UP045


@dataclass
class EvaluateArguments:
    """What to evaluate."""

    _argument_group_name = "evaluation"

    model_dir: Optional[str] = flag(None, "A model directory: a teacher, an extracted subnet, a supernet (as a whole).")
    ir_dir: Optional[str] = flag(None, "Instead: output of export.")
    split: str = flag("validation", "validation, validation_mismatched, test or train.")
    precision: str = flag("float32", "float32, bfloat16, or auto (bfloat16 where the hardware has it).")
    predict: Optional[str] = flag(None, "Also write a prediction per row to this JSON lines file.")
    eval_batch_size: int = flag(32, "Rows of a batch.")
    lm_eval: Optional[str] = flag(
        None, "Instead of the task, tasks of lm-evaluation-harness, separated by commas: hellaswag,arc_easy."
    )


GROUPS = (EvaluateArguments, TaskArguments)


def run(arguments: EvaluateArguments, task_args: TaskArguments, *, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate; print the metrics as JSON and return them."""
    directory = arguments.model_dir or arguments.ir_dir
    if directory is None or (arguments.model_dir and arguments.ir_dir):
        raise UserError("pass either --model_dir or --ir_dir")
    check_split(arguments.split)
    if not Path(directory).is_dir():
        raise UserError(f"{directory} does not exist or is not a directory")
    check_whole(directory)
    if arguments.model_dir is not None:
        load_config(directory)  # says so if it is no model
    else:
        check_is_ir(directory)
    spec = fit_length(resolve_task(task_args, directory), typed, directory)
    check_writing(task_args, spec)
    if arguments.lm_eval is not None:
        return _by_harness(arguments, task_args, spec)
    if arguments.ir_dir is not None and spec != spec.greedily():
        if typed.get("num_beams") is not None:
            raise UserError(f"an IR writes greedily: --num_beams must be 1, not {typed['num_beams']}")
        notice("an IR writes greedily: a beam instead of the task's several")
        spec = spec.greedily()
    rows = Rows(spec, load_tokenizer(directory), arguments.eval_batch_size, task_args.max_eval_samples)
    outputs = _outputs(arguments, spec, rows)
    metrics = rows.measure(arguments.split, outputs)
    if arguments.predict is not None:
        write_predictions(arguments.predict, spec, outputs, rows.rows(arguments.split), rows.features(arguments.split))
    print(json.dumps({name: round(value, 6) for name, value in metrics.items()}))
    return metrics


def _by_harness(arguments: EvaluateArguments, task_args: TaskArguments, spec: TaskSpec) -> dict[str, Any]:
    """Measure a model directory by tasks of lm-evaluation-harness; print and return what it says."""
    if arguments.model_dir is None or arguments.predict is not None:
        raise UserError("--lm_eval measures a --model_dir, and writes no predictions")
    tasks = harness_tasks(str(arguments.lm_eval), spec)
    model = _model(arguments.model_dir, spec, arguments.precision)
    found = measure_by_harness(
        model,
        load_tokenizer(arguments.model_dir),
        tasks,
        batch_size=arguments.eval_batch_size,
        limit=task_args.max_eval_samples,
    )
    print(json.dumps(found, indent=2))
    return found


def _model(directory: str, spec: TaskSpec, precision: str) -> PreTrainedModel:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_for_task(directory, spec, dtype=evaluation_dtype(precision, device)).to(device)


def _outputs(arguments: EvaluateArguments, spec: TaskSpec, rows: Rows) -> Outputs:
    """Return what the model or IR gives for each feature of the split, classes in the task's order."""
    prepared = rows.batches(arguments.split, tail=arguments.ir_dir is None)
    if arguments.ir_dir is not None:
        bf16 = evaluation_dtype(arguments.precision, torch.device("cpu")) == torch.bfloat16
        ir = load_ir(arguments.ir_dir, "bf16" if bf16 else "f32")
        order = class_order(load_config(arguments.ir_dir), spec, arguments.ir_dir)
        classes = [output.name for output in spec.kind.outputs if output.last == LABELS]
        found = outputs_of_ir(ir, rows, prepared, progress=True)
        return {name: [row[..., order] for row in kept] if name in classes else kept for name, kept in found.items()}
    assert arguments.model_dir is not None
    return outputs_of(_model(arguments.model_dir, spec, arguments.precision), rows, prepared, progress=True)
