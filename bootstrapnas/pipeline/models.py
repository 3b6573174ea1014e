"""Models, tokenizers, teachers and supernets of a stage, loaded for its task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

from bootstrapnas.artefacts import read_stage
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.distillation import Distillation, Teacher, label_order, terms_of
from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import evaluation_dtype, predict
from bootstrapnas.extraction import load_config, load_failure, load_model, save_subnet
from bootstrapnas.families import FAMILIES, family_of
from bootstrapnas.nncf_config import NNCFConfig, build_space, read_config
from bootstrapnas.nncf_config.schema import Document
from bootstrapnas.outputs import LABELS, TEACHER, Outputs
from bootstrapnas.pipeline.arguments import DistillationArguments, ModelArguments, StageTrainingArguments
from bootstrapnas.pipeline.data import Rows, check_finite
from bootstrapnas.pipeline.stages import preferred
from bootstrapnas.progress import notice, warn
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TASK_FILE, TaskSpec

if TYPE_CHECKING:
    from torch import nn

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

SPACE_FILE = "nncf_config.json"


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)


def has_tokenizer(directory_or_id: str) -> bool:
    """Return whether a directory has a tokenizer; a hub id is taken to have one."""
    directory = Path(directory_or_id)
    return not directory.is_dir() or any((directory / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(directory_or_id: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by hub id or directory."""
    if not has_tokenizer(directory_or_id):  # transformers would make one with an empty vocabulary
        raise UserError(f"{directory_or_id} has no tokenizer files; pass --tokenizer_name, or copy them there")
    try:
        return AutoTokenizer.from_pretrained(directory_or_id, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise load_failure("a tokenizer", directory_or_id, error) from error


def load_for_task(directory_or_id: str, spec: TaskSpec, seed: int = 42, **settings: Any) -> PreTrainedModel:
    """Load a model with the task's head; a head that the checkpoint lacks is initialised from `seed`.

    Returned in float32, whatever the checkpoint holds, its outputs in the order of the task's labels. `settings` are
    further changes to its config.
    """
    set_seed(seed)
    names = spec.output_names
    saved = load_config(directory_or_id)
    has_head = spec.head.is_in(saved.architectures)
    order = label_order(_labels(saved), names, whose=directory_or_id) if has_head else list(range(len(names)))
    check_length(saved, spec, directory_or_id)
    model = load_model(
        directory_or_id,
        spec.head.load_class(),
        num_labels=spec.num_labels,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type=spec.head.problem_type,
        **settings,
    )
    if order != sorted(order):
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}.") and len(parameter) == len(order):
                parameter.data = parameter.data[order]
    return model.float()


def fit_length(spec: TaskSpec, typed: Mapping[str, Any], model: str) -> TaskSpec:
    """Return the task with its default length cut to what the model takes; a length that was typed stays."""
    limit = _max_length(load_config(model))
    if "max_seq_length" in typed or spec.max_seq_length <= limit:
        return spec
    notice(f"texts are cut to {int(limit)} tokens, which is what {model} takes")
    return replace(spec, max_seq_length=int(limit))


def check_length(config: PreTrainedConfig, spec: TaskSpec, whose: str) -> None:
    """Raise `UserError` if rows may be longer than the model has positions for. Unknown families pass."""
    limit = _max_length(config)
    if spec.max_seq_length > limit:
        raise UserError(f"--max_seq_length {spec.max_seq_length} exceeds the {int(limit)} tokens that {whose} takes")


def _max_length(config: PreTrainedConfig) -> float:
    family = FAMILIES.get(config.model_type)
    return math.inf if family is None or family.max_length is None else family.max_length(config)


def _labels(config: PreTrainedConfig) -> list[str]:
    return [config.id2label[index] for index in range(config.num_labels)]


def load_student(arguments: ModelArguments, spec: TaskSpec, training: StageTrainingArguments) -> PreTrainedModel:
    """Load the model that a stage trains, as its flags ask for."""
    settings: dict[str, Any] = {}
    if arguments.attn_implementation is not None:
        settings["attn_implementation"] = arguments.attn_implementation
    if arguments.dropout is not None:
        if not 0 <= arguments.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and below 1, not {arguments.dropout}")
        names = family_of(load_config(arguments.model_name_or_path)).dropout
        settings |= dict.fromkeys(names, arguments.dropout)
    model = load_for_task(arguments.model_name_or_path, spec, training.seed, **settings)
    if training.freeze_embeddings:
        labelled = tuple(family_of(model.config).embeddings)
        for name, parameter in model.named_parameters():
            if name.endswith(labelled):
                parameter.requires_grad_(False)
    return model


def save_artefact(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: TaskSpec) -> None:
    """Write a model directory that later stages start from: weights, config, tokenizer, task."""
    save_subnet(model, directory)
    tokenizer.save_pretrained(directory)
    spec.save(directory / TASK_FILE)


def evaluate_model(model: nn.Module, rows: Rows, split: str, prepared: Sequence[Any] | None = None) -> dict[str, float]:
    """Return the task's metrics (fractions) of a model on a split, in the model's dtype."""
    outputs = predict(model, prepared if prepared is not None else rows.batches(split), rows.spec.kind.outputs)
    return rows.measure(split, outputs)


@dataclass(frozen=True)
class Lesson:
    """What a stage needs of a teacher: rows that carry its outputs or the teacher itself, and the loss.

    Attributes
    ----------
    rows
        The training rows.
    distillation
        The loss; None without a teacher.
    teacher
        Where the loss compares more than the rows carry.
    """

    rows: Dataset
    distillation: Distillation | None = None
    teacher: Teacher | None = None


