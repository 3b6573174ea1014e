"""What all pipelines that train a supernet have in common: its trainer, its schedule, its two extreme subnets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config import NNCFConfig, build_space
from bootstrapnas.nncf_config.schema import COMMAND_LINE
from bootstrapnas.pipeline.arguments import StageTrainingArguments
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import check_evaluations, evaluate_model
from bootstrapnas.pipeline.search.objectives import metric_of
from bootstrapnas.pipeline.search.settings import configured_search
from bootstrapnas.pipeline.stages import preferred, steps_of_epoch
from bootstrapnas.pipeline.teacher import Lesson
from bootstrapnas.progress import warn
from bootstrapnas.sampling import Sampling, distinct, sampling_of, step_random, with_largest
from bootstrapnas.schedule import StageSchedule, build_schedule
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec
from bootstrapnas.training import StageTrainer


def check_search(config: NNCFConfig, spec: TaskSpec) -> None:
    """Raise `UserError` if the search that a config asks for would be refused once the supernet is trained."""
    configured_search(config)
    metric_of(config, spec, {})


def settle_schedule(
    config: NNCFConfig, training: StageTrainingArguments, typed: Mapping[str, Any], rows: int, *, parity: bool = False
) -> StageSchedule:
    """Return the schedule of the config's stages over `rows` rows an epoch; `training` gets its steps and its rate."""
    schedule = schedule_of(config, training, typed, steps_of_epoch(rows, training), parity)
    training.max_steps = schedule.total_steps
    training.learning_rate = max(stage.init_lr for stage in schedule.stages)
    return schedule


def settle_sampling(config: NNCFConfig, typed: Mapping[str, Any], default: str) -> Sampling:
    """Return the way of sampling that the flags or the config name."""
    sandwich = config.training.sandwich_rule
    in_config = None if sandwich is None else ("sandwich" if sandwich else "random")
    return sampling_of(preferred(typed, "sampling", default, "bootstrapNAS.training.sandwich_rule", in_config))


def build_trainer(
    supernet: Supernet,
    config: NNCFConfig,
    schedule: StageSchedule,
    sample: Sampling,
    training: StageTrainingArguments,
    rows: Rows,
    lesson: Lesson,
    *,
    orders: Callable[[int], Mapping[Key, Tensor]] | None = None,
    trained_only: bool = False,
    draws_per_batch: bool = False,
) -> StageTrainer:
    """Return the trainer of all stages of a schedule; what has a default is `StageTrainer`'s."""
    if lesson.in_place:
        sample = with_largest(sample)
    # What is elastic once each stage has begun, within its indicators.
    spaces = [build_space(config, supernet.blueprint, stage=index) for index in range(len(schedule.stages))]

    def subnets(step: int, draw: int) -> dict[str, Mapping[Key, int]]:
        space = spaces[schedule.index(step)]
        genomes = distinct(sample(space, step_random(training.seed, schedule.draw(step), draw)))
        return {name: space.subnet(genome) for name, genome in genomes.items()}

    length = rows.spec.max_seq_length
    full = count_macs(supernet.blueprint, length=length)

    def describe(subnet: Mapping[Key, int]) -> str:
        return f"{count_macs(supernet.blueprint, subnet, length=length) / full:.0%} of the MACs"

    check_evaluations(rows, training)
    validation = None if rows.data.validation is None else rows.batches("validation", tail=True)
    return StageTrainer(
        model=supernet.model,
        args=training,
        train_dataset=lesson.rows,
        data_collator=rows.collator,
        title="supernet",
        describe=describe,
        supernet=supernet,
        subnets=subnets,
        draws_per_batch=draws_per_batch,
        distillation=lesson.distillation,
        teacher=lesson.teacher,
        in_place=lesson.in_place,
        orders=orders,
        trained_only=trained_only,
        learning_rate=schedule.lr,
        eval_dataset=lesson.rows,
        measure=lambda: measure_extremes(supernet, rows, validation),
    )


def schedule_of(
    config: NNCFConfig, training: StageTrainingArguments, typed: Mapping[str, Any], steps_per_epoch: int, parity: bool
) -> StageSchedule:
    """Return the config's schedule; a learning rate or a number of epochs that was typed wins, with a warning."""
    schedule = build_schedule(
        config.training,
        steps_per_epoch=steps_per_epoch,
        epochs=training.num_train_epochs,
        learning_rate=training.learning_rate,
        parity=parity,
    )
    for name in ("warmup_steps", "lr_scheduler_type", "max_steps"):
        if name in typed:
            warn(f"--{name} has no effect: learning rate and duration follow the schedule of {config.path}")
    where = "bootstrapNAS.training.schedule.list_stage_descriptions"
    epochs, rate = typed.get("num_train_epochs"), typed.get("learning_rate")
    stages, overall = list(schedule.stages), schedule.overall
    left = any(description.epochs == COMMAND_LINE for description in config.training.stages)
    if epochs is not None and not left and sum(stage.epochs for stage in stages) != epochs:
        if len(stages) > 1:
            raise UserError(
                f"--num_train_epochs {epochs:g} contradicts the {len(stages)} stages of {config.path}, which take "
                f"{sum(stage.epochs for stage in stages):g} epochs together; change {where}"
            )
        if overall is not None:
            if config.training.lr_schedule.params.num_epochs not in (None, epochs):
                raise UserError(
                    f"--num_train_epochs {epochs:g} contradicts lr_schedule.params.num_epochs = "
                    f"{overall.num_epochs:g} of {config.path}"
                )
            overall = replace(overall, num_epochs=epochs)
        warn(f"--num_train_epochs {epochs:g} wins over the config's {where}[0].epochs = {stages[0].epochs:g}")
        stages[0] = replace(stages[0], epochs=epochs, epochs_lr=epochs)
    if rate is not None:
        if overall is not None:
            raise UserError(f"--learning_rate {rate:g} contradicts lr_schedule.params.base_lr of {config.path}")
        for index, stage in enumerate(stages):
            if stage.init_lr != rate:
                warn(f"--learning_rate {rate:g} wins over the config's {where}[{index}].init_lr = {stage.init_lr:g}")
        stages = [replace(stage, init_lr=rate) for stage in stages]
    return replace(schedule, stages=tuple(stages), overall=overall)


def measure_extremes(supernet: Supernet, rows: Rows, prepared: Any = None) -> dict[str, float]:
    """Return the selecting metric of the largest and the smallest subnet on the validation rows; none without any."""
    if rows.data.validation is None:
        return {}
    prepared = prepared or rows.batches("validation", tail=True)
    metric, found = rows.spec.metric, {}
    for name, genome in (("max", supernet.space.max_genome), ("min", supernet.space.min_genome)):
        with supernet.activate(supernet.space.subnet(genome)):
            found[f"{metric}_{name}"] = evaluate_model(supernet.model, rows, "validation", prepared)[metric]
    return found
