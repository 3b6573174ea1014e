"""The teacher of a stage: what is asked of it, and its outputs on all rows, computed once and kept on disk."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bootstrapnas.artefacts import digest, load_tensors, save_tensors
from bootstrapnas.distillation import Distillation, Teacher, terms_of
from bootstrapnas.errors import UserError, listed
from bootstrapnas.evaluation import evaluation_dtype, predict
from bootstrapnas.extraction import load_model
from bootstrapnas.nncf_config import NNCFConfig
from bootstrapnas.nncf_config.schema import Document, KnowledgeDistillation
from bootstrapnas.outputs import LABELS, TEACHER, VALUE, VOCABULARY, Output, Outputs
from bootstrapnas.pipeline.arguments import DistillationArguments, StageTrainingArguments
from bootstrapnas.pipeline.data import Rows, check_finite
from bootstrapnas.pipeline.models import check_length, class_order, has_tokenizer, load_tokenizer
from bootstrapnas.pipeline.stages import preferred
from bootstrapnas.progress import notice, warn
from bootstrapnas.tasks import TaskSpec

OWN_TEACHER = "bootstrapNAS.training.compression"
"""The section of a config that makes the model before training the teacher."""


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
    in_place
        Whether the largest subnet of each step is the teacher of the others.
    """

    rows: Dataset
    distillation: Distillation | None = None
    teacher: Teacher | None = None
    in_place: bool = False


def settle_distillation(arguments: DistillationArguments, typed: Mapping[str, Any], document: Document) -> None:
    """Take over what the config says of distillation and the flags do not."""
    for name in ("kd_teacher_model", "kd_mode", "kd_temperature"):
        setattr(arguments, name, preferred(typed, name, getattr(arguments, name), name, getattr(document, name)))


def supernet_lesson(
    rows: Rows,
    config: NNCFConfig,
    arguments: DistillationArguments,
    typed: Mapping[str, Any],
    training: StageTrainingArguments,
    student: PreTrainedModel,
) -> Lesson:
    """Return what a supernet learns from: the teacher that is named, else the config's own, else none."""
    train, compression = rows.split("train"), config.training.compression
    if compression and arguments.kd_teacher_model is None:
        return own_lesson(rows, train, compression[0], arguments, typed, training, student)
    if compression:
        warn(f"{config.path}: {OWN_TEACHER} has no effect: the teacher is {arguments.kd_teacher_model}")
    return prepare_lesson(rows, train, arguments, training, student)


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
        warn_without_teacher(arguments)
        return Lesson(train)
    if arguments.kd_temperature <= 0:
        raise UserError(f"--kd_temperature must be above 0, not {arguments.kd_temperature:g}")
    mode = arguments.kd_mode
    terms = terms_of(mode)
    if terms and training.n_gpu > 1:
        raise UserError(
            f"--kd_mode {mode} compares what one GPU computes, and there are {training.n_gpu}, which share each batch: "
            "show one of them (CUDA_VISIBLE_DEVICES=0), or use --kd_mode original"
        )
    weights = {"hidden_states": arguments.kd_hidden_weight, "attention_relations": arguments.kd_attention_weight}
    distillation = Distillation(
        temperature=arguments.kd_temperature,
        task_weight=arguments.kd_task_weight,
        teacher_weight=arguments.kd_teacher_weight,
        outputs=rows.spec.kind.outputs,
        terms={term: weights[term.name] for term in terms},
    )
    live = rows_are_too_large(rows.spec)
    if not terms and not live:
        return Lesson(with_teacher_outputs(rows, train, path, training, arguments.kd_cache_dir), distillation)
    if arguments.kd_cache_dir is not None:
        why = f"task {rows.spec.task_name} compares a vocabulary at every token and" if live else "--kd_mode " + mode
        notice(f"{why} runs the teacher once a batch: --kd_cache_dir keeps nothing")
    teacher, tokenizer, order = load_teacher(rows, path)
    if tokenizer.get_vocab() != rows.tokenizer.get_vocab():
        advice = "choose a teacher with the model's" if live else "use --kd_mode original"
        raise UserError(
            f"--kd_mode {mode} compares token by token, but the tokenizer of the teacher {path} is not "
            f"the model's; {advice}"
        )
    if live and teacher.config.vocab_size != student.config.vocab_size:
        raise UserError(
            f"the teacher {path} tells {teacher.config.vocab_size} tokens apart, the model {student.config.vocab_size}"
        )
    for term in terms:
        term.check(student, teacher)
    inputs, outputs = tokenizer.model_input_names, rows.spec.kind.outputs
    return Lesson(train, distillation, Teacher(teacher, terms, inputs, outputs, order))


