"""From scores of units to a search space: one global threshold per cost target (EFTNAS, section 3.1 of the paper)."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.space import SearchSpace

if TYPE_CHECKING:
    from torch import Tensor

DEPTHS = ("half_blocks", "layers", "none")
"""What of a layer a generated space may skip: its attention or its FFN, the layer as a whole, or nothing."""

CHANNEL_MULTIPLE = 8
"""Single channels are kept in multiples of this by default, which is what vector units like."""


@dataclass(frozen=True, slots=True)
class GeneratedSubnet:
    """The subnet of one target.

    Attributes
    ----------
    target
        The MACs asked for.
    macs
        The MACs reached.
    threshold
        Units with a score above it are kept; None keeps all.
    subnet
        Sizes in units; the widths inside a skipped block are at full size.
    """

    target: int
    macs: int
    threshold: float | None
    subnet: Mapping[Key, int]


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """A generated search space.

    Attributes
    ----------
    space
        One gene per key, whose choices are the widths over all targets and the full one, and one per block that any
        target skips. The full network is the first choice everywhere.
    subnets
        What each target came to, in the order of the targets; each is in the space.
    notes
        One line for every target that could not be met within the tolerance.
    """

    space: SearchSpace
    subnets: tuple[GeneratedSubnet, ...]
    notes: tuple[str, ...]


def even_targets(full: int, lowest: int, num: int) -> tuple[int, ...]:
    """Return `num` targets from `lowest` to `full`, both included, an integer step apart but for the last.

    Raises
    ------
    UserError
        If there are fewer than two, or the lowest is not positive and below `full`.
    """
    if num < 2:
        raise UserError(f"a search space needs at least 2 targets, not {num}")
    if not 0 < lowest < full:
        raise UserError(f"the lowest target must be above 0 and below the full model's {full:,}, not {lowest:,}")
    step = (full - lowest) // (num - 1)
    return (*(lowest + step * index for index in range(num - 1)), full)


def mac_targets(full_macs: int, lowest_ratio: float = 0.2, num: int = 5) -> tuple[int, ...]:
    """Return `num` evenly spaced MACs from ``lowest_ratio * full_macs`` to `full_macs`.

    Raises
    ------
    UserError
        If there are fewer than two, or the ratio is not between 0 and 1.
    """
    if not 0 < lowest_ratio < 1:
        raise UserError(f"the lowest ratio of MACs must be between 0 and 1, not {lowest_ratio}")
    return even_targets(full_macs, max(1, round(lowest_ratio * full_macs)), num)


def generate_space(
    blueprint: Blueprint,
    unit_scores: Mapping[Key, Tensor],
    targets: Sequence[int],
    *,
    length: int,
    tolerance: int | None = None,
    multiple: Mapping[str, int] | None = None,
    skip_below: float = 0.02,
    depth: str = "half_blocks",
) -> SpaceReport:
    """Generate the search space whose subnets meet the targets.

    For each target one threshold over the scores of all units is searched. A key's width is the number of its units
    above the threshold, rounded up to a multiple and at least one; if too little is left, its half-block (attention or
    FFN) is skipped instead. With whole layers, half of what a target saves comes from depth: to keep a share r of the
    MACs, the round((1 - r) / 2 * layers) layers with the lowest sums of unit scores are skipped, and the threshold
    is searched over the units of the others.

    Parameters
    ----------
    blueprint
        The labelled model.
    unit_scores
        Key -> score per unit, shape [units]; comparable between keys. Keys left out keep their full size.
    targets
        MACs of one sequence.
    length
        Tokens of that sequence.
    tolerance
        MACs that a target may be missed by without a note; default: 1 % of the full model's.
    multiple
        Dimension -> widths are multiples of this (or full); 1 for a dimension left out. Default: `CHANNEL_MULTIPLE`
        for units of one channel, 1 for larger ones such as heads.
    skip_below
        A half-block is skipped when a width inside falls below this part of the full one.
    depth
        What may be skipped, one of `DEPTHS`.

    Raises
    ------
    UserError
        If there is no target or no score, a target is not positive, scores do not fit the model or are not finite,
        `multiple` names an unknown dimension, or `depth` is not known or not possible in the family.
    """
    if not targets:
        raise UserError("a search space needs at least one target")
    if min(targets) <= 0:
        raise UserError(f"targets must be positive numbers of MACs, not {min(targets)}")
    units = _Units(blueprint, unit_scores, length, _multiples(blueprint, multiple), skip_below, depth)
    subnets = tuple(units.nearest(target) for target in targets)
    allowed = count_macs(blueprint, length=length) // 100 if tolerance is None else tolerance
    notes = tuple(
        f"target of {found.target:,} MACs: the nearest that a threshold reaches is {found.macs:,}"
        for found in subnets
        if abs(found.macs - found.target) > allowed
    )
    widths = [(key, [blueprint.full[key], *(found.subnet[key] for found in subnets)]) for key in units.keys]
    skipped = {key for found in subnets for key in found.subnet if key not in unit_scores}
    blocks = [(block, (1, 0)) for block in _in_order(blueprint, skipped)]
    return SpaceReport(SearchSpace.build(blueprint, [*widths, *blocks]), subnets, notes)


class _Units:
    """The scores of all units, and the subnets that thresholds on them make.

    Thresholds are counted: 0 is -inf, which keeps all units, and i is the i-th smallest distinct score. Sizes, and so
    MACs, never grow with the threshold and only change where it passes a score: these are all the subnets there are.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        unit_scores: Mapping[Key, Tensor],
        length: int,
        multiples: Mapping[str, int],
        skip_below: float,
        depth: str,
    ) -> None:
        _check(blueprint, unit_scores)
        if depth not in DEPTHS:
            raise UserError(f"unknown depth {depth!r} (known: {listed(DEPTHS)}){near_miss(depth, DEPTHS)}")
        self.blueprint, self.length, self.multiples, self.skip_below = blueprint, length, multiples, skip_below
        self.keys = _in_order(blueprint, unit_scores)
        self.ascending: dict[Key, list[float]] = {key: sorted(unit_scores[key].tolist()) for key in self.keys}
        self.thresholds = [-math.inf, *sorted({score for scores in self.ascending.values() for score in scores})]
        blocks = [key for key in blueprint.elastic if blueprint.is_block(key)]
        halves = [key for key in blocks if depth == "half_blocks" and not blueprint.is_whole_layer(key)]
        self.half_of = {key: block for block in halves for key in blueprint.inside(block)}
        layers = [key for key in blocks if depth == "layers" and blueprint.is_whole_layer(key)]
        if depth == "layers" and not layers:
            raise UserError(f"family {blueprint.family.model_type!r} has no layers that can be skipped as a whole")
        self.inside = {layer: [key for key in self.keys if key in blueprint.inside(layer)] for layer in layers}
        self.layers = sorted(layers, key=lambda layer: sum(sum(self.ascending[key]) for key in self.inside[layer]))

    def subnet(self, index: int, layers: Sequence[Key]) -> dict[Key, int]:
        """Return the subnet of a threshold without some whole layers."""
        subnet: dict[Key, int] = {}
        skipped = set(layers)
        for key in self.keys:
            full = self.blueprint.full[key]
            kept = full - bisect_right(self.ascending[key], self.thresholds[index])
            multiple = self.multiples[key.dim]
            subnet[key] = min(full, -(-max(kept, 1) // multiple) * multiple)
            if kept < self.skip_below * full and key in self.half_of:
                skipped.add(self.half_of[key])
        gone = {key for block in skipped for key in self.blueprint.inside(block)}
        for key in gone.intersection(self.keys):
            subnet[key] = self.blueprint.full[key]  # a block that is gone says nothing about its width
        return {**subnet, **dict.fromkeys(_in_order(self.blueprint, skipped), 0)}

    def macs(self, index: int, layers: Sequence[Key]) -> int:
        """Return the MACs of the subnet of a threshold without some whole layers."""
        return count_macs(self.blueprint, self.subnet(index, layers), length=self.length)

    def skipped_layers(self, target: int) -> Sequence[Key]:
        """Return the layers whose scores are lowest, as many as half of what the target saves; one is always left."""
        saved = max(0.0, 1 - target / count_macs(self.blueprint, length=self.length))
        return self.layers[: min(round(saved / 2 * len(self.layers)), max(len(self.layers) - 1, 0))]

    def nearest(self, target: int) -> GeneratedSubnet:
        """Return the subnet whose MACs are nearest to `target`, the smaller of two equally near ones."""
        layers = self.skipped_layers(target)

        def macs(index: int) -> int:
            return self.macs(index, layers)

        last = len(self.thresholds) - 1
        below = bisect_left(range(last), -target, key=lambda index: -macs(index))  # the first not above the target
        index = min((below, max(below - 1, 0)), key=lambda index: abs(macs(index) - target))
        threshold = self.thresholds[index] if index else None
        return GeneratedSubnet(target, macs(index), threshold, self.subnet(index, layers))


def _check(blueprint: Blueprint, unit_scores: Mapping[Key, Tensor]) -> None:
    known = {str(key): key for key in blueprint.elastic if not blueprint.is_block(key)}
    if not unit_scores:
        raise UserError("a search space needs scores of at least one elastic dimension")
    for key, scores in unit_scores.items():
        if str(key) not in known:
            raise UserError(f"scores of {key}, which is no elastic dimension of the model{near_miss(str(key), known)}")
        if tuple(scores.shape) != (blueprint.full[key],):
            raise UserError(f"scores of {key} have shape {list(scores.shape)}, but it has {blueprint.full[key]} units")
        if not scores.isfinite().all():
            raise UserError(f"scores of {key} are not all finite")


def _multiples(blueprint: Blueprint, multiple: Mapping[str, int] | None) -> dict[str, int]:
    elastic = {key.dim: key for key in blueprint.elastic if not blueprint.is_block(key)}
    if multiple is None:
        return {dim: CHANNEL_MULTIPLE if blueprint.channels_per_unit(key) == 1 else 1 for dim, key in elastic.items()}
    for dim, value in multiple.items():
        if dim not in elastic:
            raise UserError(f"a multiple for {dim!r}, which is no elastic dimension{near_miss(dim, elastic)}")
        if value < 1:
            raise UserError(f"widths of {dim!r} cannot be multiples of {value}")
    return {dim: multiple.get(dim, 1) for dim in elastic}


def _in_order(blueprint: Blueprint, keys: Iterable[Key]) -> tuple[Key, ...]:
    """Sort keys dimension by dimension, layer by layer."""
    dims = list(blueprint.dims)
    return tuple(sorted(keys, key=lambda key: (dims.index(key.dim), key.layer or 0)))
