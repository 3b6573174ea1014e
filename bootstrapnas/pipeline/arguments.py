"""Groups of flags. Names are those of the published recipes and of Hugging Face."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import torch
from transformers import TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from bootstrapnas.distillation import KD_MODES
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.tasks.prompts import PROMPTS

# HfArgumentParser reads these annotations at run time and knows Optional[...], not the union operator of newer Pythons.
# ruff: noqa: UP045


def flag(default: Any, help: str, *older: str) -> Any:
    """Return a dataclass field with a help text; `older` names of the flag, with their hyphens, say the same."""
    return field(default=default, metadata={"help": help, "aliases": list(older)})


def required(help: str) -> Any:
    """Return a dataclass field without a default."""
    return field(metadata={"help": help})


def numbers(flag_name: str, text: str) -> list[float]:
    """Return the value of a flag that holds numbers separated by commas; `UserError` if it does not."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--{flag_name} must be numbers separated by commas, not {text!r}") from None


def shares(flag_name: str, text: str) -> list[float]:
    """Return the value of a flag that holds shares of a whole separated by commas; `UserError` if it does not."""
    found = numbers(flag_name, text)
    if not all(0 < share <= 1 for share in found):
        raise UserError(f"--{flag_name} must lie above 0 and at most 1, not {text}")
    return found


@dataclass
class ModelArguments:
    """The model a stage starts from."""

    _argument_group_name = "model"

    model_name_or_path: str = required("Hub id, or a local directory: pre-trained, fine-tuned or extracted.")
    tokenizer_name: Optional[str] = flag(None, "Hub id or directory of the tokenizer, when not the model's.")
    from_scratch: bool = flag(
        False,
        "Take the config alone, and initialise all weights at random. Where there is no tokenizer, a small one is made "
        "of the task's texts.",
    )
    dropout: Optional[float] = flag(None, "Dropout probability while training; default: the checkpoint's.")
    attn_implementation: Optional[str] = flag(
        None, "Attention while training: sdpa or eager (faster in bfloat16 on CPUs for short texts); default: sdpa."
    )


@dataclass
class TaskArguments:
    """Task and data; what is not given is inherited from the artefact that the stage starts from."""

    _argument_group_name = "task and data (inherited from the model's directory when not given)"

    task_name: Optional[str] = flag(
        None,
        "A GLUE task, squad, squad_v2, imdb, wikitext2, text (your own), or builtin-text and builtin-lm: docstrings of "
        "installed packages, to classify and to model. Masked language modelling: masked-wikitext2, masked-text (your "
        "own), masked-builtin-lm. Instructions: commonsense, math, sft (your own), or builtin-arithmetic.",
    )
    dataset_dir: Optional[str] = flag(None, "Local directory with <task>/{train,validation}.jsonl[.gz], not the hub.")
    train_file: Optional[str] = flag(None, "JSON lines, CSV, tagged words (.conll) or a text of your own.")
    validation_file: Optional[str] = flag(None, "JSON lines, CSV or a text of your own.")
    test_file: Optional[str] = flag(None, "JSON lines, CSV or a text of your own.")
    val_set_size: Optional[int] = flag(
        None, "Training rows held out to validate, where no others are there for that; 0 trains on all of them."
    )
    text_columns: Optional[str] = flag(None, "One or two column names, separated by a comma.")
    label_column: Optional[str] = flag(
        None, "Column of the label, or of the tags of a text's words; in .conll files a number from 1, else the last."
    )
    max_seq_length: Optional[int] = flag(None, "Texts are cut to this many tokens.")
    max_train_samples: Optional[int] = flag(None, "Use only so many training rows.")
    max_eval_samples: Optional[int] = flag(None, "Use only so many rows to validate on, or to evaluate on.")
    metric: Optional[str] = flag(None, "Metric that stages select by; default: the task's usual one.")
    doc_stride: Optional[int] = flag(
        None, "Question answering: tokens that two windows of a long text share; default: a third of max_seq_length."
    )
    version_2_with_negative: Optional[bool] = flag(None, "Question answering: a question may have no answer.")
    n_best_size: Optional[int] = flag(None, "Question answering: starts and ends that are tried in a window; 20.")
    max_answer_length: Optional[int] = flag(None, "Question answering: tokens of the longest answer; 30.")
    null_score_diff_threshold: Optional[float] = flag(
        None, "Question answering: no answer where its score is more than this above the best answer's; 0."
    )
    mlm_probability: Optional[float] = flag(None, "Masked language modelling: share of the tokens to tell; 0.15.")
    mask_draws: Optional[int] = flag(
        None, "Masked language modelling: times each text is learnt in an epoch, other tokens hidden each time; 1."
    )
    prompt_style: Optional[str] = flag(None, f"Instructions: {listed(PROMPTS)}; lonas has the published whitespace.")
    train_on_inputs: Optional[bool] = flag(None, "Instructions: learn the prompt too, not the response alone.")
    evaluate_by: Optional[str] = flag(
        None, "Instructions: generate (the answer that is written), score (the likeliest choice; faster), or loss."
    )
    max_new_tokens: Optional[int] = flag(None, "Instructions: tokens of the longest response; 32, math 256.")
    num_beams: Optional[int] = flag(None, "Instructions: texts that are followed while writing; 1, published 4.")


