"""Write an encoder as ONNX and prove with onnxruntime that the file computes what the model computes."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bootstrapnas.artefacts import replacing_directory, write_json, writing
from bootstrapnas.errors import UserError, listed
from bootstrapnas.export.conversion import EncoderConversion, Positional
from bootstrapnas.export.openvino import (
    EXPORT_FILE,
    TOLERANCES,
    ExportResult,
    as_reference,
    check_difference,
    computing_in_float32,
    conversion_class,
    record_of,
    refuse_foreign,
    save_config,
)
from bootstrapnas.export.runtime import last_line
from bootstrapnas.export.verification import ExportError, TaskMetric

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ONNX_FILE = "model.onnx"
EXTRA = ("onnx", "onnxruntime", "onnxscript")
"""What the extra ``onnx`` of this project installs."""
AXES = ("batch", "length")


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A model in onnxruntime; computes in float32.

    Attributes
    ----------
    directory
        Where it was read from.
    inputs, outputs
        Names.
    session
        The `onnxruntime.InferenceSession`.
    """

    directory: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    session: Any

    def run(self, batch: Mapping[str, np.ndarray | Tensor]) -> dict[str, np.ndarray]:
        """Return every output by name, float32; see `bootstrapnas.export.runtime.IRModel.run`."""
        inputs = {name: np.asarray(batch[name], dtype=np.int64) for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(list(self.outputs), inputs), strict=True))


def load_onnx(directory: str | os.PathLike[str]) -> OnnxModel:
    """Load ``model.onnx`` of a directory for the CPU; `UserError` if it is missing or damaged."""
    check_installed()
    import onnxruntime

    path = Path(directory) / ONNX_FILE
    if not path.is_file():
        raise UserError(f"{directory} holds no ONNX model: {ONNX_FILE} does not exist")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each way to fail
        raise UserError(f"cannot load {path}, it is damaged or no ONNX model: {last_line(error)}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return OnnxModel(
        Path(directory), tuple(port.name for port in inputs), tuple(port.name for port in outputs), session
    )


def check_installed() -> None:
    """Raise `UserError` if a package is missing that writes or reads ONNX."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {listed(missing)}: pip install 'bootstrapnas[onnx]'")


def check_encoder(model: PreTrainedModel) -> None:
    """Raise `UserError` if a model is not exported as ONNX."""
    if conversion_class(model) is not EncoderConversion:
        raise UserError(f"{type(model).__name__} is no encoder: export an OpenVINO IR of it, not ONNX")


def export_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: str | os.PathLike[str],
    *,
    example_batches: Sequence[Mapping[str, Tensor]],
    tolerance: float | None = None,
    metric: TaskMetric | None = None,
) -> ExportResult:
    """Write an encoder as ``model.onnx`` with dynamic batch and length, float32.

    Verified like an IR, by onnxruntime, and with the same files beside it: the layout that optimum's ``ORTModelFor…``
    reads. Parameters and errors are those of `bootstrapnas.export.openvino.export_openvino`.
    """
    check_installed()
    directory, name = Path(directory), type(model).__name__
    check_encoder(model)
    refuse_foreign(directory)
    tolerance = TOLERANCES["fp32"] if tolerance is None else tolerance
    reference = as_reference(model)
    with computing_in_float32(reference), replacing_directory(directory) as temporary:
        conversion = EncoderConversion(reference, tokenizer, example_batches)
        started = time.perf_counter()
        _write(conversion, name, temporary / ONNX_FILE, directory)
        seconds = time.perf_counter() - started
        loaded = load_onnx(temporary)
        found = conversion.compare(loaded)
        check_difference(found, tolerance, f"ONNX model of {name}", directory)
        measured = None if metric is None else metric.of(loaded)
        save_config(reference, temporary)
        tokenizer_note = conversion.save_tokenizer(temporary)
        result = ExportResult(
            directory=directory,
            kind=conversion.kind,
            weight_format="fp32",
            quant_mode=None,
            inputs=conversion.inputs,
            outputs=conversion.outputs,
            tolerance=tolerance,
            max_abs_difference=found.absolute,
            max_rel_difference=found.relative,
            difference=found,
            metric=measured,
            shapes=conversion.shapes,
            size=(temporary / ONNX_FILE).stat().st_size,
            seconds=seconds,
            tokenizer_ir=tokenizer_note is None,
        )
        write_json(temporary / EXPORT_FILE, record_of(result, tokenizer_note, metric))
    return result


def _write(conversion: EncoderConversion, name: str, path: Path, directory: Path) -> None:
    example = tuple(conversion.probes[0].values())
    axes = dict.fromkeys(range(len(AXES)), torch.export.Dim.DYNAMIC)
    try:
        with _quiet_export(), torch.no_grad():
            program = torch.onnx.export(
                Positional(conversion.model, conversion.inputs, conversion.outputs).eval(),
                example,
                input_names=list(conversion.inputs),
                output_names=list(conversion.outputs),
                dynamic_shapes=(tuple(axes for _ in example),),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch's exporter has many kinds, and what the traced code raises
        raise ExportError(f"torch cannot convert {name} to ONNX: {last_line(error)}") from error
    assert program is not None
    with writing(directory):
        program.save(path)


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Keep back what the exporter says of packages that are not there, and of parts of torch that will change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
