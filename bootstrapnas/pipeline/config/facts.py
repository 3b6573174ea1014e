"""What the explanation of an NNCF config holds: one frozen dataclass a part, one JSON document together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model: `source` is ``given``, ``implied`` (by names and widths) or ``unknown``.

    `name` is the published model that has these `sizes`, `vocabulary_of` the checkpoint whose vocabulary is counted.
    `labels` is `None` where a classifier is left out of the costs, as nothing says how many it has.
    """

    source: str
    name: str | None
    architecture: str | None
    model_type: str | None
    sizes: Mapping[str, int]
    vocabulary_of: str | None
    labels: int | None


@dataclass(frozen=True, slots=True)
class ElasticGroup:
    """A group of layers that share a width.

    `channels` are its widths, descending; `units` the same in whole units (heads, channels), where the unit is known;
    `kept` says how many of them training and search ever take.
    """

    name: str
    modules: tuple[str, ...]
    layers: tuple[int, ...] | None
    channels: tuple[int, ...]
    units: tuple[int, ...] | None
    kept: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """Skippable parts of layers, for example ``mha_block[0]``: those that may be skipped and those that always are."""

    elastic: tuple[str, ...] | None
    fixed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SpaceSize:
    """Number of subnets, and its decimal logarithm."""

    subnets: int
    log10: float


@dataclass(frozen=True, slots=True)
class SubnetCosts:
    """Costs of one subnet; what is not known is `None`."""

    macs: int | None
    params: int | None
    params_without_embeddings: int | None


@dataclass(frozen=True, slots=True)
class StageFacts:
    """One stage of training; `None` for epochs or learning rate leaves them to the command line."""

    train_dims: tuple[str, ...]
    epochs: int | None
    learning_rate: float | None
    epochs_lr: int | None
    width_indicator: int
    depth_indicator: int
    sample_rate: int
    reorders: bool
    reorg_interval: int | None
    subnets: SpaceSize | None


@dataclass(frozen=True, slots=True)
class SearchFacts:
    """The search: settings with defaults, whole generations, evaluations rounded away, and the floor of the metric.

    `floor` is a fraction; `None` where it follows from the largest subnet's own metric. `metric` is what the config
    names; `None` leaves it to the task.
    """

    metric: str | None
    settings: Mapping[str, Any]
    generations: int
    evaluations: int
    rounded_away: int
    floor: float | None


@dataclass(frozen=True, slots=True)
class MovementFacts:
    """The movement sparsity section: granularity per scope, and the warm-up."""

    structures: tuple[tuple[str, tuple[str, ...]], ...]
    ignored_scopes: tuple[str, ...]
    target_scopes: tuple[str, ...] | None
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that a config says."""

    format: int
    file: str
    sequence_length: int | None
    inputs: tuple[Mapping[str, Any], ...]
    model: ModelFacts
    groups: tuple[ElasticGroup, ...] | None
    blocks: Blocks | None
    listed: SpaceSize | None
    effective: SpaceSize | None
    largest: SubnetCosts | None
    smallest: SubnetCosts | None
    stages: tuple[StageFacts, ...]
    lr_schedule: Mapping[str, Any] | None
    sandwich_rule: bool | None
    distillation: Mapping[str, Any]
    search: SearchFacts
    movement_sparsity: MovementFacts | None
    ignored: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as one JSON document."""
        return {
            **asdict(self),
            "ignored": [{"key": key, "reason": reason} for key, reason in self.ignored],
        }
