"""Run an OpenVINO IR, on the CPU if nothing else is asked for."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.evaluation import collect
from bootstrapnas.outputs import LOGITS, Output, Outputs

if TYPE_CHECKING:
    from torch import Tensor

MODEL_FILE = "openvino_model.xml"
IDS, MASK, POSITIONS, BEAMS = "input_ids", "attention_mask", "position_ids", "beam_idx"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
"""OpenVINO's properties that let it compute what torch does."""
PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""What OpenVINO's hint INFERENCE_PRECISION_HINT calls a precision: what its list of CPU capabilities calls it."""
INT8 = {"int8": "f32", "int8+bf16": "bf16"}
"""What precisions of quantised encoders are called: what their layers compute in that are not quantised."""
WEIGHT_FORMATS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}
"""What weight formats are called, by OpenVINO's names of element types."""


@dataclass(frozen=True, slots=True)
class IRDescription:
    """What can be told of an IR without compiling it.

    Attributes
    ----------
    inputs
        Names, in the order of the IR.
    weight_format
        How most weights are stored: ``"fp32"``, ``"fp16"``, ``"int8"``, ``"int4"`` or OpenVINO's name of the type.
    quantised
        Whether activations are quantised too, so that layers compute in integers.
    stateful
        Whether it keeps keys and values between runs, as exported causal language models do.
    size
        Bytes of the weights file.
    """

    inputs: tuple[str, ...]
    weight_format: str
    quantised: bool
    stateful: bool
    size: int


@dataclass(frozen=True, slots=True)
class IRModel:
    """A compiled IR.

    Attributes
    ----------
    directory
        Where it was read from.
    precision
        What it really computes in: ``"f32"``, ``"bf16"`` or ``"f16"``.
    inputs, outputs
        Names, in the order of the IR.
    compiled
        The `openvino.CompiledModel`.
    """

    directory: Path
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compiled: Any

    def run(self, batch: Mapping[str, np.ndarray | Tensor]) -> dict[str, np.ndarray]:
        """Return every output by name, float32.

        Parameters
        ----------
        batch
            The IR's inputs, shape [batch, length] each, NumPy or CPU tensors; other entries are not looked at. A causal
            language model needs ``input_ids`` and, where something is padded, ``attention_mask`` only; either side may
            be. It keeps nothing of them.

        Raises
        ------
        UserError
            If an input is missing.
        """
        try:
            given = complete(batch, self.inputs)
        except UserError as error:
            raise UserError(f"the IR in {self.directory} {error}") from None
        results = (self.compiled.create_infer_request().infer if BEAMS in self.inputs else self.compiled)(given)
        return {name: results[name] for name in self.outputs}


class Runner(Protocol):
    """What takes a batch and returns every output of it by name: an `IRModel`, or a model in another runtime."""

    @property
    def directory(self) -> Path: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def run(self, batch: Mapping[str, np.ndarray | Tensor]) -> dict[str, np.ndarray]: ...


def load_ir(directory: str | os.PathLike[str], precision: str | None = "f32", threads: int | None = None) -> IRModel:
    """Compile the IR in a directory for the CPU, one request at a time.

    Parameters
    ----------
    directory
        Holds ``openvino_model.xml`` and ``openvino_model.bin``, as `export_openvino` and optimum-intel write them. The
        weights are mapped into memory: replace the directory as a whole, never the files in it.
    precision
        ``"f32"``, ``"bf16"``, ``"f16"``, or `None` for OpenVINO's choice, which is not float32 on CPUs that are
        faster in something shorter. ``"f32"`` also keeps the keys and values of past tokens so.
    threads
        Default: OpenVINO's choice.

    Raises
    ------
    UserError
        If the files are missing or corrupt, or the CPU does not compute in `precision`.
    """
    return compile_ir(directory, precision, threads, {})


def compile_ir(
    directory: str | os.PathLike[str],
    precision: str | None,
    threads: int | None,
    more_hints: Mapping[str, Any],
    device: str = "CPU",
) -> IRModel:
    """Do what `load_ir` says, with more of OpenVINO's properties, or for another of `available_devices`."""
    import openvino as ov

    path = check_is_ir(directory)
    check_device(device)
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **more_hints}
    if precision is not None:
        check_precision(precision, device)
        hints["INFERENCE_PRECISION_HINT"] = precision
        if precision == "f32":
            hints.setdefault("KV_CACHE_PRECISION", precision)  # else u8, or what a language model's IR says of itself
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, not {threads}")
        hints["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = ov.Core().compile_model(path, device, hints)
    except RuntimeError as error:
        raise UserError(f"cannot load {path}, it is damaged or no IR: {last_line(error)}") from error
    return _wrap(compiled, Path(directory))


def load_unsaved(ir: Any) -> IRModel:
    """Compile an `openvino.Model` for the CPU, to compute in float32."""
    import openvino as ov

    return _wrap(ov.Core().compile_model(ir, "CPU", EXACT), Path("memory"))


def _wrap(compiled: Any, directory: Path) -> IRModel:
    return IRModel(
        directory,
        compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
        tuple(port.get_any_name() for port in compiled.inputs),
        tuple(port.get_any_name() for port in compiled.outputs),
        compiled,
    )


def describe_ir(directory: str | os.PathLike[str]) -> IRDescription:
    """Return what the IR in a directory is; `UserError` if its files are missing or corrupt."""
    import openvino as ov

    path = check_is_ir(directory)
    try:
        ir = ov.Core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"cannot load {path}, it is damaged or no IR: {last_line(error)}") from error
    operations = ir.get_ops()
    elements: Counter[str] = Counter()
    for operation in operations:
        if operation.get_type_name() == "Constant":
            kind = operation.get_element_type().get_type_name()
            elements[kind] += math.prod(operation.get_output_shape(0))
    inputs = tuple(port.get_any_name() for port in ir.inputs)
    kind = elements.most_common(1)[0][0] if elements else "none"
    return IRDescription(
        inputs=inputs,
        weight_format=WEIGHT_FORMATS.get(kind, kind),
        quantised=any(operation.get_type_name() == "FakeQuantize" for operation in operations),
        stateful=BEAMS in inputs,
        size=path.with_suffix(".bin").stat().st_size,
    )