def settle_distillation(arguments: DistillationArguments, typed: Mapping[str, Any], document: Document) -> None:
    """Take over what the config says of distillation and the flags do not."""
    for name in ("kd_teacher_model", "kd_mode", "kd_temperature"):
        setattr(arguments, name, preferred(typed, name, getattr(arguments, name), name, getattr(document, name)))


def prepare_lesson(
    rows: Rows,
    train: Dataset,
    arguments: DistillationArguments,
    training: StageTrainingArguments,
    student: PreTrainedModel,
) -> Lesson:
    """Return what `arguments` ask for: without a teacher, the rows as they are."""
    path = arguments.kd_teacher_model
    if path is None:
        if arguments.kd_mode != "original":
            warn(f"--kd_mode {arguments.kd_mode} has no effect without --kd_teacher_model")
        return Lesson(train)
    if arguments.kd_temperature <= 0:
        raise UserError(f"--kd_temperature must be above 0, not {arguments.kd_temperature:g}")
    terms = terms_of(arguments.kd_mode)
    weights = {"hidden_states": arguments.kd_hidden_weight, "attention_relations": arguments.kd_attention_weight}
    distillation = Distillation(
        temperature=arguments.kd_temperature,
        task_weight=arguments.kd_task_weight,
        teacher_weight=arguments.kd_teacher_weight,
        outputs=rows.spec.kind.outputs,
        terms={term: weights[term.name] for term in terms},
    )
    if not terms:
        return Lesson(with_teacher_outputs(rows, train, path, training), distillation)
    teacher, tokenizer, order = load_teacher(rows, path)
    if tokenizer.get_vocab() != rows.tokenizer.get_vocab():
        raise UserError(
            f"--kd_mode {arguments.kd_mode} compares token by token, but the tokenizer of the teacher {path} is not "
            "the model's; use --kd_mode original"
        )
    for term in terms:
        term.check(student, teacher)
    inputs, outputs = tokenizer.model_input_names, rows.spec.kind.outputs
    return Lesson(train, distillation, Teacher(teacher, terms, inputs, outputs, order))


def load_teacher(rows: Rows, path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """Load a teacher: the model, its tokenizer, and per class of the task the index of its own.

    A teacher's directory without a tokenizer gets the student's.
    """
    whose = f"the teacher {path}"
    teacher = load_model(path, rows.spec.head.load_class())
    check_length(teacher.config, rows.spec, whose)
    order = label_order(_labels(teacher.config), rows.spec.output_names, whose=whose)
    tokenizer = load_tokenizer(path) if has_tokenizer(path) else rows.tokenizer
    if len(tokenizer) > teacher.config.vocab_size:
        raise UserError(f"{whose} knows {teacher.config.vocab_size} tokens, its tokenizer {len(tokenizer)}")
    return teacher, tokenizer, order


def with_teacher_outputs(rows: Rows, train: Dataset, teacher_path: str, arguments: StageTrainingArguments) -> Dataset:
    """Return the training features with a column ``teacher_<name>`` for each of the task's outputs."""
    outputs = teacher_outputs(rows, train, teacher_path, arguments)
    for output in rows.spec.kind.outputs:
        arrays = outputs[output.name]
        nested = bool(arrays) and arrays[0].ndim > 1
        train = train.add_column(TEACHER + output.name, [row.tolist() for row in arrays] if nested else arrays)
    return train


def teacher_outputs(rows: Rows, train: Dataset, teacher_path: str, arguments: StageTrainingArguments) -> Outputs:
    """Return a teacher's outputs on the training features, its classes ordered as the task's.

    The teacher sees each feature once, in eval mode, whatever the number of epochs and of subnets a step, and through
    its own tokenizer. The two tokenizers may differ where the outputs are of the text as a whole.
    """
    spec, whose = rows.spec, f"the teacher {teacher_path}"
    teacher, tokenizer, order = load_teacher(rows, teacher_path)
    teacher.to(arguments.device, evaluation_dtype("auto" if arguments.bf16 else "float32", arguments.device))
    teacher_rows = Rows(spec, tokenizer, arguments.per_device_eval_batch_size)
    kinds = spec.kind.outputs
    if any(output.per_token for output in kinds) and not _same_tokens(train, teacher_rows.features("train")):
        raise UserError(
            f"{whose} splits texts into other tokens than the student, so its outputs for tokens cannot be compared; "
            "choose a teacher with the student's tokenizer"
        )
    found = predict(teacher, teacher_rows.batches("train"), kinds)
    check_finite(found, f"the outputs of {whose}")
    reordered = {output.name for output in kinds if output.last == LABELS} if order != sorted(order) else set()
    return {name: [row[..., order] if name in reordered else row for row in arrays] for name, arrays in found.items()}


def _same_tokens(features: Dataset, others: Dataset) -> bool:
    """Return whether two tokenizers made the same features."""
    first, second = (each.with_format("arrow")[:]["input_ids"] for each in (features, others))
    return bool(first.equals(second))


def load_supernet(directory: str, spec: TaskSpec) -> tuple[Supernet, NNCFConfig]:
    """Load a trained supernet and the config that describes its space."""
    read_stage(directory, "train")
    config = read_config(Path(directory) / SPACE_FILE)
    model = load_for_task(directory, spec)
    return Supernet(model, build_space(config, Blueprint.of(model))), config
