"""Reorder the model by importance and train it as an elastic supernet, with the sandwich rule and distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from bootstrapnas.artefacts import write_json
from bootstrapnas.blueprint import Blueprint
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
    fit_length,
    load_student,
    load_tokenizer,
    save_artefact,
)
from bootstrapnas.pipeline.sampled import save_sampled
from bootstrapnas.pipeline.stages import (
    begin,
    finish,
    report_config,
    resume_point,
    settle_best,
    tell_metrics,
)
from bootstrapnas.pipeline.supernet_training import (
    build_trainer,
    check_search,
    measure_extremes,
    settle_sampling,
    settle_schedule,
)
from bootstrapnas.pipeline.teacher import settle_distillation, supernet_lesson
from bootstrapnas.progress import notice, warn
from bootstrapnas.schedule import StageSchedule
from bootstrapnas.supernet import Supernet
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
    check_search(config, spec)
    measured = [f"{spec.metric}_{name}" for name in ("min", "max")]
    settle_best(training, typed, measured, () if spec.maximise else measured)
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
        model = load_student(model_args, spec, training, rows.tokenizer)
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
            supernet.reorder(orders(order_scores(supernet.blueprint, scores, rule, also=space.model_wide)))
        lesson = supernet_lesson(rows, config, kd, typed, training, model)
        schedule = settle_schedule(config, training, typed, len(lesson.rows), parity=arguments.nncf_lr_lag)
        trainer = build_trainer(
            supernet,
            config,
            schedule,
            settle_sampling(config, typed, "sandwich"),
            training,
            rows,
            lesson,
            orders=orders_while_training(supernet, config, schedule, ordered=importance_path is not None),
        )
        trainer.train(resume_from_checkpoint=resume_point(stage))
        metrics = measure_extremes(supernet, rows)
        tell_metrics(stage, metrics)
        save_artefact(stage.directory, model, tokenizer, spec)
        write_json(stage.directory / SPACE_FILE, config.raw)
        save_sampled(stage.directory, supernet.space, trainer.drawn())
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
    blueprint, name, also = supernet.blueprint, width.filter_importance, supernet.space.model_wide
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
        return lambda step: filter_orders(supernet.model, blueprint, name, also) if step in steps else {}
    found = orders(order_scores(blueprint, load_external(external, blueprint), "rows", also=also))
    if len(steps) > 1:
        warn(once)
    return lambda step: found if step == steps[0] else {}


def search(directory: Path) -> None:
    """Search the supernet just trained, with the config's settings."""

    execute("eftnas", COMMANDS, "search", ["--supernet_dir", str(directory), "--output_dir", str(directory / "search")])