def rows_are_too_large(spec: TaskSpec) -> bool:
    """Return whether a teacher's outputs are too large to keep: a number for every token that may come next."""
    return any(output.last == VOCABULARY for output in spec.kind.outputs)


def warn_without_teacher(arguments: DistillationArguments) -> None:
    """Warn of what only a teacher that is named can do."""
    if arguments.kd_mode != "original":
        warn(f"--kd_mode {arguments.kd_mode} has no effect without --kd_teacher_model")
    if arguments.kd_cache_dir is not None:
        warn("--kd_cache_dir has no effect without --kd_teacher_model")


def own_lesson(
    rows: Rows,
    train: Dataset,
    section: KnowledgeDistillation,
    arguments: DistillationArguments,
    typed: Mapping[str, Any],
    training: StageTrainingArguments,
    student: PreTrainedModel,
) -> Lesson:
    """Return NNCF's distillation: the teacher is the student as it is before training, in evaluation mode.

    The task loss counts whole, and the outputs' terms are added up. Of type ``softmax`` they are T**2 times a cross
    entropy in NNCF; the KL divergence here has the same gradients, and is 0 where the two agree.
    """
    warn_without_teacher(arguments)
    outputs = rows.spec.kind.outputs
    if section.type == "softmax" and any(output.last == VALUE for output in outputs):
        raise UserError(f"{OWN_TEACHER}: type 'softmax' says nothing about a task of values; use 'mse'")
    if not rows.spec.head.is_in(student.config.architectures):
        warn(f"{OWN_TEACHER}: the teacher is the model before training, whose head was just initialised")
    in_file = None if section.type == "mse" else section.temperature
    scale = preferred(typed, "kd_teacher_weight", None, f"{OWN_TEACHER}.scale", section.scale)
    distillation = Distillation(
        temperature=preferred(typed, "kd_temperature", 1.0, f"{OWN_TEACHER}.temperature", in_file),
        task_weight=typed.get("kd_task_weight", 1.0),
        teacher_weight=scale * len(outputs),
        outputs=outputs,
        squared=section.type == "mse",
    )
    if rows_are_too_large(rows.spec):
        teacher = Teacher(copy.deepcopy(student), (), rows.tokenizer.model_input_names, outputs, [])
        return Lesson(train, distillation, teacher)
    said = predict(student.to(training.device), rows.batches("train"), outputs)
    check_finite(said, "the outputs of the model before training")
    return Lesson(with_columns(train, said), distillation)


