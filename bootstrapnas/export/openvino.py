"""Convert an encoder to an OpenVINO IR and prove that the files compute what the model computes."""

from __future__ import annotations

import contextlib
import copy
import inspect
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
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from bootstrapnas.artefacts import FORMAT, read_json, replacing_directory, versions, write_json, writing
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.export.runtime import MODEL_FILE, last_line, load_ir
from bootstrapnas.export.tokenizer import save_tokenizer_ir
from bootstrapnas.progress import warn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXPORT_FILE = "export.json"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
"""Weight formats, and how far an output may be from torch's."""


class ExportError(UserError):
    """The model cannot be converted, or the converted model computes something else."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A verified IR.

    Attributes
    ----------
    directory
        Where it is.
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
        An encoder in float32, for example from `bootstrapnas.extraction`. Left as it is found.
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
        Largest absolute difference of any output; default: `TOLERANCES`.

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
    _refuse_foreign(directory)
    tolerance = TOLERANCES[weight_format] if tolerance is None else tolerance
    reference = _reference(model)
    inputs = _input_names(reference, tokenizer, example_batches)
    batches = [{name: batch[name].detach().cpu().long() for name in inputs} for batch in example_batches]
    probes = [probe for batch in batches for probe in probe_batches(batch)]
    if not probes:
        raise UserError("example_batches hold no rows with tokens to attend to")

    with _evaluating(reference), torch.no_grad(), replacing_directory(directory) as temporary:
        expected = [_outputs(reference, probe) for probe in probes]
        outputs = tuple(expected[0])
        started = time.perf_counter()
        ir = _convert(reference, probes[0], outputs)
        with writing(directory):
            ov.save_model(ir, temporary / MODEL_FILE, compress_to_fp16=weight_format == "fp16")
        seconds = time.perf_counter() - started
        del ir
        absolute, relative = _compare(temporary, probes, expected)
        if not absolute <= tolerance:  # so that NaN fails
            remedy = "; use weight_format fp32 or a larger tolerance" if weight_format == "fp16" else ""
            raise ExportError(
                f"the {weight_format} IR of {type(model).__name__} differs from torch by {absolute:.3g} "
                f"({relative:.2g} of the outputs' scale), more than the tolerance {tolerance:.3g}: "
                f"{directory} was not written{remedy}"
            )
        _save_config(reference, temporary)
        tokenizer_note = _save_tokenizer(tokenizer, temporary, batches)
        result = ExportResult(
            directory=directory,
            weight_format=weight_format,
            inputs=inputs,
            outputs=outputs,
            tolerance=tolerance,
            max_abs_difference=absolute,
            max_rel_difference=relative,
            shapes=tuple(tuple(probe["input_ids"].shape) for probe in probes),  # type: ignore[misc]
            size=(temporary / MODEL_FILE).with_suffix(".bin").stat().st_size,
            seconds=seconds,
            tokenizer_ir=tokenizer is not None and tokenizer_note is None,
        )
        _save_result(result, tokenizer_note, temporary)
    return result


def probe_batches(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield what to compare on: a batch, its first row, its first half of the tokens, and its last quarter padded.

    A model traced with one shape or without padding may be right on that alone. Rows without any token to attend to
    are left out: what attention makes of them is undefined.

    Parameters
    ----------
    batch
        Tensors of shape [batch, length].
    """
    length = batch["input_ids"].shape[1]
    variants = [dict(batch), {k: v[:1] for k, v in batch.items()}]
    variants.append({k: v[:, : (length + 1) // 2] for k, v in batch.items()})
    if "attention_mask" in batch:
        mask = batch["attention_mask"].clone()
        mask[:, length - length // 4 :] = 0
        variants.append({**batch, "attention_mask": mask})
    for variant in variants:
        if "attention_mask" in variant:
            attended = variant["attention_mask"].any(dim=1)
            variant = {k: v[attended] for k, v in variant.items()}
        if variant["input_ids"].numel():
            yield variant


class _Positional(nn.Module):
    """Gives a model's forward pass the form that tracing keeps in order: positional inputs, a tuple of outputs."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = _outputs(self.model, dict(zip(self.inputs, tensors, strict=True)))
        return tuple(results[name] for name in self.outputs)


def _outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs that are single tensors, by name."""
    results = model(**batch, return_dict=True)
    return {name: value for name, value in results.items() if isinstance(value, Tensor)}


def _convert(model: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str]) -> Any:
    """Return the `openvino.Model` with named i64 inputs of shape [?, ?] and named outputs."""
    import openvino as ov

    wrapped = _Positional(model, tuple(example), outputs).eval()
    try:
        with _quiet_tracing():
            ir = ov.convert_model(
                wrapped, example_input=tuple(example.values()), input=[([-1, -1], ov.Type.i64)] * len(example)
            )
    except Exception as error:  # openvino raises many kinds, and what the traced code raises
        raise ExportError(f"OpenVINO cannot convert {type(model).__name__}: {last_line(error)}") from error
    for port, name in (*zip(ir.inputs, example, strict=True), *zip(ir.outputs, outputs, strict=True)):
        port.get_tensor().set_names({name})
    return ir


@contextlib.contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Keep back what tracing warns of whatever the model: shapes taken as constants are found by verification.

    OpenVINO looks at every attribute of a model, which makes transformers speak of those that are deprecated or unset.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with _ignored_warnings():
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _ignored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=TracerWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def _compare(
    directory: Path, probes: Sequence[Mapping[str, Tensor]], expected: Sequence[Mapping[str, Tensor]]
) -> tuple[float, float]:
    """Return the largest absolute difference and the largest relative to an output's scale; NaN if there is one."""
    ir = load_ir(directory, "f32")
    absolute: dict[str, float] = {}
    scale: dict[str, float] = {}
    for probe, wanted in zip(probes, expected, strict=True):
        found = ir.run(probe)
        for name, tensor in wanted.items():
            if found[name].shape != tuple(tensor.shape):
                raise ExportError(f"the IR's {name} has shape {found[name].shape}, torch's {tuple(tensor.shape)}")
            difference = float(np.abs(found[name] - tensor.numpy()).max())
            absolute[name] = float(np.maximum(absolute.get(name, 0.0), difference))  # unlike max(), keeps NaN
            scale[name] = max(scale.get(name, 0.0), float(tensor.abs().max()))
    tiny = float(np.finfo(np.float32).tiny)
    relative = [absolute[name] / max(scale[name], tiny) for name in absolute]
    return float(np.max(list(absolute.values()))), float(np.max(relative))


def _reference(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model on the CPU; a copy only if it is elsewhere."""
    other = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32})
    if other:
        raise UserError(f"export needs a model in float32, {type(model).__name__} has parameters in {', '.join(other)}")
    return model if model.device.type == "cpu" else copy.deepcopy(model).cpu()


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


def _input_names(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[str, ...]:
    if not batches:
        raise UserError("example_batches is empty: export verifies the IR on real batches")
    taken = inspect.signature(model.forward).parameters
    made = batches[0] if tokenizer is None else tokenizer.model_input_names
    names = tuple(name for name in INPUTS if name in taken and name in made)
    for number, batch in enumerate(batches):
        missing = [name for name in ("input_ids", *names) if name not in batch]
        if missing:
            raise UserError(f"example batch {number} lacks {listed(missing)}; it has {listed(batch)}")
    return names


def _refuse_foreign(directory: Path) -> None:
    """Raise `UserError` rather than replace a directory that is no export."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / EXPORT_FILE).is_file():
        raise UserError(f"{directory} is not empty and holds no export; choose another directory")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another directory")


def _save_config(model: PreTrainedModel, directory: Path) -> None:
    model.config.save_pretrained(directory)
    config = read_json(directory / "config.json")
    config.pop("auto_map", None)  # it names a Python file that an IR does not need
    write_json(directory / "config.json", config)


def _save_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, directory: Path, batches: Sequence[Mapping[str, Tensor]]
) -> str | None:
    """Save the tokenizer's own files and, if possible, its IR; return why there is no IR."""
    if tokenizer is None:
        return "no tokenizer was given"
    tokenizer.save_pretrained(directory)
    texts = [text for batch in batches for text in tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)]
    reason = save_tokenizer_ir(tokenizer, directory, texts)
    if reason is not None:
        warn(f"{directory.name}: no openvino_tokenizer.xml: {reason}; the tokenizer's own files are there")
    return reason


def _save_result(result: ExportResult, tokenizer_note: str | None, directory: Path) -> None:
    write_json(
        directory / EXPORT_FILE,
        {
            "format": FORMAT,
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
