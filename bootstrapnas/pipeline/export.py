"""Convert a model directory to OpenVINO IR, verified against torch on real rows."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bootstrapnas.export import export_openvino
from bootstrapnas.pipeline.arguments import OutputArguments, TaskArguments, flag, required
from bootstrapnas.pipeline.data import Rows, data_inputs, resolve_task, task_settings
from bootstrapnas.pipeline.models import fit_length, load_for_task, load_tokenizer
from bootstrapnas.pipeline.stages import begin
from bootstrapnas.progress import notice
from bootstrapnas.tasks import TASK_FILE

VERIFICATION_ROWS = 16
TEMPORARY = ".ir."


@dataclass
class ExportArguments:
    """What to export."""

    _argument_group_name = "export"

    model_dir: str = required("A model directory: a teacher, an extracted subnet, any fine-tuned model.")
    weight_format: str = flag("fp32", "Of the weights: fp32 or fp16.")


GROUPS = (ExportArguments, TaskArguments, OutputArguments)


def run(
    arguments: ExportArguments, task_args: TaskArguments, output: OutputArguments, *, typed: Mapping[str, Any]
) -> Path:
    """Export; return the output directory."""
    spec = fit_length(resolve_task(task_args, arguments.model_dir), typed, arguments.model_dir)
    stage = begin(
        "export",
        output.output_dir,
        typed,
        {"model": arguments.model_dir, **data_inputs(spec)},
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return stage.directory
    for leftover in stage.directory.glob(f"{TEMPORARY}*"):  # of an export that was killed
        shutil.rmtree(leftover)
    model = load_for_task(arguments.model_dir, spec)
    tokenizer = load_tokenizer(arguments.model_dir)
    examples = Rows(spec, tokenizer, VERIFICATION_ROWS).batches("validation")
    # The longest rows and the shortest: what verification should see of the lengths.
    examples = [examples[0], examples[-1]]
    with tempfile.TemporaryDirectory(dir=stage.directory, prefix=TEMPORARY) as temporary:
        result = export_openvino(
            model,
            tokenizer,
            Path(temporary) / "ir",
            weight_format=arguments.weight_format,
            example_batches=examples,
        )
        for file in (Path(temporary) / "ir").iterdir():
            os.replace(file, stage.directory / file.name)
    spec.save(stage.directory / TASK_FILE)
    notice(
        f"export: {arguments.weight_format}, {result.size / 1e6:.1f} MB, "
        f"within {result.max_abs_difference:.1e} of torch (allowed {result.tolerance:.0e})"
    )
    figures = asdict(result)
    stage.complete(**{name: figures[name] for name in ("weight_format", "size", "max_abs_difference", "tolerance")})
    return stage.directory