def predict_ir(
    model: Runner, batches: Iterable[Mapping[str, Tensor]], outputs: Sequence[Output] = (LOGITS,)
) -> Outputs:
    """Return outputs of an IR, row by row in the order of the data set, float32.

    Parameters
    ----------
    model
        An IR with `outputs`.
    batches, outputs
        As for `bootstrapnas.evaluation.predict`.

    Raises
    ------
    UserError
        If the IR lacks an output.
    """
    missing = [output.name for output in outputs if output.name not in model.outputs]
    if missing:
        raise UserError(
            f"the IR in {model.directory} has no output {listed(missing)}, only {listed(model.outputs)}: "
            "it is of another kind of task"
        )
    return collect(model.run, batches, outputs)


def positions_of(attention_mask: np.ndarray) -> np.ndarray:
    """Return the position of each token, shape [batch, length]: counted from the first that is not padding."""
    return np.maximum(attention_mask.astype(np.int64).cumsum(axis=1) - 1, 0)


def complete(batch: Mapping[str, np.ndarray | Tensor], inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a batch's arrays for an IR's inputs; those of a causal language model's first call follow from its ids.

    Raises
    ------
    UserError
        If an input is missing.
    """
    given: dict[str, np.ndarray | Tensor] = dict(batch)
    if BEAMS in inputs and IDS in batch:
        ids = np.asarray(batch[IDS])
        mask = np.asarray(batch[MASK]) if MASK in batch else np.ones_like(ids)
        given |= {MASK: mask, POSITIONS: positions_of(mask), BEAMS: np.arange(len(ids))}
    missing = [name for name in inputs if name not in given]
    if missing:
        raise UserError(f"needs {listed(missing)}; the batch has {listed(batch)}")
    types = {BEAMS: np.int32}
    return {name: np.asarray(given[name], dtype=types.get(name, np.int64)) for name in inputs}


def available_devices() -> tuple[str, ...]:
    """Return the names of the devices that OpenVINO can use here."""
    import openvino as ov

    return tuple(ov.Core().available_devices)


def available_precisions(device: str = "CPU") -> tuple[str, ...]:
    """Return the precisions in which this machine's CPU (or a device) computes in hardware, ``"f32"`` first."""
    import openvino as ov

    capabilities = ov.Core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for precision, name in PRECISIONS.items() if name in capabilities)


def check_device(device: str) -> None:
    """Raise `UserError` if OpenVINO cannot use a device here."""
    known = available_devices()
    if device not in known:
        raise UserError(f"OpenVINO has no device {device!r} here, only {listed(known)}{near_miss(device, known)}")


def check_precision(precision: str, device: str = "CPU") -> None:
    """Raise `UserError` if a precision is unknown or `device` does not compute in it."""
    if precision not in PRECISIONS:
        raise UserError(
            f"unknown precision {precision!r}, known: {listed(PRECISIONS)}{near_miss(precision, PRECISIONS)}"
        )
    available = available_precisions(device)
    if precision not in available:
        raise UserError(f"this {device} does not compute in {precision}, only in {listed(available)}")


def check_measured(precision: str, device: str = "CPU") -> None:
    """Raise `UserError` if nothing is measured in a precision, of `PRECISIONS` or `INT8`, on `device`."""
    known = (*PRECISIONS, *INT8)
    if precision not in known:
        raise UserError(f"unknown precision {precision!r}, known: {listed(known)}{near_miss(precision, known)}")
    check_precision(INT8.get(precision, precision), device)


def check_streams(streams: int, device: str = "CPU") -> None:
    """Raise `UserError` if `device` does not compute that many requests at once; OpenVINO would take fewer."""
    import openvino as ov

    most = ov.Core().get_property(device, "RANGE_FOR_STREAMS")[1]
    if not 1 <= streams <= most:
        raise UserError(f"streams must lie between 1 and {most} on this {device}, not {streams}")


def last_line(error: BaseException) -> str:
    """Return the line of OpenVINO's message that says what is wrong; those before it say where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def check_is_ir(directory: str | os.PathLike[str]) -> Path:
    """Return the path of a directory's IR; `UserError` if there is none."""
    path = Path(directory) / MODEL_FILE
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise UserError(f"{directory} holds no OpenVINO IR: {file.name} does not exist")
    return path
