"""Full post-training quantisation of an encoder's IR by nncf: int8 weights and activations, from calibration data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.export.conversion import random_batch
from bootstrapnas.export.quiet import quiet_nncf
from bootstrapnas.export.runtime import load_unsaved
from bootstrapnas.export.verification import TaskMetric, difference
from bootstrapnas.progress import notice

if TYPE_CHECKING:
    from torch import Tensor

Batch: TypeAlias = "Mapping[str, Tensor]"
QUANTISED = "quant_mode int8"
"""What `Conversion.unsuitable` calls this."""
PRESETS = ("mixed", "performance")
"""Asymmetric activations where values are not centred (nncf's choice for transformers), or symmetric ones throughout:
a bit faster, less exact."""
RANDOM_ROWS = 4
SMOOTH_QUANT_ALPHA = 0.95
"""What nncf smooths transformers by: how much of an activation's range is moved into the weights that follow."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How to quantise.

    Attributes
    ----------
    preset
        One of `PRESETS`.
    smooth_quant_alpha
        From 0 to 1, or -1 to smooth nothing.
    ignored
        Regular expressions of names of operations in the IR that stay in floating point.
    max_drop
        How much worse the task metric (a fraction) may become; where it is more, activations go back to floating
        point, those that harm most first, until it is not. None takes what quantisation gives.
    """

    preset: str = "mixed"
    smooth_quant_alpha: float = SMOOTH_QUANT_ALPHA
    ignored: tuple[str, ...] = ()
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UserError(
                f"unknown preset {self.preset!r}, known: {listed(PRESETS)}{near_miss(self.preset, PRESETS)}"
            )
        if self.smooth_quant_alpha != -1 and not 0 <= self.smooth_quant_alpha <= 1:
            raise UserError(f"smooth_quant_alpha must lie from 0 to 1, or be -1, not {self.smooth_quant_alpha:g}")
        if self.max_drop is not None and self.max_drop < 0:
            raise UserError(f"the largest drop of the metric must not be negative, is {self.max_drop:g}")
        for pattern in self.ignored:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"ignored operations: {pattern!r} is no regular expression: {error}") from None


def check_calibration(
    settings: Quantisation, calibration: Sequence[Batch], inputs: Sequence[str], metric: TaskMetric | None
) -> None:
    """Raise `UserError` if there are no calibration data, they lack an input, or a drop is bounded of no metric."""
    if not calibration:
        raise UserError("quantisation needs calibration data: there are no rows")
    for number, batch in enumerate(calibration):
        missing = [each for each in inputs if each not in batch]
        if missing:
            raise UserError(f"calibration batch {number} lacks {listed(missing)}; it has {listed(batch)}")
    if settings.max_drop is not None and metric is None:
        raise UserError("a largest drop of the metric needs a task and its validation rows to measure it on")


def quantise(
    ir: Any,
    name: str,
    settings: Quantisation,
    calibration: Sequence[Batch],
    inputs: Sequence[str],
    metric: TaskMetric | None,
) -> Any:
    """Return the quantised `openvino.Model`; `ir` is left as it is.

    Parameters
    ----------
    ir
        In floating point.
    name
        What the model is called, for messages.
    settings
        How.
    calibration
        Real inputs, tensors of shape [batch, length] by input name, as short as the texts are; one row each is best:
        ranges are taken from every batch, padding included. As `check_calibration` lets pass.
    inputs
        Names of its inputs.
    metric
        What ``settings.max_drop`` is a drop of.

    Raises
    ------
    ExportError
        If nncf fails.
    UserError
        If one of ``settings.ignored`` matches no operation.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    _check_ignored(settings.ignored, ir)
    items = [{each: np.asarray(batch[each], dtype=np.int64) for each in inputs} for batch in calibration]
    with quiet_nncf(f"nncf cannot quantise {name}"):
        quantised = nncf.quantize(
            ir,
            nncf.Dataset(items),
            preset=nncf.QuantizationPreset(settings.preset),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(items),
            ignored_scope=nncf.IgnoredScope(patterns=list(settings.ignored), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # nncf's default is the mean of the rows' largest values, which cuts off half of them: on STS-B, whose
                # one output is a number, that costs 4 points of Pearson's correlation, the largest of all 0.1.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=settings.smooth_quant_alpha),
            ),
        )
    if settings.max_drop is None:
        return quantised
    assert metric is not None
    return restore(quantised, metric, settings.max_drop)


def _check_ignored(patterns: Sequence[str], ir: Any) -> None:
    """Raise `UserError` if a pattern matches no name of an operation from its start on, as nncf matches them."""
    operations = [each for each in ir.get_ordered_ops() if each.get_type_name() not in ("Parameter", "Constant")]
    for pattern in patterns:
        if not any(re.match(pattern, operation.get_friendly_name()) for operation in operations):
            example = next(filter(_is_product, operations)).get_friendly_name()
            raise UserError(
                f"ignored operations: {pattern!r} matches the beginning of no operation's name, such as {example}"
            )


def quantise_for_speed(ir: Any, name: str, vocabulary: int) -> Any:
    """Return what `quantise` does, its ranges those of random tokens: a model of which the speed alone counts."""
    calibration = [random_batch(vocabulary, 1, row) for row in range(RANDOM_ROWS)]
    return quantise(ir, name, Quantisation(), calibration, [port.get_any_name() for port in ir.inputs], None)


def restore(ir: Any, metric: TaskMetric, max_drop: float) -> Any:
    """Return a quantised IR with as many activations in float as keep the metric within `max_drop` of torch's.

    What each quantiser of activations does alone to the outputs of a batch, where all others are off, ranks them; of
    those that move the outputs most 1, 2, 4, … are taken out, until the metric is good enough, in the end all. Weights
    stay integers. nncf's own accuracy control measures much more often, and gives up on models of few operations.
    """
    if metric.drop(metric.of(load_unsaved(ir))) <= max_drop:
        return ir
    names = [operation.get_friendly_name() for operation in _activation_quantisers(ir)]
    batch = metric.batches[len(metric.batches) // 2]
    exact = load_unsaved(without(ir, names)).run(batch)
    harm = {
        name: difference([load_unsaved(without(ir, set(names) - {name})).run(batch)], [exact]).relative
        for name in names
    }
    worst = sorted(names, key=lambda name: -harm[name])
    count = 1
    while True:
        restored = without(ir, worst[:count])
        notice(f"quantisation: {min(count, len(worst))} of {len(worst)} activations back in float")
        if count >= len(worst) or metric.drop(metric.of(load_unsaved(restored))) <= max_drop:
            return restored
        count *= 2


def without(ir: Any, names: Collection[str]) -> Any:
    """Return a copy of a quantised IR in which the quantisers of some activations, by name, let values pass."""
    copy = ir.clone()
    for operation in _activation_quantisers(copy):
        if operation.get_friendly_name() in names:
            operation.output(0).replace(operation.input_value(0))
    return copy


def _activation_quantisers(ir: Any) -> list[Any]:
    return [
        operation
        for operation in ir.get_ordered_ops()
        if operation.get_type_name() == "FakeQuantize"
        and operation.input_value(0).get_node().get_type_name() not in ("Constant", "Convert")
    ]


def count_operations(ir: Any) -> dict[str, int]:
    """Return by type how many operations of a quantised IR read int8 values, and how many products do not."""
    found = {"quantised": 0, "products_in_float": 0}
    for operation in ir.get_ops():
        if not _is_product(operation):
            continue
        sources = [port.get_source_output().get_node().get_type_name() for port in operation.inputs()]
        found["quantised" if "FakeQuantize" in sources else "products_in_float"] += 1
    return found


def _is_product(operation: Any) -> bool:
    return bool(operation.get_type_name() == "MatMul")
