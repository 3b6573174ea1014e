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
from bootstrapnas.export.runtime import IRModel, Runner, last_line
from bootstrapnas.export.tokenizer import save_tokenizer_ir
from bootstrapnas.export.verification import Difference, ExportError, difference, probe_batches
from bootstrapnas.progress import warn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


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
        self.probes = [probe for batch in self.batches for probe in probe_batches(batch)]
        if not self.probes:
            raise UserError("example_batches hold no rows with tokens to attend to")
        with torch.no_grad():
            self._expected = [
                {name: tensor.numpy() for name, tensor in tensor_outputs(model, probe).items()} for probe in self.probes
            ]
        self.outputs = tuple(self._expected[0])

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
        return ir

    def compare(self, ir: Runner) -> Difference:
        return difference([ir.run(probe) for probe in self.probes], self._expected)

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
    """Return the outputs that are single tensors, by name."""
    results = model(**batch, return_dict=True)
    return {name: value for name, value in results.items() if isinstance(value, Tensor)}


def convert(module: nn.Module, name: str, **settings: Any) -> Any:
    """Return what `openvino.convert_model` makes of a module; what it raises becomes an `ExportError` about `name`."""
    import openvino as ov

    try:
        with quiet_tracing():
            return ov.convert_model(module, **settings)
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
