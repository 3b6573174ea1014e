"""Scores of all weights, for widths and order: by movement-sparsity training, by a criterion, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

from transformers import PreTrainedModel

from bootstrapnas.artefacts import Stage
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.importance import (
    CRITERIA,
    EXTERNAL,
    IMPORTANCE_FILE,
    WITHOUT_DATA,
    MovementSettings,
    Scores,
    Structure,
    assign_structures,
    attach,
    build_structure,
    find_criterion,
    load_external,
    resolve,
    save_importance,
    write_structured_sparsity,
)
from bootstrapnas.nncf_config import NNCFConfig, NodeNames, check_config, read_config, scope_matcher
from bootstrapnas.pipeline.arguments import (
    DistillationArguments,
    ModelArguments,
    StageTrainingArguments,
    TaskArguments,
    flag,
)
from bootstrapnas.pipeline.calibration import calibration_batches
from bootstrapnas.pipeline.data import Rows, data_inputs, has_task, resolve_task, task_settings, with_fixed_data
from bootstrapnas.pipeline.models import (
    check_evaluations,
    evaluate_model,
    fit_length,
    load_as_saved,
    load_student,
    load_tokenizer,
)
from bootstrapnas.pipeline.stages import begin, finish, preferred, report_config, resume_point, steps_of_epoch
from bootstrapnas.pipeline.teacher import prepare_lesson, settle_distillation
from bootstrapnas.progress import notice, warn
from bootstrapnas.tasks import TASK_FILE, TaskSpec
from bootstrapnas.training import StageTrainer
from eftnas.default_config import default_movement_config

# ruff: noqa: UP045

MOVEMENT = "movement"
STOCK_QUANTILE_CAP = 0.98


@dataclass
class ImportanceArguments:
    """What scores the weights."""

    _argument_group_name = "importance"

    nncf_config: Optional[str] = flag(
        None,
        "NNCF config with a movement_sparsity section. Default for movement: EFTNAS's granularity for the model's "
        "groups, and a warm-up over the last two thirds of --num_train_epochs.",
    )
    criterion: str = flag(MOVEMENT, f"movement (trains); external (a file); or, without training: {listed(CRITERIA)}.")
    external_importance_path: Optional[str] = flag(
        None, "Scores for the criterion external, by parameter or NNCF node: safetensors, or a file of torch.save."
    )
    criterion_batches: int = flag(16, "Batches that a criterion without training sees.")
    score_learning_rate: Optional[float] = flag(None, "Learning rate of the scores; default: that of the weights.")
    nncf_quantile_cap: bool = flag(False, "Stock NNCF's rule: never mask a tensor beyond its 98th percentile.")


OF_TRAINING = ("kd_teacher_model", "learning_rate", "num_train_epochs", "score_learning_rate")
"""Flags without effect where the criterion needs no training."""

OF_TASK = {"from_scratch", *(field.name for field in fields(TaskArguments))}
"""Flags that say nothing of a model as it is saved."""

GROUPS = (ModelArguments, ImportanceArguments, TaskArguments, DistillationArguments, StageTrainingArguments)


def run(
    model_args: ModelArguments,
    importance: ImportanceArguments,
    task_args: TaskArguments,
    kd: DistillationArguments,
    training: StageTrainingArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Score the weights; return the output directory."""
    source = model_args.model_name_or_path
    check_criterion(importance)
    config = check_config({}) if importance.nncf_config is None else read_config(importance.nncf_config)
    report_config(config)
    if importance.criterion == MOVEMENT:
        settle_distillation(kd, typed, config.document)
    else:
        for name in OF_TRAINING:
            if name in typed:
                warn(f"--{name} has no effect: the criterion {importance.criterion} trains nothing")
    spec: TaskSpec | None = None
    places = (source, kd.kd_teacher_model)
    named = not OF_TASK.isdisjoint(typed) or any(has_task(task_args, place) for place in filter(None, places))
    if named or importance.criterion not in (EXTERNAL, *WITHOUT_DATA):
        spec = fit_length(resolve_task(task_args, *places), typed, source)
    if training.load_best_model_at_end or training.save_strategy == "best":
        raise UserError("importance has no best epoch: masks are resolved at the end of the warm-up")
    stage = begin(
        "importance",
        str(training.output_dir),
        typed,
        {
            "model": source,
            "teacher": kd.kd_teacher_model,
            "nncf_config": importance.nncf_config,
            "external_importance": importance.external_importance_path,
            **(data_inputs(spec) if spec else {}),
        },
        overwrite=training.overwrite_output_dir,
        settings=task_settings(spec) if spec else None,
    )
    if stage.finished:
        return stage.directory
    rows: Rows | None = None
    if spec is None:
        model = load_as_saved(source)
        notice(f"importance: no task is named: the weights of {type(model).__name__}, as it is saved, are scored")
    else:
        spec = with_fixed_data(spec, stage.directory)
        rows = Rows(spec, load_tokenizer(model_args.tokenizer_name or source), training.per_device_eval_batch_size)
        model = load_student(model_args, spec, training, rows.tokenizer)
    if importance.external_importance_path is not None:
        scores: Scores = load_external(importance.external_importance_path, Blueprint.of(model))
    elif importance.criterion == MOVEMENT:
        assert rows is not None, "only criteria without data go without a task"
        if importance.nncf_config is None:
            names, epochs = NodeNames.of(model), training.num_train_epochs
            section = default_movement_config(Blueprint.of(model), names.linears, epochs)
            config = check_config(section, f"default for {epochs:g} epochs")
        scores = train_scores(model, config, importance, kd, training, rows, stage, typed)
    else:
        scores = one_shot_scores(model, importance, training, rows)
    details = {"model": source, "seed": training.seed}
    save_importance(stage.directory / IMPORTANCE_FILE, scores, Blueprint.of(model), importance.criterion, details)
    if spec is not None:
        spec.save(stage.directory / TASK_FILE)
    finish(stage, {}, criterion=importance.criterion)
    return stage.directory


