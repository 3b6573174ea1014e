"""From a torch model to an `openvino.Model`: what each kind of model does in its own way."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from bootstrapnas.artefacts import writing
from bootstrapnas.errors import UserError, listed
from bootstrapnas.export.runtime import IDS, MASK, IRModel, Runner, last_line
from bootstrapnas.export.tokenizer import save_tokenizer_ir
from bootstrapnas.export.verification import Difference, ExportError, check_shapes, difference, probe_batches
from bootstrapnas.progress import warn

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INPUTS = (IDS, MASK, "token_type_ids")


class Conversion(Protocol):
    """A kind of model on its way to an IR; `bootstrapnas.export.openvino` does what all kinds have in common.

    Attributes
    ----------
    kind
        What to call it: ``"encoder"``, …
    unsuitable
        What such a model does not get (``"weight_format int4"``, ``"quant_mode int8"``): why, and what would be right.
    inputs, outputs
        Names.
    shapes
        [batch, length] of what is compared.
    """

    kind: str
    unsuitable: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        batches: Sequence[Mapping[str, Tensor]],
    ) -> None: ...

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]: ...

    def convert(self) -> Any:
        """Return the `openvino.Model`, its weights in float32; `ExportError` if it cannot be converted."""

    def compare(self, ir: IRModel) -> Difference:
        """Return how far an IR is from torch, on real batches and on what is made of them."""

    def check(self, ir: IRModel, found: Difference) -> None:
        """Raise `ExportError` if an IR of floating-point weights goes wrong in a way that `compare` does not see."""

    def save_tokenizer(self, directory: Path) -> str | None:
        """Write what turns text into inputs and back; return why there is no IR of it, if there is none."""


def random_batch(vocabulary: int, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Return what encoders and language models take, of random tokens, shape [rows, 16]."""
    ids = torch.randint(vocabulary, (rows, 16), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


class EncoderConversion:
    """An encoder with any head: all its outputs that are single tensors, dynamic batch and length.

    Parameters
    ----------
    model
        In float32, on the CPU, in eval mode.
    tokenizer
        Decides which inputs the IR has; without it the first batch does.
    batches
        Real batches, tensors of shape [batch, length] by input name; other entries are not looked at.

    Raises
    ------
    UserError
        If a batch lacks an input, or there is nothing to compare on.
    """

    kind = "encoder"
    unsuitable: Mapping[str, str] = {
        "weight_format int4": "an encoder computes a whole text at once, so smaller weights save it no time and 4 bits "
        "cost it exactness; use weight_format int8, or quant_mode int8, which computes in int8 as well"
    }

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        batches: Sequence[Mapping[str, Tensor]],
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.inputs = _input_names(model, tokenizer, batches)
        self.batches = [{name: batch[name].detach().cpu().long() for name in self.inputs} for batch in batches]
        pad = getattr(model.config, "pad_token_id", None)
        self.probes = [probe for batch in self.batches for probe in probe_batches(batch, pad)]
        if not self.probes:
            raise UserError("example_batches hold no rows with tokens to attend to")
        with torch.no_grad():
            self._expected = [
                {name: tensor.numpy() for name, tensor in tensor_outputs(model, probe).items()} for probe in self.probes
            ]
        self.outputs = tuple(self._expected[0])
        pairs = list(zip(self.probes, self._expected, strict=True))
        self._of_tokens = {
            name for name in self.outputs if all(found[name].shape[:2] == probe[IDS].shape for probe, found in pairs)
        }

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple(tuple(probe["input_ids"].shape) for probe in self.probes)  # type: ignore[misc]

    def convert(self) -> Any:
        import openvino as ov

        example = self.probes[0]
        wrapped = Positional(self.model, self.inputs, self.outputs).eval()
        with torch.no_grad():
            ir = convert(
                wrapped,
                type(self.model).__name__,
                example_input=tuple(example.values()),
                input=[([-1, -1], ov.Type.i64)] * len(example),
            )
        for port, name in (*zip(ir.inputs, self.inputs, strict=True), *zip(ir.outputs, self.outputs, strict=True)):
            port.get_tensor().set_names({name})
        _let_all_attend(ir)
        return ir

    def compare(self, ir: Runner) -> Difference:
        """Return how far an IR is from torch; of outputs that have an entry for every token, padding's is left out.

        Nothing reads it, and where padding may attend to nothing at all it is undefined.
        """
        found: list[Mapping[str, np.ndarray]] = []
        wanted: list[Mapping[str, np.ndarray]] = []
        for probe, expected in zip(self.probes, self._expected, strict=True):
            outputs = ir.run(probe)
            check_shapes(outputs, expected)
            found += self._without_padding(outputs, probe)
            wanted += self._without_padding(expected, probe)
        return difference(found, wanted)

    def _without_padding(
        self, outputs: Mapping[str, np.ndarray], probe: Mapping[str, Tensor]
    ) -> list[dict[str, np.ndarray]]:
        """Return the outputs that are not by token, and row by row those that are."""
        attended = (probe[MASK] if MASK in probe else torch.ones_like(probe[IDS])).bool().numpy()
        whole = {name: output for name, output in outputs.items() if name not in self._of_tokens}
        return [
            whole,
            *({name: outputs[name][row, mask] for name in self._of_tokens} for row, mask in enumerate(attended)),
        ]

    def check(self, ir: IRModel, found: Difference) -> None:
        pass  # its outputs are all it has

    def save_tokenizer(self, directory: Path) -> str | None:
        tokenizer = self.tokenizer
        if tokenizer is None:
            return "no tokenizer was given"
        with writing(directory):
            tokenizer.save_pretrained(directory)
        ids = [row for batch in self.batches for row in batch["input_ids"]]
        reason = save_tokenizer_ir(tokenizer, directory, tokenizer.batch_decode(ids, skip_special_tokens=True))
        if reason is not None:
            warn(f"no openvino_tokenizer.xml: {reason}; the tokenizer's own files are there")
        return reason


class Positional(nn.Module):
    """Gives a model's forward pass the form that tracing keeps in order: positional inputs, a tuple of outputs."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = tensor_outputs(self.model, dict(zip(self.inputs, tensors, strict=True)))
        return tuple(results[name] for name in self.outputs)


def tensor_outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs that are single tensors, by name; a decoder (with a head of an encoder's) keeps no cache."""
    taken = inspect.signature(getattr(model, "base_model", model).forward).parameters
    settings = {"use_cache": False} if "use_cache" in taken else {}
    results = model(**batch, return_dict=True, **settings)
    return {name: value for name, value in results.items() if isinstance(value, Tensor)}


def _let_all_attend(ir: Any) -> None:
    """Let tokens attend to everything that may attend to nothing: padding, further from the text than a window is wide.

    torch puts zeros there, OpenVINO NaN, which the next layer would pass on to every token of the row.
    """
    from openvino import opset13 as ops

    changed: dict[str, Any] = {}
    for operation in ir.get_ops():
        if operation.get_type_name() != "ScaledDotProductAttention" or operation.get_input_size() < 4:
            continue
        mask = operation.input_value(3)
        if conditions_of(mask.get_node()).isdisjoint(("Greater", "LessEqual")):  # where keys lie does not matter
            continue
        name = mask.get_node().get_friendly_name()
        if name not in changed:
            nothing = ops.logical_not(ops.reduce_logical_or(mask, ops.constant([-1]), keep_dims=True))
            changed[name] = ops.logical_or(mask, nothing)
        operation.input(3).replace_source_output(changed[name].output(0))
    ir.validate_nodes_and_infer_types()


def conditions_of(node: Any) -> set[str]:
    """Return the types of the operations whose conjunction a boolean mask is.

    Windows are ``Greater``, where they end on both sides ``LessEqual``, as is causality.
    """
    kind = node.get_type_name()
    if kind not in ("Broadcast", "BitwiseAnd"):
        return {kind}
    values = node.input_values()[: 1 if kind == "Broadcast" else 2]
    return set().union(*(conditions_of(value.get_node()) for value in values))


def convert(module: nn.Module, name: str, *, example_input: tuple[Tensor, ...], **settings: Any) -> Any:
    """Return what `openvino.convert_model` makes of a module; what it raises becomes an `ExportError` about `name`.

    Torch's own check of what it traces, which traces twice, is left out: an export compares the files with the model.
    """
    import openvino as ov
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with quiet_tracing():
            trace = TorchScriptPythonDecoder(module, example_input=example_input, trace_kwargs={"check_trace": False})
            return ov.convert_model(trace, example_input=example_input, **settings)
    except Exception as error:  # openvino raises many kinds, and what the traced code raises
        raise ExportError(f"OpenVINO cannot convert {name}: {last_line(error)}") from error


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
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
