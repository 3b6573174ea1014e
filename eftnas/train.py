"""Reorder the model by importance and train it as an elastic supernet, with the sandwich rule and distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from bootstrapnas.artefacts import write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.importance import (
    EXTERNAL,
    IMPORTANCE_FILE,
    RULES,
    default_rule,
    filter_orders,
    load_external,
    load_importance,
    order_scores,
    orders,
)
from bootstrapnas.nncf_config import NNCFConfig, build_space, check_model, read_config
from bootstrapnas.nncf_config.schema import COMMAND_LINE
from bootstrapnas.pipeline.arguments import (
    DistillationArguments,
    ModelArguments,
    StageTrainingArguments,
    TaskArguments,
    flag,
    required,
)
from bootstrapnas.pipeline.cli import execute
from bootstrapnas.pipeline.data import Rows, data_inputs, resolve_task, task_settings, with_fixed_data
from bootstrapnas.pipeline.models import (
    SPACE_FILE,
    evaluate_model,
    fit_length,
    load_student,
    load_tokenizer,
    save_artefact,
)
from bootstrapnas.pipeline.stages import (
    begin,
    finish,
    preferred,
    report_config,
    resume_point,
    settle_best,
    steps_of_epoch,
)
from bootstrapnas.pipeline.teacher import OWN_TEACHER, Lesson, own_lesson, prepare_lesson, settle_distillation
from bootstrapnas.progress import notice, warn
from bootstrapnas.sampling import sampling_of, step_random
from bootstrapnas.schedule import StageSchedule, build_schedule
from bootstrapnas.supernet import Supernet
from bootstrapnas.training import StageTrainer
from eftnas.commands import COMMANDS

# ruff: noqa: UP045


@dataclass
class SupernetArguments:
    """The supernet and how it is trained."""

    _argument_group_name = "supernet"

    nncf_config: str = required("NNCF config with the search space.")
    importance_weight_dir: Optional[str] = flag(None, "Output of eftnas importance; puts important units first.")
    reorg_cache_model: Optional[str] = flag(None, "The same by its published name.")
    importance_rule: Optional[str] = flag(
        None, f"From weights to units: {', '.join(RULES)}; default: the criterion's (see docs/importance.md)."
    )
    sampling: Optional[str] = flag(None, "Subnets of a step: sandwich (max, random, min; the default) or random.")
    nncf_lr_lag: bool = flag(False, "NNCF's learning rates to the step: they lag one step behind per finished epoch.")
    do_search: bool = flag(False, "Go on to eftnas search, into <output_dir>/search.")


GROUPS = (ModelArguments, SupernetArguments, TaskArguments, DistillationArguments, StageTrainingArguments)


def run(
    model_args: ModelArguments,
    arguments: SupernetArguments,
    task_args: TaskArguments,
    kd: DistillationArguments,
    training: StageTrainingArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Train the supernet; return the output directory."""
    source = model_args.model_name_or_path
    config = read_config(arguments.nncf_config)
    report_config(config)
    settle_distillation(kd, typed, config.document)
    importance_path = importance_file(arguments)
    origins = (source, kd.kd_teacher_model, str(importance_path.parent) if importance_path else None)
    spec = fit_length(resolve_task(task_args, *origins), typed, source)
    settle_best(training, typed, [f"{spec.metric}_{name}" for name in ("min", "max")])
    stage = begin(
        "train",
        str(training.output_dir),
        typed,
        {
            "model": source,
            "teacher": kd.kd_teacher_model,
            "importance": str(importance_path) if importance_path else None,
            "external_importance": external_file(config) if importance_path is None else None,
            "nncf_config": arguments.nncf_config,
            **data_inputs(spec),
        },
        overwrite=training.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if not stage.finished:
        spec = with_fixed_data(spec, stage.directory)
        tokenizer = load_tokenizer(model_args.tokenizer_name or source)
        rows = Rows(spec, tokenizer, training.per_device_eval_batch_size)
        model = load_student(model_args, spec, training)
        check_model(config, model.config, source)
        space = build_space(config, Blueprint.of(model))
        if space.num_subnets == 1:
            raise UserError(
                f"{config.path}: its search space holds one subnet only, so there is nothing to train or to search; it "
                "needs a group with several widths, or a block that may be skipped"
            )
        supernet = Supernet(model, space)
        if importance_path is not None:
            scores, metadata = load_importance(importance_path, supernet.blueprint)
            rule = arguments.importance_rule or default_rule(metadata["criterion"])
            supernet.reorder(orders(order_scores(supernet.blueprint, scores, rule)))
        train, compression = rows.split("train"), config.training.compression
        if compression and kd.kd_teacher_model is None:
            lesson = own_lesson(rows, train, compression[0], kd, typed, training, model)
        else:
            lesson = prepare_lesson(rows, train, kd, training, model)
            if compression:
                warn(f"{config.path}: {OWN_TEACHER} has no effect: the teacher is {kd.kd_teacher_model}")
        trainer = build_trainer(
            supernet, config, arguments, training, rows, lesson, typed, ordered=importance_path is not None
        )
        trainer.train(resume_from_checkpoint=resume_point(stage))
        metrics = measure_extremes(supernet, rows)
        notice(f"train: {', '.join(f'{name} {value:.4f}' for name, value in metrics.items())}")
        save_artefact(stage.directory, model, tokenizer, spec)
        write_json(stage.directory / SPACE_FILE, config.raw)
        finish(stage, metrics)
    if arguments.do_search:
        search(stage.directory)
    return stage.directory


def importance_file(arguments: SupernetArguments) -> Path | None:
    """Return the file of scores that the flags name."""
    if arguments.importance_weight_dir is not None and arguments.reorg_cache_model is not None:
        raise UserError("--importance_weight_dir and --reorg_cache_model are one flag; pass either")
    given = arguments.importance_weight_dir or arguments.reorg_cache_model
    if given is None:
        return None
    path = Path(given)
    return path / IMPORTANCE_FILE if path.is_dir() else path


def external_file(config: NNCFConfig) -> str | None:
    """Return the file of scores that the config's filter importance names."""
    width = config.training.elasticity.width
    return width.external_importance_path if width.filter_importance == EXTERNAL else None


def orders_while_training(
    supernet: Supernet, config: NNCFConfig, schedule: StageSchedule, *, ordered: bool
) -> Callable[[int], Mapping[Key, Tensor]]:
    """Return what puts units in order before a step, as the config's stages and its filter importance say.

    Scores that were given, or come from a file, belong to the units as they were: they order them once. `ordered` says
    that they have.
    """
    width, steps = config.training.elasticity.width, schedule.reorder_steps
    blueprint, name = supernet.blueprint, width.filter_importance
    key = "bootstrapNAS.training.elasticity.width.filter_importance"
    once = f"{config.path}: reorg_weights and reorg_interval order the units once: scores do not change in training"
    if ordered or not steps:
        if not ordered:
            warn("no --importance_weight_dir: units keep the order of the checkpoint")
        if config.names(key):
            reason = "--importance_weight_dir orders the units" if ordered else "no stage says reorg_weights"
            warn(f"{config.path}: {key} has no effect: {reason}")
        if ordered and any(steps):
            warn(once)
        return lambda step: {}
    external = external_file(config)
    if external is None:
        notice(f"train: filter_importance {name} orders the units before the steps {', '.join(map(str, steps))}")
        return lambda step: filter_orders(supernet.model, blueprint, name) if step in steps else {}
    found = orders(order_scores(blueprint, load_external(external, blueprint), "rows"))
    if len(steps) > 1:
        warn(once)
    return lambda step: found if step == steps[0] else {}


def build_trainer(
    supernet: Supernet,
    config: NNCFConfig,
    arguments: SupernetArguments,
    training: StageTrainingArguments,
    rows: Rows,
    lesson: Lesson,
    typed: Mapping[str, Any],
    *,
    ordered: bool,
) -> StageTrainer:
    """Return the trainer of all stages of the config's schedule; `ordered` says that units are in order already."""
    schedule = schedule_of(config, training, typed, steps_of_epoch(len(lesson.rows), training), arguments.nncf_lr_lag)
    training.max_steps = schedule.total_steps
    training.learning_rate = max(stage.init_lr for stage in schedule.stages)
    # What is elastic once each stage has begun, within its indicators.
    spaces = [build_space(config, supernet.blueprint, stage=index) for index in range(len(schedule.stages))]
    sandwich = config.training.sandwich_rule
    in_config = None if sandwich is None else ("sandwich" if sandwich else "random")
    sample = sampling_of(preferred(typed, "sampling", "sandwich", "bootstrapNAS.training.sandwich_rule", in_config))

    def subnets(step: int) -> dict[str, Mapping[Key, int]]:
        space = spaces[schedule.index(step)]
        genomes = sample(space, step_random(training.seed, schedule.draw(step)))
        return {name: space.subnet(genome) for name, genome in genomes.items()}

    length = rows.spec.max_seq_length
    full = count_macs(supernet.blueprint, length=length)

    def describe(subnet: Mapping[Key, int]) -> str:
        return f"{count_macs(supernet.blueprint, subnet, length=length) / full:.0%} of the MACs"

    validation = rows.batches("validation")
    return StageTrainer(
        model=supernet.model,
        args=training,
        train_dataset=lesson.rows,
        data_collator=rows.collator,
        title="supernet",
        describe=describe,
        supernet=supernet,
        subnets=subnets,
        distillation=lesson.distillation,
        teacher=lesson.teacher,
        orders=orders_while_training(supernet, config, schedule, ordered=ordered),
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
    for name in ("warmup_steps", "warmup_ratio", "lr_scheduler_type", "max_steps"):
        if name in typed:
            warn(f"--{name} has no effect: learning rate and duration follow the schedule of {config.path}")
    where = "bootstrapNAS.training.schedule.list_stage_descriptions"
    epochs, rate = typed.get("num_train_epochs"), typed.get("learning_rate")
    stages = list(schedule.stages)
    left = any(description.epochs == COMMAND_LINE for description in config.training.stages)
    if epochs is not None and not left and sum(stage.epochs for stage in stages) != epochs:
        if len(stages) > 1:
            raise UserError(
                f"--num_train_epochs {epochs:g} contradicts the {len(stages)} stages of {config.path}, which take "
                f"{sum(stage.epochs for stage in stages):g} epochs together; change {where}"
            )
        warn(f"--num_train_epochs {epochs:g} wins over the config's {where}[0].epochs = {stages[0].epochs:g}")
        stages[0] = replace(stages[0], epochs=epochs, epochs_lr=epochs)
    if rate is not None:
        if schedule.overall is not None:
            raise UserError(f"--learning_rate {rate:g} contradicts lr_schedule.params.base_lr of {config.path}")
        for index, stage in enumerate(stages):
            if stage.init_lr != rate:
                warn(f"--learning_rate {rate:g} wins over the config's {where}[{index}].init_lr = {stage.init_lr:g}")
        stages = [replace(stage, init_lr=rate) for stage in stages]
    return replace(schedule, stages=tuple(stages))


def measure_extremes(supernet: Supernet, rows: Rows, prepared: Any = None) -> dict[str, float]:
    """Return the selecting metric of the largest and the smallest subnet on the validation rows."""
    prepared = prepared or rows.batches("validation")
    metric, found = rows.spec.metric, {}
    for name, genome in (("max", supernet.space.max_genome), ("min", supernet.space.min_genome)):
        with supernet.activate(supernet.space.subnet(genome)):
            found[f"{metric}_{name}"] = evaluate_model(supernet.model, rows, "validation", prepared)[metric]
    return found


def search(directory: Path) -> None:
    """Search the supernet just trained, with the config's settings."""

    execute("eftnas", COMMANDS, "search", ["--supernet_dir", str(directory), "--output_dir", str(directory / "search")])
