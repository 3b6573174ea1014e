"""Fine-tune a pre-trained or extracted model on a task; makes teachers and finishes subnets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstrapnas.artefacts import Stage, read_json, write_json
from bootstrapnas.extraction import SUBNET_FILE
from bootstrapnas.pipeline.arguments import (
    DistillationArguments,
    ModelArguments,
    StageTrainingArguments,
    TaskArguments,
)
from bootstrapnas.pipeline.card import write_first_card
from bootstrapnas.pipeline.data import Rows, data_inputs, resolve_task, task_settings, with_fixed_data
from bootstrapnas.pipeline.models import (
    check_evaluations,
    evaluate_model,
    fit_length,
    load_student,
    save_artefact,
    student_tokenizer,
    validate,
)
from bootstrapnas.pipeline.stages import begin, finish, resume_point, settle_best, tell_metrics
from bootstrapnas.pipeline.teacher import prepare_lesson
from bootstrapnas.training import StageTrainer

GROUPS = (ModelArguments, TaskArguments, DistillationArguments, StageTrainingArguments)


def run(
    model_args: ModelArguments,
    task_args: TaskArguments,
    kd: DistillationArguments,
    training: StageTrainingArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Fine-tune; return the output directory."""
    source = model_args.model_name_or_path
    spec = fit_length(resolve_task(task_args, source), typed, source)
    settle_best(training, typed, list(dict.fromkeys((spec.metric, *spec.metrics))), spec.kind.less_is_better)
    stage = begin(
        "finetune",
        str(training.output_dir),
        typed,
        {"model": source, "teacher": kd.kd_teacher_model, **data_inputs(spec)},
        overwrite=training.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return stage.directory
    spec = with_fixed_data(spec, stage.directory)
    tokenizer = student_tokenizer(model_args, spec)
    rows = Rows(spec, tokenizer, training.per_device_eval_batch_size)
    model = load_student(model_args, spec, training, tokenizer)
    check_evaluations(rows, training)
    lesson = prepare_lesson(rows, rows.split("train"), kd, training, model)
    trainer = StageTrainer(
        model=model,
        args=training,
        train_dataset=lesson.rows,
        data_collator=rows.collator,
        title="fine-tuning",
        distillation=lesson.distillation,
        teacher=lesson.teacher,
        eval_dataset=lesson.rows,
        measure=lambda: evaluate_model(model, rows, "validation"),
    )
    trainer.train(resume_from_checkpoint=resume_point(stage))
    metrics = validate(model, rows)
    tell_metrics(stage, metrics)
    save_artefact(stage.directory, model, tokenizer, spec)
    if (Path(source) / SUBNET_FILE).is_file():
        keep_subnet(Path(source), stage)
        measured = {name: value for name, value in metrics.items() if name == spec.metric}
        write_first_card(stage.directory, measured, "The metric is that of the validation split, after fine-tuning.")
    finish(stage, metrics)
    return stage.directory


def keep_subnet(source: Path, stage: Stage) -> None:
    """Take over what is known of an extracted subnet, its sizes and costs, and say that it was fine-tuned."""
    tuned = {name: stage.inputs.get(name) for name in ("model", "adapter", "teacher")}
    write_json(stage.directory / SUBNET_FILE, {**read_json(source / SUBNET_FILE), "finetuned": tuned})
