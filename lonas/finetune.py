"""Train the adapter of an extracted subnet on: an ordinary LoRA of a smaller frozen base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from bootstrapnas.artefacts import read_json, read_stage
from bootstrapnas.errors import UserError
from bootstrapnas.extraction import SUBNET_FILE
from bootstrapnas.integers import to_integers
from bootstrapnas.pipeline.adapters import ADAPTER_CONFIG, layer_linears, load_lora, write_adapter
from bootstrapnas.pipeline.arguments import (
    DistillationArguments,
    ModelArguments,
    StageTrainingArguments,
    TaskArguments,
    flag,
    required,
)
from bootstrapnas.pipeline.data import Rows, data_inputs, resolve_task, task_settings, with_fixed_data
from bootstrapnas.pipeline.finetune import keep_subnet
from bootstrapnas.pipeline.models import (
    cast_parameters,
    fit_length,
    load_student,
    load_tokenizer,
    save_tokenizer,
    validate,
)
from bootstrapnas.pipeline.stages import begin, finish, resume_point, settle_best, tell_metrics
from bootstrapnas.pipeline.supernets import DTYPES
from bootstrapnas.pipeline.teacher import prepare_lesson
from bootstrapnas.tasks import TASK_FILE
from lonas.extract import ADAPTER, APART, BASE
from lonas.train import build_lora_trainer, local_path

# ruff: noqa: UP045


@dataclass
class FinetuneArguments:
    """What is trained on."""

    _argument_group_name = "adapter"

    model_dir: str = required("Output of lonas extract without --merge: a base and its adapter.")
    lora_dropout: Optional[float] = flag(
        None, "Dropout probability of the adapter's inputs; default: that of its training."
    )
    dropout: Optional[float] = flag(None, "That of the base; default: the checkpoint's.")
    attn_implementation: Optional[str] = flag(None, "Attention while training: sdpa or eager; default: sdpa.")


GROUPS = (FinetuneArguments, TaskArguments, DistillationArguments, StageTrainingArguments)


def run(
    arguments: FinetuneArguments,
    task_args: TaskArguments,
    kd: DistillationArguments,
    training: StageTrainingArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Fine-tune; return the output directory."""
    base, adapter, subnet = parts_of(arguments.model_dir)
    spec = fit_length(resolve_task(task_args, str(base)), typed, str(base))
    settle_best(training, typed, list(dict.fromkeys((spec.metric, *spec.metrics))), spec.kind.less_is_better)
    stage = begin(
        "finetune",
        str(training.output_dir),
        typed,
        {"model": str(base), "adapter": str(adapter), "teacher": kd.kd_teacher_model, **data_inputs(spec)},
        overwrite=training.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return stage.directory
    spec = with_fixed_data(spec, stage.directory)
    tokenizer = load_tokenizer(str(base))
    rows = Rows(spec, tokenizer, training.per_device_eval_batch_size)
    dtype, integers = DTYPES[subnet["base_dtype"]], subnet["base_weight_format"]
    student = ModelArguments(str(base), dropout=arguments.dropout, attn_implementation=arguments.attn_implementation)
    model = load_student(student, spec, training, tokenizer, dtype if integers is None else None)
    config = load_lora(model, adapter, arguments.lora_dropout)
    if integers is not None:
        to_integers(model, layer_linears(model), integers)
        cast_parameters((p for p in model.parameters() if not p.requires_grad), dtype)
    trainer = build_lora_trainer(model, training, rows, prepare_lesson(rows, rows.split("train"), kd, training, model))
    trainer.train(resume_from_checkpoint=resume_point(stage))
    metrics = validate(model, rows)
    tell_metrics(stage, metrics)
    config.base_model_name_or_path = local_path(str(base))
    trained = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    write_adapter(stage.directory, config, {name: p.detach().clone() for name, p in trained.items()})
    save_tokenizer(stage.directory, tokenizer)
    spec.save(stage.directory / TASK_FILE)
    keep_subnet(Path(arguments.model_dir), stage)
    finish(stage, metrics)
    return stage.directory


def parts_of(model_dir: str) -> tuple[Path, Path, dict[str, Any]]:
    """Return the base and the adapter that `lonas extract` wrote, and what it says of them.

    Raises
    ------
    UserError
        If it wrote one model, or no adapter, or did not yet write what this needs to know.
    """
    read_stage(model_dir, "extract")
    directory = Path(model_dir)
    base, adapter = directory / BASE, directory / ADAPTER
    if not base.is_dir():
        raise UserError(
            f"{model_dir} is one model without an adapter: eftnas finetune trains all of its weights; "
            "lonas extract without --merge keeps base and adapter apart"
        )
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise UserError(f"{model_dir} has no {ADAPTER}/: no layer with an adapter is left in this subnet")
    subnet = read_json(directory / SUBNET_FILE)
    if not subnet.keys() >= set(APART):
        raise UserError(f"{model_dir} does not say what its base was trained in: extract it again with this version")
    return base, adapter, subnet
