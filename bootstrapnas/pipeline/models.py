"""Models, tokenizers, teachers and supernets of a stage, loaded for its task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

from bootstrapnas.artefacts import writing
from bootstrapnas.distillation import label_order, placeholders
from bootstrapnas.errors import UserError, listed
from bootstrapnas.evaluation import predict
from bootstrapnas.export import CausalIR, IRModel, predict_ir
from bootstrapnas.export.runtime import Runner
from bootstrapnas.extraction import auto_class_name, load_config, load_failure, load_model, save_subnet
from bootstrapnas.families import FAMILIES, family_of
from bootstrapnas.outputs import Outputs
from bootstrapnas.pipeline.arguments import ModelArguments, StageTrainingArguments
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.progress import notice
from bootstrapnas.tasks import TASK_FILE, TaskSpec, generate, generate_by_ir, load_task, tasks_for, train_tokenizer

if TYPE_CHECKING:
    from torch import nn

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

SPACE_FILE = "nncf_config.json"


WEIGHTS = (".safetensors", ".bin")
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


def load_for_task(
    directory_or_id: str, spec: TaskSpec, seed: int = 42, dtype: torch.dtype | None = torch.float32, **settings: Any
) -> PreTrainedModel:
    """Load a model with the task's head; a head that the checkpoint lacks is initialised from `seed`.

    Its parameters are in `dtype`, whatever the checkpoint holds (None: in the checkpoint's own), its outputs in the
    order of the task's labels. `settings` are further changes to its config.
    """
    set_seed(seed)
    names = spec.output_names
    saved = load_config(directory_or_id)
    has_head = spec.head.is_in(saved.architectures)
    if not has_head:
        check_has_head(directory_or_id, spec)
    order = class_order(saved, spec, directory_or_id) if has_head else list(range(len(names)))
    check_length(saved, spec, directory_or_id)
    # Random numbers depend on what they are drawn in: those of a new head are of the checkpoint's dtype first.
    at_once = dtype if has_head else None
    settings |= label_settings(spec)
    if order and has_head and placeholders(names):
        settings |= {"id2label": saved.id2label, "label2id": saved.label2id}  # which say more
    model = load_model(directory_or_id, spec.head.load_class(), at_once, **settings)
    if order != sorted(order):
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}.") and len(parameter) == len(order):
                parameter.data = parameter.data[order]
    if dtype is not None:
        cast_parameters(model.parameters(), dtype)
    return model


def cast_parameters(parameters: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Put parameters in another dtype one by one; buffers (frequencies of rotary positions) keep their precision."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def label_settings(spec: TaskSpec) -> dict[str, Any]:
    """Return what a task's labels are in a model's config; nothing of a task without any."""
    if not spec.num_labels:
        return {}
    names = spec.output_names
    return {
        "num_labels": spec.num_labels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": spec.head.problem_type,
    }


def load_as_saved(directory_or_id: str) -> PreTrainedModel:
    """Load a model with the head that the checkpoint has, in float32; `UserError` if that is none of an auto class."""
    return load_model(directory_or_id, saved_class(directory_or_id), torch.float32)


def saved_class(directory_or_id: str) -> Any:
    """Return the auto class of the head that a checkpoint has, or none; `UserError` if there is no such class."""
    import transformers

    architecture = (load_config(directory_or_id).architectures or [""])[0]
    auto_class = getattr(transformers, auto_class_name(architecture), None)
    if auto_class is None or not architecture:
        raise UserError(f"{directory_or_id}: its config names no architecture with a known head: {architecture!r}")
    return auto_class


def fit_length(spec: TaskSpec, typed: Mapping[str, Any], model: str) -> TaskSpec:
    """Return the task with its default length cut to what the model takes; a length that was typed stays."""
    limit = max_length(load_config(model))
    if "max_seq_length" in typed or spec.max_seq_length <= limit:
        return spec
    notice(f"texts are cut to {int(limit)} tokens, which is what {model} takes")
    return replace(spec, max_seq_length=int(limit))


def check_length(config: PreTrainedConfig, spec: TaskSpec, whose: str) -> None:
    """Raise `UserError` if rows may be longer than the model has positions for. Unknown families pass."""
    limit = max_length(config)
    if spec.max_seq_length > limit:
        raise UserError(f"--max_seq_length {spec.max_seq_length} exceeds the {int(limit)} tokens that {whose} takes")


def max_length(config: PreTrainedConfig) -> float:
    """Return how many tokens a model takes: infinitely many if its family has no limit or is unknown."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return config.to_dict().get("n_positions") or math.inf  # GPT-2's, which are learned; others may run on
    return math.inf if family.max_length is None else family.max_length(config)


def class_order(config: PreTrainedConfig, spec: TaskSpec, whose: str) -> list[int]:
    """Return, for each class of the task, the index of a model's output for it; none if the task has no classes.

    Raises
    ------
    UserError
        If the model does not have the task's classes; the message names it by `whose`.
    """
    if not spec.num_labels:
        return []
    return label_order([config.id2label[index] for index in range(config.num_labels)], spec.output_names, whose=whose)


def student_tokenizer(arguments: ModelArguments, spec: TaskSpec) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that a stage trains; of one from scratch that has none, make it."""
    source = arguments.tokenizer_name or arguments.model_name_or_path
    if not arguments.from_scratch or has_tokenizer(source):
        return load_tokenizer(source)
    tokenizer = train_tokenizer(spec, load_task(spec).split("train"))
    notice(f"{source} has no tokenizer: made one of {len(tokenizer)} tokens of the texts of task {spec.task_name}")
    return tokenizer


def load_student(
    arguments: ModelArguments,
    spec: TaskSpec,
    training: StageTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype | None = torch.float32,
) -> PreTrainedModel:
    """Load the model that a stage trains, as its flags ask for; `dtype` as in `load_for_task`."""
    check_has_head(arguments.model_name_or_path, spec)
    settings: dict[str, Any] = {}
    if arguments.attn_implementation is not None:
        settings["attn_implementation"] = arguments.attn_implementation
    if arguments.dropout is not None:
        if not 0 <= arguments.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and below 1, not {arguments.dropout}")
        names = family_of(load_config(arguments.model_name_or_path)).dropout
        settings |= dict.fromkeys(names, arguments.dropout)
    source = arguments.model_name_or_path
    if arguments.from_scratch:
        model = _model_from_scratch(source, spec, tokenizer, training.seed, dtype or torch.float32, **settings)
    else:
        if Path(source).is_dir() and not any(path.suffix in WEIGHTS for path in Path(source).iterdir()):
            raise UserError(f"{source} has no weights; pass --from_scratch True to initialise them at random")
        model = load_for_task(source, spec, training.seed, dtype, **settings)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"{source} knows {model.config.vocab_size} tokens, its tokenizer {len(tokenizer)}")
    settle_padding(model, tokenizer)
    if training.freeze_embeddings:
        labelled = tuple(family_of(model.config).embeddings)
        for name, parameter in model.named_parameters():
            if name.endswith(labelled):
                parameter.requires_grad_(False)
    return model


def check_has_head(source: str, spec: TaskSpec) -> None:
    """Raise `UserError` if models of a known family have no head for a task, such as an encoder for writing answers."""
    config = load_config(source)
    family = FAMILIES.get(config.model_type)
    if family is not None and not spec.head.is_in(list(family.architectures)):
        others = tasks_for(config.architectures)
        hint = f"; tasks for its {config.architectures[0]}: {listed(others)}" if others else ""
        raise UserError(
            f"{source} is no model for the task {spec.task_name}, which needs {spec.head.auto_class}: of its "
            f"model type, {family.model_type}, there are {listed(family.architectures)}{hint}"
        )


def settle_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a decoder with a classifier what rows are padded with, unless it knows: it reads the last other token."""
    if model.config.pad_token_id is None and not model.can_generate():
        model.config.pad_token_id = tokenizer.pad_token_id


def _model_from_scratch(
    source: str, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, seed: int, dtype: torch.dtype, **settings: Any
) -> PreTrainedModel:
    """Return a model of a config, with random weights, an embedding that fits the tokenizer, and its special tokens."""
    set_seed(seed)
    config = load_config(source, **settings, **label_settings(spec))
    check_length(config, spec, source)
    if config.to_dict().get("subnet") is not None:
        raise UserError(f"{source} is an extracted subnet: --from_scratch cannot initialise it")
    config.vocab_size = len(tokenizer) if not has_tokenizer(source) else max(config.vocab_size, len(tokenizer))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    try:
        model: PreTrainedModel = spec.head.load_class().from_config(config)
    except ValueError as error:
        raise load_failure("a model", source, error) from error
    notice(f"--from_scratch: {model.num_parameters():,} weights of {type(model).__name__} initialised at random")
    return model.to(dtype)


def save_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a tokenizer."""
    with writing(directory):
        tokenizer.save_pretrained(directory)


def save_artefact(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: TaskSpec) -> None:
    """Write a model directory that later stages start from: weights, config, tokenizer, task."""
    save_subnet(model, directory)
    save_tokenizer(directory, tokenizer)
    spec.save(directory / TASK_FILE)


def evaluate_model(model: nn.Module, rows: Rows, split: str, prepared: Sequence[Any] | None = None) -> dict[str, float]:
    """Return the task's metrics (fractions) of a model on a split, in the model's dtype."""
    batches = rows.batches(split, tail=True) if prepared is None else prepared
    return rows.measure(split, outputs_of(model, rows, batches))


def validate(model: nn.Module, rows: Rows) -> dict[str, float]:
    """Return the task's metrics of a model on the validation rows; none if no row was held out."""
    return {} if rows.data.validation is None else evaluate_model(model, rows, "validation")


def check_evaluations(rows: Rows, training: StageTrainingArguments, *, at_end: bool = True) -> None:
    """Prepare the rows to validate on before anything is trained, so that what is wrong with them is told at once.

    They are needed where evaluations while training are asked for and, `at_end`, where there are any.
    """
    if training.eval_strategy != "no" or (at_end and rows.data.validation is not None):
        rows.features("validation")


def outputs_of(model: Any, rows: Rows, prepared: Sequence[Any], *, progress: bool = False) -> Outputs:
    """Return what a model says of prepared batches, as the task measures it: its outputs, or the texts it writes."""
    writing = rows.spec.generation
    if writing is not None:
        return generate(model, prepared, rows.tokenizer, writing, progress=progress)
    return predict(model, prepared, rows.spec.kind.outputs)


def outputs_of_ir(ir: Runner, rows: Rows, prepared: Sequence[Any], *, progress: bool = False) -> Outputs:
    """Return what an IR says of prepared batches, as `outputs_of`; texts are written greedily (`TaskSpec.greedily`)."""
    writing = rows.spec.generation
    if writing is not None:
        assert isinstance(ir, IRModel), "only OpenVINO's IRs are exported of language models"
        return generate_by_ir(CausalIR(ir), prepared, rows.tokenizer, writing, progress=progress)
    return predict_ir(ir, prepared, rows.spec.kind.outputs)