def check_criterion(importance: ImportanceArguments) -> None:
    """Raise `UserError` if the criterion is unknown, or a file is given without it or the other way round."""
    known, given = [MOVEMENT, EXTERNAL, *CRITERIA], importance.criterion
    if given not in known:
        raise UserError(f"unknown --criterion {given!r} (known: {listed(known)}){near_miss(given, known)}")
    if given == EXTERNAL and importance.external_importance_path is None:
        raise UserError("--criterion external needs --external_importance_path")
    if given != EXTERNAL and importance.external_importance_path is not None:
        raise UserError(f"--external_importance_path belongs to --criterion external, not to {given}")


def one_shot_scores(
    model: PreTrainedModel, importance: ImportanceArguments, training: StageTrainingArguments, rows: Rows | None
) -> Scores:
    """Return the scores of a criterion that needs no training, from some training rows if it needs any."""
    inputs = [] if rows is None else calibration_batches(rows, importance.criterion_batches, training)
    criterion = find_criterion(importance.criterion)
    model.to(training.device)
    return criterion(model, Blueprint.of(model), inputs, lambda scored, batch: scored(**batch).loss)


def train_scores(
    model: PreTrainedModel,
    config: NNCFConfig,
    importance: ImportanceArguments,
    kd: DistillationArguments,
    training: StageTrainingArguments,
    rows: Rows,
    stage: Stage,
    typed: Mapping[str, Any],
) -> Scores:
    """Return the scores of movement sparsity; training ends with the warm-up, when masks are resolved."""
    blueprint, names = Blueprint.of(model), NodeNames.of(model)
    check_evaluations(rows, training, at_end=False)
    lesson = prepare_lesson(rows, rows.split("train"), kd, training, model)
    settings = movement_settings(config, importance.nncf_quantile_cap)
    training.num_train_epochs = preferred(
        typed,
        "num_train_epochs",
        settings.warmup_end_epoch,
        "movement_sparsity_total_epochs",
        config.document.movement_sparsity_total_epochs,
    )
    if training.num_train_epochs < settings.warmup_end_epoch:
        raise UserError(
            f"training ends after epoch {training.num_train_epochs:g}, before the warm-up does "
            f"(warmup_end_epoch {settings.warmup_end_epoch:g}); raise --num_train_epochs"
        )
    if "max_steps" in typed:
        warn(f"--max_steps has no effect: training ends with the warm-up of {config.path}")
        training.max_steps = -1
    steps_per_epoch = steps_of_epoch(len(lesson.rows), training)
    movement = attach(model, structures_of(config, names), settings, steps_per_epoch)
    if movement.first_step == 0 and settings.init_importance_threshold is None:
        raise UserError(
            f"{config.path}: compression.params.warmup_start_epoch {settings.warmup_start_epoch:g} begins the warm-up "
            f"at step 0 ({steps_per_epoch} a whole epoch) with untrained scores, all 0, which would mask every weight; "
            "begin later or set init_importance_threshold"
        )
    trainer = StageTrainer(
        model=model,
        args=training,
        train_dataset=lesson.rows,
        data_collator=rows.collator,
        title="importance",
        distillation=lesson.distillation,
        teacher=lesson.teacher,
        penalty=movement.loss,
        before_step=movement.step,
        score_learning_rate=importance.score_learning_rate,
        stop_after=movement.end_step,
        eval_dataset=lesson.rows,
        measure=lambda: evaluate_model(model, rows, "validation"),
    )
    if training.num_train_epochs > settings.warmup_end_epoch:
        notice(
            f"importance: training ends with the warm-up, after epoch {settings.warmup_end_epoch:g}; the "
            f"{training.num_train_epochs:g} epochs shape the learning rate"
        )
    trainer.train(resume_from_checkpoint=resume_point(stage))
    movement.step(movement.end_step)
    scores, threshold = movement.scores(), movement.threshold
    # By the masks in force rather than the threshold, which stock NNCF caps per tensor.
    units = resolve(blueprint, {name: mask.float() for name, mask in movement.masks().items()}, 0.0)
    movement.detach()
    path = stage.directory / "structured_sparsity.csv"
    write_structured_sparsity(path, blueprint, units, lambda module: names.linears[module])
    kept = sum(int(mask.sum()) for mask in units.values()) / sum(mask.numel() for mask in units.values())
    notice(f"importance: {kept:.1%} of all units above the final threshold {threshold:g}")
    return scores


def movement_settings(config: NNCFConfig, stock_cap: bool) -> MovementSettings:
    """Return the schedule of the config's movement_sparsity section."""
    section = config.movement
    return MovementSettings(
        **section.params.model_dump(exclude={"steps_per_epoch"}),
        threshold_quantile_cap=STOCK_QUANTILE_CAP if stock_cap else 1.0,
        compression_lr_multiplier=section.compression_lr_multiplier,
    )


def structures_of(config: NNCFConfig, names: NodeNames) -> dict[str, Structure]:
    """Return module path -> granularity of its scores, by the scopes of the config's movement_sparsity section."""
    section = config.movement
    rules = [
        (scope_matcher(entry.target_scopes), build_structure(entry.mode, entry.sparse_factors, entry.axis))
        for entry in section.sparse_structure_by_scopes
    ]
    ignored = scope_matcher(section.ignored_scopes)
    targeted = scope_matcher(section.target_scopes) if section.target_scopes is not None else None
    return assign_structures(
        names.linears, rules, lambda node: ignored(node) or (targeted is not None and not targeted(node))
    )