@dataclass
class DistillationArguments:
    """Knowledge distillation."""

    _argument_group_name = "knowledge distillation"

    kd_teacher_model: Optional[str] = flag(None, "Fine-tuned teacher: hub id or directory.")
    kd_mode: str = flag("original", f"What is compared: {listed(KD_MODES)}; original is the outputs alone.")
    kd_cache_dir: Optional[str] = flag(
        None, "Keep the teacher's outputs on all training rows here; stages and runs that share it compute them once."
    )
    kd_temperature: float = flag(2.0, "Temperature T of both softmaxes.")
    kd_task_weight: float = flag(0.1, "Weight of the task loss.")
    kd_teacher_weight: float = flag(0.9, "Weight of T^2 * KL(teacher || student).")
    kd_hidden_weight: float = flag(1.0, "Weight of the relative error of hidden states, in modes that compare them.")
    kd_attention_weight: float = flag(1.0, "Weight of the divergence of attention relations, in modes with them.")


@dataclass
class OutputArguments:
    """Where a stage without training writes."""

    _argument_group_name = "output"

    output_dir: str = required("Directory to write.")
    overwrite_output_dir: bool = flag(False, "Delete what another run left in output_dir.")


@dataclass
class StageTrainingArguments(TrainingArguments):
    """Hugging Face's TrainingArguments with the defaults of this project."""

    _argument_group_name = "training (all of Hugging Face's TrainingArguments)"

    output_dir: str = required("Directory to write.")
    overwrite_output_dir: bool = flag(False, "Delete what another run left in output_dir.")
    freeze_embeddings: bool = flag(False, "Do not train the embeddings.")
    per_device_train_batch_size: int = flag(32, "Rows of a batch.")
    per_device_eval_batch_size: int = flag(64, "Rows of an evaluation batch.")
    warmup_steps: float = flag(
        0, "Steps of a linear warm-up from 0 to the learning rate; below 1, their share of all steps.", "--warmup_ratio"
    )
    eval_strategy: Literal["no", "steps", "epoch"] = flag("no", "When to evaluate.", "--evaluation_strategy")
    train_sampling_strategy: str = flag("group_by_length", "random, sequential, or group_by_length (less padding).")
    save_strategy: str = flag("epoch", "When to write a checkpoint to resume from: no, epoch, steps.")
    save_total_limit: Optional[int] = flag(1, "How many checkpoints to keep while training.")
    logging_steps: float = flag(10, "Steps between two values of the loss.")
    report_to: Optional[str] = flag("none", "Integrations to report to.")
    dataloader_pin_memory: bool = flag(False, "Pin memory of batches (for GPUs).")

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.num_train_epochs <= 0:
            raise UserError(f"--num_train_epochs must be above 0, not {self.num_train_epochs:g}")
        if not 0 <= self.seed < 1 << 32:  # numpy takes no others
            raise UserError(f"--seed must be at least 0 and below 2^32, not {self.seed}")
        # Hugging Face takes bfloat16 without a GPU as a mistake unless the CPU is asked for.
        if not torch.cuda.is_available():
            self.use_cpu: bool = True
        with warnings.catch_warnings():  # of a newer name for --gradient_checkpointing, not in every transformers 5
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            super().__post_init__()
        installed = get_available_reporting_integrations()
        for name in self.report_to or ():
            if name not in INTEGRATION_TO_CALLBACK:
                raise UserError(
                    f"unknown --report_to {name!r} (known: {listed(INTEGRATION_TO_CALLBACK)})"
                    f"{near_miss(name, INTEGRATION_TO_CALLBACK)}"
                )
            if name not in installed:
                raise UserError(
                    f"--report_to {name}: it is not installed here; pip install it, or take one that is "
                    f"({listed(installed) or 'none'})"
                )
