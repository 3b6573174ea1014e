"""Weights as integers, activations as they are: nncf's weight compression."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.errors import UserError
from bootstrapnas.export.quiet import quiet_nncf
from bootstrapnas.progress import warn

if TYPE_CHECKING:
    from nncf import CompressWeightsMode

COMPRESSED = ("int8", "int4")
"""Weight formats that are integers."""
OF_INT8 = ("sym", "max_drop")
"""The settings that int8 weights, which have a scale per row, know."""
PREFIX, MODULE = "self.model.", "__module.model."
"""What conversion puts before the name of a parameter, and of a module in that of an operation."""
TYPES = {"u4": "int4_asym", "i4": "int4_sym", "u8": "int8_asym", "i8": "int8_sym"}
PER_CHANNEL = -1
_DECOMPRESSION = ("Convert", "Subtract", "Multiply", "Reshape")
SMALLEST_GROUP = 32  # nncf's, for rows that the group size does not divide


@dataclass(frozen=True, slots=True)
class WeightCompression:
    """How to compress, in the words of optimum-cli. int8 weights have a scale per row and no option but `sym`.

    Attributes
    ----------
    sym
        Integers around 0, without zero points.
    group_size
        Of int4: how many neighbouring weights of a row share a scale; -1: all of it. Rows that it does not divide get
        the largest power of two that does, from 32 on; where there is none, the layer stays int8.
    ratio
        Of int4: the share of weights that become int4, those that harm least first; the others become int8.
    all_layers
        Of int4: embeddings and the last layer too, which else become int8.
    awq
        Of int4: scale channels by how large the activations are that meet them, before rounding.
    scale_estimation
        Of int4: choose scales by what the layer puts out rather than by its weights.
    max_drop
        How much worse the metric may become, see `bootstrapnas.export.verification.TaskMetric.drop`; where it is more,
        the export fails.
    """

    sym: bool = False
    group_size: int = 128
    ratio: float = 1.0
    all_layers: bool = False
    awq: bool = False
    scale_estimation: bool = False
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.group_size != PER_CHANNEL and self.group_size < 2:
            raise UserError(f"group_size must be at least 2, or -1 for a scale per row, not {self.group_size}")
        if not 0 <= self.ratio <= 1:
            raise UserError(f"ratio must lie from 0 to 1, not {self.ratio:g}")
        if self.max_drop is not None and self.max_drop < 0:
            raise UserError(f"the largest drop of the metric must not be negative, is {self.max_drop:g}")

    @property
    def needs_data(self) -> bool:
        """Whether int4 weights are chosen by what the model computes on calibration data."""
        return self.awq or self.scale_estimation or self.ratio < 1


def compress(
    ir: Any,
    name: str,
    weight_format: str,
    settings: WeightCompression,
    calibration: Sequence[Mapping[str, np.ndarray]],
) -> Any:
    """Return an `openvino.Model` with the weights of `ir` in `weight_format`; `ir` may be changed.

    Parameters
    ----------
    ir
        In floating point.
    name
        What the model is called, for messages.
    weight_format
        ``"int8"`` or ``"int4"``.
    settings
        How.
    calibration
        Inputs of the IR by name, looked at only if ``settings.needs_data``.

    Raises
    ------
    UserError
        If the settings need calibration data and there are none.
    ExportError
        If nncf cannot compress the model.
    """
    import nncf

    mode: CompressWeightsMode = nncf.CompressWeightsMode[f"{weight_format.upper()}_{'SYM' if settings.sym else 'ASYM'}"]
    with quiet_nncf(f"nncf cannot compress {name}"):
        if weight_format == "int8":
            return nncf.compress_weights(ir, mode=mode)
        if settings.needs_data and not calibration:
            raise UserError("awq, scale_estimation and a ratio below 1 need calibration data: there are none")
        return nncf.compress_weights(
            ir,
            mode=mode,
            group_size=settings.group_size,
            ratio=settings.ratio,
            all_layers=settings.all_layers,
            awq=settings.awq or None,
            scale_estimation=settings.scale_estimation or None,
            dataset=nncf.Dataset(list(calibration)) if settings.needs_data else None,
            subset_size=max(len(calibration), 1),
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=SMALLEST_GROUP
            )
            if settings.group_size != PER_CHANNEL
            else None,
        )


@dataclass(frozen=True, slots=True)
class CompressedWeights:
    """Matrices that are stored in the same way.

    Attributes
    ----------
    type
        ``"int4_asym"``, ``"int4_sym"``, ``"int8_asym"``, ``"int8_sym"``.
    group_size
        How many weights share a scale; -1: a row.
    row
        How many weights a row has.
    parameters
        How many weights they are together.
    layers
        Names of the parameters.
    """

    type: str
    group_size: int
    row: int
    parameters: int
    layers: tuple[str, ...]


def compressed_weights(ir: Any) -> tuple[CompressedWeights, ...]:
    """Return how the matrices of a compressed `openvino.Model` are stored, those with the most weights first."""
    found: dict[tuple[str, int, int], dict[str, int]] = {}
    for operation in ir.get_ops():
        shape = list(operation.get_output_shape(0)) if operation.get_type_name() == "Constant" else []
        if len(shape) < 2 or operation.get_friendly_name().endswith("/zero_point"):
            continue
        kind = TYPES.get(operation.get_element_type().to_string())
        if kind is not None:
            group = shape[-1] if len(shape) == 3 else PER_CHANNEL
            name = _parameter(operation)
            count = int(np.prod(shape))
            found.setdefault((kind, group, count // shape[0]), {})[name] = count
    groups = [CompressedWeights(*key, sum(layers.values()), tuple(sorted(layers))) for key, layers in found.items()]
    return tuple(sorted(groups, key=lambda group: -group.parameters))


def outer_layers(ir: Any) -> set[str]:
    """Return the names of the embeddings and of the last layer of a compressed `openvino.Model`."""
    found, last = set(), ""
    names = {
        reader.get_friendly_name(): (reader.get_type_name(), _parameter(operation))
        for operation in ir.get_ops()
        if operation.get_type_name() == "Constant" and operation.get_element_type().to_string() in TYPES
        for reader in _readers(operation)
    }
    for operation in ir.get_ordered_ops():
        kind, name = names.get(operation.get_friendly_name(), ("", ""))
        if kind == "Gather":
            found.add(name)
        elif kind:
            last = name
    return found | {last}


def _parameter(weights: Any) -> str:
    """Return the name of the parameter that compressed weights are; one held as [in, out] is told by what reads it."""
    name = str(weights.get_friendly_name())
    reader = next(_readers(weights), None)
    if name.startswith(PREFIX) or reader is None:
        return name.removeprefix(PREFIX)
    return f"{reader.get_friendly_name().partition('/')[0].removeprefix(MODULE)}.weight"


def _readers(weights: Any) -> Iterator[Any]:
    """Yield what computes with compressed weights, beyond what makes numbers of them."""
    for each in weights.output(0).get_target_inputs():
        reader = each.get_node()
        if reader.get_type_name() in ("MatMul", "Gather"):
            yield reader
        elif reader.get_type_name() in _DECOMPRESSION:
            yield from _readers(reader)


def warn_of_widths(
    groups: Sequence[CompressedWeights], settings: WeightCompression, outer: Collection[str] = ()
) -> None:
    """Say which matrices of an int4 model have smaller groups or stayed int8: the group size does not fit the rows.

    Those of the `outer_layers` are int8 whatever their width, unless all layers were to be int4.
    """
    if settings.group_size == PER_CHANNEL:
        return
    if not settings.all_layers:
        inner = (replace(group, layers=tuple(name for name in group.layers if name not in outer)) for group in groups)
        groups = [group for group in inner if group.layers]
    for group in groups:
        if group.row % settings.group_size:
            power = group.row & -group.row
            several = len(group.layers) > 1
            what = f"{'have' if several else 'has'} groups of {group.group_size}"
            if group.type.startswith("int8"):
                what = f"{'stay' if several else 'stays'} int8"
                if power >= SMALLEST_GROUP:
                    continue  # for another reason
            others = f" and {len(group.layers) - 1} more" if several else ""
            warn(
                f"{group.layers[0]}{others} {what}: rows of {group.row} weights are no groups of {settings.group_size}"
            )
