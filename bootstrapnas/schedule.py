"""When a supernet's training changes: stages and learning rates as functions of the optimiser step. Free of torch.

Formulas are those of NNCF's BootstrapNAS. Its stage rate falls behind by one step with every finished epoch, and its
global rate does not reach zero when there is a warm-up; `parity` keeps both as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config.schema import COMMAND_LINE, LRParams, Training


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of supernet training.

    Attributes
    ----------
    train_dims
        What is elastic: ``"width"``, ``"depth"``.
    epochs
        How long it takes; fractions are allowed.
    depth_indicator
        How many of the blocks of a chain may be skipped, counted from its end.
    width_indicator
        How many of the widths of a group may be taken, counted from the largest; -1 for all.
    reorg_weights
        Whether units are put in order by importance when it begins.
    init_lr
        The learning rate that it begins with.
    epochs_lr
        Epochs over which the learning rate falls to zero.
    sample_rate
        Every how many steps new subnets are drawn.
    reorg_interval
        Every how many of its epochs, from the first one on, units are put in order by importance; `None` for never.
    """

    train_dims: tuple[str, ...]
    epochs: float = 1
    depth_indicator: int = 1
    width_indicator: int = 1
    reorg_weights: bool = False
    init_lr: float = 2e-5
    epochs_lr: float = 1
    sample_rate: int = 1
    reorg_interval: int | None = None


@dataclass(frozen=True, slots=True)
class GlobalLR:
    """A learning rate over all stages: linear from `warmup_lr` to `base_lr`, then a cosine. Times are in epochs."""

    base_lr: float
    num_epochs: float
    warmup_epochs: float = 0.0
    warmup_lr: float = 3.4e-4


def stage_lr(step: int, *, init_lr: float, epochs_lr: float, steps_per_epoch: int, parity: bool = False) -> float:
    """Return the learning rate of an optimiser step, counted from 0 in its stage: a cosine from `init_lr` to zero.

    It stays at zero after `epochs_lr` epochs; NNCF's (`parity`) would rise again there, as its cosine goes on.
    """
    total = epochs_lr * steps_per_epoch
    if parity:
        epoch, done = divmod(step, steps_per_epoch)
        return _cosine(init_lr, epoch * steps_per_epoch + (done + 1) - epoch, total)
    return _cosine(init_lr, min(step, total), total)


def global_lr(step: int, schedule: GlobalLR, *, steps_per_epoch: int, parity: bool = False) -> float:
    """Return the learning rate of an optimiser step, counted from 0 over all stages.

    The cosine ends at zero after `num_epochs`. NNCF's (`parity`) is stretched over `num_epochs` *after* the warm-up.
    """
    warmup = schedule.warmup_epochs * steps_per_epoch
    epoch = step // steps_per_epoch
    lagging = step - epoch if parity else step
    if (epoch < schedule.warmup_epochs) if parity else (step < warmup):
        return schedule.warmup_lr + (schedule.base_lr - schedule.warmup_lr) * (lagging + 1) / warmup
    total = schedule.num_epochs * steps_per_epoch
    if parity:
        return _cosine(schedule.base_lr, lagging - warmup, total)
    return _cosine(schedule.base_lr, min(step, total) - warmup, total - warmup)


def _cosine(top: float, done: float, total: float) -> float:
    return 0.5 * top * (1 + math.cos(math.pi * done / total))