def load_teacher(rows: Rows, path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """Load a teacher: the model, its tokenizer, and per class of the task the index of its own.

    A teacher's directory without a tokenizer gets the student's.
    """
    whose = f"the teacher {path}"
    teacher = load_model(path, rows.spec.head.load_class())
    if not rows.spec.head.is_in(teacher.config.architectures):
        raise UserError(
            f"{whose} has no head for the task {rows.spec.task_name} "
            f"({listed(teacher.config.architectures or ()) or 'no class named'}); fine-tune it first (eftnas finetune)"
        )
    check_length(teacher.config, rows.spec, whose)
    order = class_order(teacher.config, rows.spec, whose)
    tokenizer = load_tokenizer(path) if has_tokenizer(path) else rows.tokenizer
    if len(tokenizer) > teacher.config.vocab_size:
        raise UserError(f"{whose} knows {teacher.config.vocab_size} tokens, its tokenizer {len(tokenizer)}")
    return teacher, tokenizer, order


def with_teacher_outputs(
    rows: Rows, train: Dataset, teacher_path: str, arguments: StageTrainingArguments, cache_dir: str | None = None
) -> Dataset:
    """Return the training features with a column ``teacher_<name>`` for each of the task's outputs."""
    return with_columns(train, teacher_outputs(rows, train, teacher_path, arguments, cache_dir))


def with_columns(train: Dataset, outputs: Outputs) -> Dataset:
    """Return training features with a column ``teacher_<name>`` for each of a teacher's outputs on them."""
    for name, arrays in outputs.items():
        nested = bool(arrays) and arrays[0].ndim > 1
        train = train.add_column(TEACHER + name, [row.tolist() for row in arrays] if nested else arrays)
    return train


def teacher_outputs(
    rows: Rows, train: Dataset, teacher_path: str, arguments: StageTrainingArguments, cache_dir: str | None = None
) -> Outputs:
    """Return a teacher's outputs on the training features, its classes ordered as the task's.

    The teacher sees each feature once, in eval mode, whatever the number of epochs and of subnets a step, and through
    its own tokenizer. The two tokenizers may differ where the outputs are of the text as a whole. With `cache_dir` the
    outputs are kept there, and found again by the contents of the teacher and of the features.
    """
    teacher, tokenizer, order = load_teacher(rows, teacher_path)
    kinds, teacher_rows = rows.spec.kind.outputs, Rows(rows.spec, tokenizer, arguments.per_device_eval_batch_size)
    features = teacher_rows.features("train")
    _check_tokens(kinds, train, features, teacher_path)
    dtype = evaluation_dtype("auto" if arguments.bf16 else "float32", arguments.device)
    inputs = features.select_columns([name for name in features.column_names if name in teacher_rows.collator.inputs])
    cache = None
    if cache_dir is not None:
        key = _cache_key(_identity(teacher_path, teacher), inputs, kinds, order, dtype)
        cache = Path(cache_dir) / f"{key}.safetensors"
        found = _cached(cache, kinds, len(features))
        if found is not None:
            notice(f"teacher outputs found in {cache}")
            return found
    found = _said(teacher.to(arguments.device, dtype), teacher_rows, "train", order, teacher_path)
    if cache is not None:
        save_tensors(cache, _flat(found), {"teacher": teacher_path, "rows": len(features)})
        notice(f"teacher outputs written to {cache}")
    return found


def validation_outputs(rows: Rows, teacher_path: str, device: torch.device) -> Outputs:
    """Return a teacher's outputs on the validation rows, as those of `teacher_outputs`, in float32."""
    teacher, tokenizer, order = load_teacher(rows, teacher_path)
    own = Rows(rows.spec, tokenizer, rows.batch_size)
    _check_tokens(rows.spec.kind.outputs, rows.features("validation"), own.features("validation"), teacher_path)
    return _said(teacher.to(device, torch.float32), own, "validation", order, teacher_path)


def _said(teacher: PreTrainedModel, rows: Rows, split: str, order: list[int], path: str) -> Outputs:
    """Return a teacher's outputs on a split, its classes in `order`; `UserError` if they are not finite."""
    kinds = rows.spec.kind.outputs
    found = predict(teacher, rows.batches(split), kinds)
    check_finite(found, f"the outputs of the teacher {path}")
    reordered = {output.name for output in kinds if output.last == LABELS} if order != sorted(order) else set()
    return {name: [row[..., order] if name in reordered else row for row in arrays] for name, arrays in found.items()}


def _check_tokens(outputs: tuple[Output, ...], features: Dataset, others: Dataset, path: str) -> None:
    """Raise `UserError` if outputs are for tokens, and the teacher's tokenizer made other ones."""
    first, second = (each.with_format("arrow")[:]["input_ids"] for each in (features, others))
    if any(output.per_token for output in outputs) and not first.equals(second):
        raise UserError(
            f"the teacher {path} splits texts into other tokens than the student, so its outputs for tokens cannot be "
            "compared; choose a teacher with the student's tokenizer"
        )


# -- outputs on disk ---------------------------------------------------------------------------------------------------


def _identity(path: str, teacher: PreTrainedModel) -> str:
    """Return what a teacher is: the contents of its directory, or its hub id and revision."""
    if Path(path).is_dir():
        return digest(path)
    return f"{path}@{getattr(teacher.config, '_commit_hash', None)}"


def _cache_key(
    identity: str, inputs: Dataset, outputs: tuple[Output, ...], order: list[int], dtype: torch.dtype
) -> str:
    """Return a digest of all that decides a teacher's outputs."""
    total = hashlib.sha256(repr((identity, outputs, order, str(dtype))).encode())
    table = inputs.with_format("arrow")[:]
    for name in sorted(table.column_names):
        total.update(name.encode())
        column = table[name].combine_chunks()
        while column.type.num_fields:  # a list: its lengths and its values, wherever chunks begin
            total.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        total.update(column.to_numpy(zero_copy_only=False).tobytes())
    return total.hexdigest()[:24]


def _flat(outputs: Outputs) -> dict[str, Tensor]:
    """Return per output one tensor of all rows, one after the other, and how long each is."""
    tensors = {}
    for name, arrays in outputs.items():
        tensors[name] = torch.from_numpy(np.concatenate(arrays))
        tensors[f"{name}.lengths"] = torch.tensor([len(array) for array in arrays])
    return tensors


def _cached(path: Path, outputs: tuple[Output, ...], rows: int) -> Outputs | None:
    """Return what `_flat` made, or None if there is no whole file of it."""
    if not path.exists():
        return None
    try:
        tensors, _ = load_tensors(path)
        found = {}
        for output in outputs:
            values, lengths = tensors[output.name].numpy(), tensors[f"{output.name}.lengths"].tolist()
            if len(lengths) != rows or sum(lengths) != len(values):
                raise UserError(f"{path} is corrupt: it does not hold {rows} rows")
            found[output.name] = np.split(values, np.cumsum(lengths)[:-1])
    except (UserError, KeyError) as error:
        warn(f"{error}; the teacher's outputs are computed anew")
        return None
    return found
