"""What an export is verified, calibrated and measured on: the rows of the model's task or, without a task, texts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import predict
from bootstrapnas.export import TaskMetric, predict_ir
from bootstrapnas.export.runtime import Runner
from bootstrapnas.outputs import INDEX, VOCABULARY, Outputs
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import max_length, outputs_of, outputs_of_ir
from bootstrapnas.progress import notice
from bootstrapnas.tasks import TaskSpec, batches, load_file, tokenize
from bootstrapnas.tasks.builtin_text import find_packages, scan
from bootstrapnas.tasks.files import SUFFIXES, read_table, texts
from bootstrapnas.tasks.next_token import LOGITS as NEXT_TOKEN
from bootstrapnas.tasks.next_token import foretold, measure_foretold

Batch = Mapping[str, Tensor]

VERIFICATION_ROWS = 16
VOCABULARY_ROWS = 4
"""To verify on, where an encoder's outputs are a number for each token of its vocabulary."""
EVALUATION_ROWS = 32
CALIBRATION_ROWS = 300
TEXT_LENGTH = 128
"""Tokens to which texts without a task are cut, where the model takes so many."""
TEXT_COLUMN, TEXT_SUFFIX = "text", ".txt"
TEXTS_A_PACKAGE = 100


@dataclass(frozen=True)
class ExportData:
    """Batches of inputs.

    Attributes
    ----------
    examples
        What to verify on: long rows and short ones.
    calibration
        What to quantise by, a row each, not padded.
    metric
        The task metric of the torch model, and how to measure an IR's; None without a task, or if none is wanted.
    """

    examples: Sequence[Batch]
    calibration: Sequence[Batch] = ()
    metric: TaskMetric | None = None


def task_data(
    spec: TaskSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    calibration_rows: int,
    calibration_file: str | None,
    measured: bool,
) -> ExportData:
    """Return validation rows (for want of any training rows) to verify on, rows to calibrate by, and the metric.

    Calibration takes training rows or a file's.

    Raises
    ------
    UserError
        If rows are missing, or the file is one of another task.
    """
    rows = Rows(spec.greedily(), tokenizer, EVALUATION_ROWS)
    without = rows.data.validation is None and not measured
    validation = rows.batches("train" if without else "validation")
    large = not spec.kind.causal and any(output.last == VOCABULARY for output in spec.kind.outputs)
    count = VOCABULARY_ROWS if large else VERIFICATION_ROWS
    # The longest rows and the shortest: what verification should see of the lengths.
    examples = [{name: tensor[:count] for name, tensor in validation[at].items()} for at in (0, -1)]
    calibration = calibration_of(rows, calibration_rows, calibration_file) if calibration_rows else ()
    return ExportData(examples, calibration, _metric(rows, validation, model) if measured else None)


def text_data(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int | None,
    calibration_rows: int,
    calibration_file: str | None,
    measured: bool,
) -> ExportData:
    """Return texts of a file, or of installed packages, for a model without a task.

    If `measured`, the metric is the perplexity of those that are not for calibration: of a causal language model. They
    are the last ones, which are the same however many are for calibration, as long as there are enough.
    """
    limit = min(max_length(model.config), tokenizer.model_max_length)
    if length is not None and length < 1:
        raise UserError(f"--max_seq_length must be at least 1, not {length}")
    if length is not None and length > limit:
        raise UserError(f"--max_seq_length {length} exceeds the {int(limit)} tokens that the model takes")
    longest = min(length or TEXT_LENGTH, limit)
    found = builtin_texts() if calibration_file is None else file_texts(calibration_file)
    found = random.Random(0).sample(found, len(found))

    def batch(chosen: Sequence[str]) -> Batch:
        return dict(
            tokenizer(list(chosen), truncation=True, max_length=longest, padding=len(chosen) > 1, return_tensors="pt")
        )

    by_length = sorted(found, key=len, reverse=True)
    rows = 1 if tokenizer.pad_token_id is None else VERIFICATION_ROWS
    examples = [batch(by_length[:rows]), batch(by_length[-rows:])]
    calibration, rest = found[:calibration_rows], found[calibration_rows:] or found
    metric = _perplexity(model, [batch([text]) for text in rest[-EVALUATION_ROWS:]]) if measured else None
    return ExportData(examples, [batch([text]) for text in calibration], metric)


def file_texts(path: str) -> list[str]:
    """Return the texts of a file that are not blank: the lines of a ``.txt``, or the column ``text`` of a table."""
    if path.endswith(TEXT_SUFFIX):
        try:
            found = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
    elif path.endswith(SUFFIXES):
        rows = texts(read_table(path, [TEXT_COLUMN]), TEXT_COLUMN, path)
        found = [text for text in rows if text.strip()]
        if len(found) < len(rows):
            notice(f"export: {len(rows) - len(found)} of the {len(rows)} texts of {path} are blank, and left out")
    else:
        raise UserError(f"{path}: unknown kind of data file; give one of {TEXT_SUFFIX}, {', '.join(SUFFIXES)}")
    if not found:
        raise UserError(f"{path} holds no text")
    return found


def builtin_texts() -> list[str]:
    """Return docstrings of installed packages."""
    return [row["text"] for row in scan(find_packages(), {"train": TEXTS_A_PACKAGE})["train"]]


def calibration_of(rows: Rows, count: int, file: str | None = None) -> list[Batch]:
    """Return training rows, or a file's, to calibrate by: a row each, not padded."""
    spec = rows.spec
    if file is None and rows.data.train is None:
        raise UserError(f"{spec.train_file} is gone: --calibration_file names another file to calibrate by")
    source = rows.rows("train") if file is None else load_file(spec, file)
    chosen = random.Random(spec.seed).sample(range(len(source)), min(count, len(source)))
    features = tokenize(source.select(chosen), rows.tokenizer, spec)
    features = features.select(range(min(count, len(features))))  # a kind may make several features of a row
    names = [name for name in features.column_names if name in (*rows.collator.inputs, "length")]
    return list(batches(features.select_columns(names), rows.collator, 1))


def _metric(rows: Rows, validation: Sequence[Batch], model: PreTrainedModel) -> TaskMetric:
    spec, count = rows.spec, len(rows.rows("validation"))
    writes = spec.generation is not None
    notice(f"export: measuring {spec.metric} of the torch model on {count} rows")

    def of(ir: Runner) -> float:
        return rows.measure("validation", outputs_of_ir(ir, rows, validation, progress=writes))[spec.metric]

    own = rows.measure("validation", outputs_of(model, rows, validation, progress=writes))[spec.metric]
    return TaskMetric(spec.metric, "validation", count, own, validation, of, spec.maximise)


def _perplexity(model: PreTrainedModel, texts: Sequence[Batch]) -> TaskMetric:
    """Return the perplexity of texts, a batch each, as a metric."""
    rows = [{**text, INDEX: torch.tensor([row])} for row, text in enumerate(texts) if text["input_ids"].shape[1] > 1]
    if not rows:
        raise UserError("the texts hold no sequence of at least two tokens; --no_metric measures nothing of them")
    labels = [row["input_ids"][0].tolist() for row in rows]

    def measure(outputs: Outputs) -> float:
        return measure_foretold(foretold(outputs, labels))["perplexity"]

    def of(ir: Runner) -> float:
        return measure(predict_ir(ir, rows, (NEXT_TOKEN,)))

    own = measure(predict(model, rows, (NEXT_TOKEN,)))
    return TaskMetric("perplexity", "texts", len(rows), own, rows, of, greater_is_better=False)