@dataclass(frozen=True, slots=True)
class StageSchedule:
    """The stages of a training run in optimiser steps, counted from 0.

    Attributes
    ----------
    stages
        One after the other.
    steps_per_epoch
        Optimiser steps of an epoch.
    overall
        One learning rate for all stages, instead of each stage's own.
    parity
        Whether learning rates are NNCF's to the step, oddities included.

    Raises
    ------
    UserError
        If there is no stage or no step, or the warm-up takes all epochs.
    """

    stages: tuple[Stage, ...]
    steps_per_epoch: int
    overall: GlobalLR | None = None
    parity: bool = False

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("the schedule has no stage that trains width or depth")
        if self.steps_per_epoch < 1:
            raise UserError("an epoch has no optimiser step: there are fewer rows than a batch holds")
        if self.overall is not None and self.overall.warmup_epochs >= self.overall.num_epochs:
            raise UserError(
                f"lr_schedule: warmup_epochs {self.overall.warmup_epochs:g} must be below "
                f"num_epochs {self.overall.num_epochs:g}"
            )

    @property
    def ends(self) -> tuple[int, ...]:
        """Per stage, the number of the first step after it."""
        return tuple(accumulate(math.ceil(stage.epochs * self.steps_per_epoch) for stage in self.stages))

    @property
    def total_steps(self) -> int:
        """All optimiser steps."""
        return self.ends[-1]

    @property
    def starts(self) -> tuple[int, ...]:
        """Per stage, the number of its first step."""
        return (0, *self.ends[:-1])

    @property
    def reorder_steps(self) -> tuple[int, ...]:
        """The steps before which units are put in order by importance."""
        steps = set()
        for start, end, stage in zip(self.starts, self.ends, self.stages, strict=True):
            if stage.reorg_weights:
                steps.add(start)
            if stage.reorg_interval is not None:
                steps.update(range(start, end, stage.reorg_interval * self.steps_per_epoch))
        return tuple(sorted(steps))

    def draw(self, step: int) -> int:
        """Return the step at which a step's subnets were drawn: every `sample_rate` steps, from a stage's first on."""
        index = self.index(step)
        start = self.starts[index]
        return step - (step - start) % self.stages[index].sample_rate

    def index(self, step: int) -> int:
        """Return the number of the stage that a step belongs to; steps after the end belong to the last stage."""
        return next((index for index, end in enumerate(self.ends) if step < end), len(self.stages) - 1)

    def stage(self, step: int) -> Stage:
        """Return the stage that a step belongs to."""
        return self.stages[self.index(step)]

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        if self.overall is not None:
            return global_lr(step, self.overall, steps_per_epoch=self.steps_per_epoch, parity=self.parity)
        index = self.index(step)
        stage = self.stages[index]
        return stage_lr(
            step - self.starts[index],
            init_lr=stage.init_lr,
            epochs_lr=stage.epochs_lr,
            steps_per_epoch=self.steps_per_epoch,
            parity=self.parity,
        )


def build_schedule(
    training: Training, *, steps_per_epoch: int, epochs: float, learning_rate: float, parity: bool = False
) -> StageSchedule:
    """Build the schedule of a config's stages.

    Parameters
    ----------
    training
        ``bootstrapNAS.training`` of the config.
    steps_per_epoch
        Optimiser steps of an epoch.
    epochs, learning_rate
        The command line's, for stages that leave theirs to it.
    parity
        As in `StageSchedule`.
    """
    stages = []
    for description in training.stages:
        duration = epochs if description.epochs == COMMAND_LINE else description.epochs
        fall, rate = description.epochs_lr, description.init_lr
        stages.append(
            Stage(
                train_dims=description.train_dims,
                epochs=duration,
                depth_indicator=description.depth_indicator,
                width_indicator=description.width_indicator,
                reorg_weights=description.reorg_weights,
                init_lr=learning_rate if rate is None or rate == COMMAND_LINE else rate,
                epochs_lr=duration if fall is None else epochs if fall == COMMAND_LINE else fall,
                sample_rate=description.sample_rate,
                reorg_interval=description.reorg_interval,
            )
        )
    return StageSchedule(tuple(stages), steps_per_epoch, _overall(training.lr_schedule.params, stages), parity)


def _overall(params: LRParams, stages: Sequence[Stage]) -> GlobalLR | None:
    if params.base_lr is None:
        return None
    epochs = sum(stage.epochs for stage in stages) if params.num_epochs is None else params.num_epochs
    return GlobalLR(params.base_lr, epochs, params.warmup_epochs, params.warmup_lr)
