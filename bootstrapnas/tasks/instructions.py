"""Instructions and responses (LLM-Adapters' format), measured by what a model answers.

Three ways to measure: the answer in what the model writes (`generate`), the likeliest of the answers that an
instruction leaves to choose from (`score`, a forward pass, no writing), how well it foretells the responses (`loss`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.outputs import GROUP, IGNORED, LABELS, TOKENS, VOCABULARY, Output, Outputs, Reduction
from bootstrapnas.progress import warn
from bootstrapnas.tasks import next_token
from bootstrapnas.tasks.answers import Choice, Letter, Rule, rule_of
from bootstrapnas.tasks.files import ROW, read_table, row_names, texts
from bootstrapnas.tasks.generation import TEXT, Generation, text_of
from bootstrapnas.tasks.kind import Kind
from bootstrapnas.tasks.next_token import Foretold, foretold, measure_foretold, show_foretold
from bootstrapnas.tasks.prompts import prompting, response_of
from bootstrapnas.tasks.settings import GENERATE, LOSS, SCORE, WAYS, InstructionSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from bootstrapnas.tasks.files import Table
    from bootstrapnas.tasks.task import Task

COLUMNS, LABEL_COLUMN = ("instruction", "output"), "answer"
OPTIONAL_COLUMNS = ("input", "source", "answer")
CANDIDATES, START = "candidates", "start"
_HEAD = "the correct answer is "
_MOST_HEAD_WORDS = 8  # of a response before its answer; a longer one works the answer out


def settings_of(spec: Task) -> InstructionSettings:
    """Return a task's settings, which a task of this kind has."""
    assert spec.instructions is not None
    return spec.instructions


def _check(spec: Task) -> None:
    if spec.instructions is None:
        raise UserError(f"task {spec.task_name}: instructions need the settings 'instructions'")
    if len(spec.text_columns) != 2:
        raise UserError(f"text_columns must name the instruction's and the response's, not {list(spec.text_columns)}")
    settings = spec.instructions
    prompting(settings.prompt_style)
    if settings.evaluate_by not in WAYS:
        near = near_miss(settings.evaluate_by, WAYS)
        raise UserError(f"unknown --evaluate_by {settings.evaluate_by!r}{near}; known: {listed(WAYS)}")
    for name in ("max_new_tokens", "num_beams"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be positive, not {getattr(settings, name)}")


def _metrics(spec: Task) -> tuple[str, ...]:
    ways = {
        GENERATE: ("accuracy", "average"),
        SCORE: ("accuracy", "average", "accuracy_norm"),
        LOSS: next_token.METRICS,
    }
    return ways[settings_of(spec).evaluate_by]


# -- rows --------------------------------------------------------------------------------------------------------------


def _read(spec: Task, path: Path) -> Table:
    """Read a file of instructions, or one of a data set in its own format, which is put into words."""
    table = read_table(path)
    if {"ctx", "endings", "label"} <= table.keys() and spec.text_columns[0] not in table:
        return _hellaswag(read_table(path, ["ctx", "endings", "label"]), str(path))
    if {"question", "answer"} <= table.keys() and spec.text_columns[0] not in table:
        return _gsm8k(read_table(path, ["question", "answer"]), str(path))
    return read_table(path, spec.columns, OPTIONAL_COLUMNS)


def _hellaswag(table: Table, source: str) -> Table:
    """Put rows of HellaSwag into the words of LLM-Adapters."""
    found: Table = {name: [] for name in (*COLUMNS, LABEL_COLUMN, "source")}
    for row, (context, endings, label) in enumerate(zip(table["ctx"], table["endings"], table["label"], strict=True)):
        names = [f"ending{number}" for number in range(1, len(endings) + 1)]
        if not str(label).isdigit() or int(label) >= len(endings):
            raise UserError(f"{source}: row {row} has the label {label!r}, but {len(endings)} endings")
        listed_endings = " ".join(f"{name.capitalize()}: {text}" for name, text in zip(names, endings, strict=True))
        found["instruction"].append(
            f"Please choose the correct ending to complete the given sentence: {context}\n\n{listed_endings}\n\n"
            f"Answer format: {'/'.join(names)}"
        )
        found["output"].append(f"{_HEAD}{names[int(label)]}")
        found[LABEL_COLUMN].append(names[int(label)])
        found["source"].append("hellaswag")
    return found


def _gsm8k(table: Table, source: str) -> Table:
    """Take GSM8K's solutions as responses, without the marks of its calculator."""
    found: Table = {name: [] for name in (*COLUMNS, LABEL_COLUMN, "source")}
    for row, (question, answer) in enumerate(zip(table["question"], table["answer"], strict=True)):
        solution, mark, number = str(answer).partition("####")
        if not mark:
            raise UserError(f"{source}: row {row} has no '####' before its answer")
        found["instruction"].append(question)
        found["output"].append(f"{re.sub(r'<<[^>]*>>', '', solution).strip()} The answer is {number.strip()}.")
        found[LABEL_COLUMN].append(number.strip())
        found["source"].append("gsm8k")
    return found


def _rows(spec: Task, table: Table, split: str, source: str) -> Dataset:
    """Return the rows: ``instruction``, ``input``, ``output``, ``answer`` and ``source``, the data set.

    Raises
    ------
    UserError
        If a text is missing or, of rows to measure answers with, an answer is none of its data set's.
    """
    from datasets import Dataset, Features, Value

    names = row_names(table)
    given = {"instruction": spec.text_columns[0], "output": spec.text_columns[1]}
    columns = {name: texts(table, column, source) for name, column in given.items()}
    for name in ("input", "source"):
        columns[name] = ["" if value is None else str(value) for value in table.get(name, [""] * len(names))]
    answers = table.get(spec.label_column or LABEL_COLUMN, [""] * len(names))
    columns["answer"] = ["" if value is None else str(value).strip() for value in answers]
    if split != "train" and settings_of(spec).evaluate_by != LOSS:
        for row, name, answer in zip(names, columns["source"], columns["answer"], strict=True):
            if rule_of(name, answer) is None:
                raise UserError(
                    f"{source}: row {row} has the answer {answer!r}, which "
                    + (f"is none of the data set {name}" if answer else "says nothing; --evaluate_by loss needs none")
                )
    types = dict.fromkeys(("instruction", "input", "output", "answer", "source"), Value("string"))
    types[ROW] = Value("int64" if all(isinstance(name, int) for name in names) else "string")
    columns[ROW] = names
    return Dataset.from_dict({name: columns[name] for name in types}, features=Features(types))


def _rules(rows: Dataset) -> list[Rule]:
    pairs = zip(rows["source"], rows["answer"], strict=True)
    found = [rule_of(source, answer) for source, answer in pairs]
    return [rule for rule in found if rule is not None]


# -- features ----------------------------------------------------------------------------------------------------------


class _Writer:
    """Turns instructions into tokens: the prompt's, the same to train and to measure, and the response's."""

    def __init__(self, spec: Task, tokenizer: PreTrainedTokenizerBase, *, measuring: bool) -> None:
        self.style = prompting(settings_of(spec).prompt_style).style(spec.task_name, measuring=measuring)
        self.tokenizer, self.end = tokenizer, tokenizer.eos_token_id

    def prompt(self, row: Mapping[str, str]) -> tuple[str, list[int]]:
        """Return a row's prompt and its tokens, without one for the end of the text."""
        text = self.style.prompt(row["instruction"], row["input"])
        return text, self._open(self.tokenizer(text)["input_ids"])

    def response(self, prompt: str, tokens: list[int], response: str) -> list[int]:
        """Return a response's tokens after a prompt: as of the whole text, unless its tokens reach into the prompt."""
        whole = self._open(self.tokenizer(prompt + response)["input_ids"])
        if whole[: len(tokens)] == tokens:
            return whole[len(tokens) :]
        return list(self.tokenizer(response, add_special_tokens=False)["input_ids"])

    def _open(self, ids: list[int]) -> list[int]:
        return list(ids[:-1] if ids and ids[-1] == self.end else ids)


def _features(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return prompt and response of each row, closed by the token for the end of a text unless they are cut.

    ``labels`` are the tokens themselves, -100 for those of the prompt unless ``train_on_inputs``. Rows whose prompt
    alone is longer than ``spec.max_seq_length`` have nothing to learn then and are left out, with one warning.
    """
    return _learnt(spec, rows, tokenizer, measuring=False)


def _learnt(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, measuring: bool) -> Dataset:
    writer = _Writer(spec, tokenizer, measuring=measuring)
    on_inputs = settings_of(spec).train_on_inputs and not measuring
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], **({START: [], "row": []} if measuring else {})}
    dropped = cut = 0
    for index, row in enumerate(rows):
        text, prompt = writer.prompt(row)
        response = writer.response(text, prompt, row["output"])
        response += [] if writer.end is None else [writer.end]
        tokens = [*prompt, *response][: spec.max_seq_length]
        labels = tokens if on_inputs else [*[IGNORED] * len(prompt), *response][: spec.max_seq_length]
        if all(label == IGNORED for label in labels[1:]):
            dropped += 1
            continue
        cut += len(tokens) < len(prompt) + len(response)
        columns["input_ids"].append(tokens)
        columns["labels"].append(labels)
        if measuring:
            columns[START].append(max(len(prompt), 1))
            columns["row"].append(index)
    if dropped:
        where = f"task {spec.task_name}: {dropped} of {len(rows)} rows"
        if dropped == len(rows):
            raise UserError(f"{where} have a prompt of {spec.max_seq_length} tokens or more; raise --max_seq_length")
        warn(f"{where} are left out, as their prompt alone has {spec.max_seq_length} tokens or more")
    if cut:
        warn(
            f"task {spec.task_name}: the responses of {cut} of {len(rows)} rows are cut; with prompt and end they have "
            f"more than {spec.max_seq_length} tokens (--max_seq_length)"
        )
    return _dataset(columns)


def _dataset(columns: dict[str, list[Any]]) -> Dataset:
    """Return features: lists of tokens, ``attention_mask`` and ``length``."""
    from datasets import Dataset, Features, List, Value

    lengths = [len(ids) for ids in columns["input_ids"]]
    whole = {**columns, "attention_mask": [np.ones(length, np.int8) for length in lengths], "length": lengths}
    lists = ("input_ids", "labels", CANDIDATES, "choices")
    types: dict[str, Any] = {name: List(Value("int32")) if name in lists else Value("int32") for name in columns}
    types |= {"attention_mask": List(Value("int8")), "length": Value("int32")}
    return Dataset.from_dict(whole, features=Features(types))


def _corpus(spec: Task, rows: Dataset) -> Iterator[str]:
    style = prompting(settings_of(spec).prompt_style).style(spec.task_name, measuring=False)
    return (style.prompt(row["instruction"], row["input"]) + row["output"] for row in rows)


def _probes(spec: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return what a model is measured with: prompts, prompts with the choices, or prompts with the responses."""
    way = settings_of(spec).evaluate_by
    if way == LOSS:
        return _learnt(spec, rows, tokenizer, measuring=True)
    writer, groups = _Writer(spec, tokenizer, measuring=True), _groups(rows)
    if way == GENERATE:
        return _dataset({"input_ids": [writer.prompt(row)[1] for row in rows], GROUP: groups})
    return _scored(spec, rows, writer, groups)


def _groups(rows: Dataset) -> list[int]:
    """Return a number a row, the same for those of a data set, which puts all its questions alike."""
    numbers = {source: number for number, source in enumerate(dict.fromkeys(rows["source"]))}
    return [numbers[source] for source in rows["source"]]


def _scored(spec: Task, rows: Dataset, writer: _Writer, row_groups: Sequence[int]) -> Dataset:
    """Return prompts with all of a choice but its last token; choices that differ in that one share a feature.

    ``row`` and its ``group``; ``start``, from where on the tokens are those of the choice; ``candidates``, last tokens,
    and the ``choices`` that they complete.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "row", START, GROUP, CANDIDATES, "choices")}
    for index, (row, rule) in enumerate(zip(rows, _rules(rows), strict=True)):
        names = rule.choices(row["instruction"])
        if not names:
            raise UserError(
                f"task {spec.task_name}: row {row_names(rows)[index]} asks for {row['answer']!r}, which is no choice; "
                "use --evaluate_by generate or loss"
            )
        text, prompt = writer.prompt(row)
        head = _head(row, rule)
        said = [writer.response(text, prompt, head + name) for name in names]
        shared = _shared(said)
        groups: dict[tuple[int, ...], list[int]] = {}
        for choice, tokens in enumerate(said):
            groups.setdefault(tuple(tokens[:-1]), []).append(choice)
        for begun, choices in groups.items():
            columns["input_ids"].append([*prompt, *begun])
            columns["row"].append(index)
            columns[GROUP].append(row_groups[index])
            columns[START].append(len(prompt) + shared)
            columns[CANDIDATES].append([said[choice][-1] for choice in choices])
            columns["choices"].append(choices)
    return _dataset(columns)


def _head(row: Mapping[str, str], rule: Rule) -> str:
    """Return what a response says before its answer: as the row's own, if that comes to the point."""
    before, found, _ = row["output"].rpartition(row["answer"])
    if found and isinstance(rule, Choice | Letter) and len(before.split()) <= _MOST_HEAD_WORDS:
        return before
    return _HEAD


def _shared(said: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all choices begin with, at least one being left of each."""
    most = min(map(len, said)) - 1
    return next((place for place in range(most) if len({tokens[place] for tokens in said}) > 1), most)


def _reduce(logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As of any text; and ``candidates`` [batch, candidates]: the loss of each that may come last, -100 of none.

    The logits may be those of the last tokens only: before a row's start nothing counts.
    """
    import torch

    rows, seen = logits.shape[:2]
    before = batch["input_ids"].shape[1] - seen
    starts = batch[START].tolist() if START in batch else [1] * rows
    found = next_token.foretell(logits, batch["input_ids"][:, before:], [start - before for start in starts])
    found = {name: torch.nn.functional.pad(tensor, (before, 0)) for name, tensor in found.items()}
    wanted = batch.get(CANDIDATES, torch.zeros((rows, 0), dtype=torch.int64)).to(logits.device)
    ends = batch["attention_mask"].to(logits.device).cumsum(dim=1).argmax(dim=1) - before
    last = torch.log_softmax(logits[torch.arange(rows, device=logits.device), ends].float(), dim=-1)
    found[CANDIDATES] = (-last.gather(1, wanted.clamp(min=0))).masked_fill(wanted == IGNORED, IGNORED)
    return found


_LOGITS = Output(
    "logits",
    f"{TOKENS} {VOCABULARY}",
    Reduction(
        _reduce,
        (*next_token.KEPT, Output(CANDIDATES, LABELS)),
        (CANDIDATES, START),
        START,
    ),
    ahead=1,
)


# -- predictions and metrics -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model answers a row.

    Attributes
    ----------
    answer
        None if it gives none.
    text
        What it wrote, if it wrote.
    by_length
        The choice whose log-likelihood is the greatest for the length of its name, if it was scored.
    """

    answer: str | None
    text: str | None = None
    by_length: str | None = None


def _decode(spec: Task, outputs: Outputs, rows: Dataset, features: Dataset) -> Sequence[Answered | Foretold]:
    way = settings_of(spec).evaluate_by
    if way == LOSS:
        return foretold(outputs, features["labels"], places=features["row"])
    if way == SCORE:
        return _likeliest(outputs, rows, features)
    said = [text_of(array) for array in outputs[TEXT]]
    return [Answered(rule.find(response_of(text)), text) for rule, text in zip(_rules(rows), said, strict=True)]


def _likeliest(outputs: Outputs, rows: Dataset, features: Dataset) -> list[Answered]:
    names = [rule.choices(text) for rule, text in zip(_rules(rows), rows["instruction"], strict=True)]
    losses = [np.full(len(each), np.inf) for each in names]
    parts = zip(
        features["row"], features[START], features["choices"], outputs[next_token.LOSS], outputs[CANDIDATES],
        strict=True,
    )  # fmt: skip
    for row, start, choices, loss, last in parts:
        losses[row][choices] = loss[start:].sum() + last[: len(choices)]
    found = []
    for each, loss in zip(names, losses, strict=True):
        lengths = np.array([len(name) for name in each])
        found.append(Answered(each[int(loss.argmin())], by_length=each[int((loss / lengths).argmin())]))
    return found


def _measure(spec: Task, predictions: Sequence[Any], rows: Dataset) -> dict[str, float]:
    """Return ``accuracy`` over all rows, ``average`` of the data sets' own, each of these, and of scores by length."""
    way = settings_of(spec).evaluate_by
    if way == LOSS:
        return measure_foretold(predictions)
    found = _right(predictions, rows, [each.answer for each in predictions])
    metrics = {"accuracy": float(found.mean())}
    sources = np.array([source or "unnamed" for source in rows["source"]])
    each = {str(name): float(found[sources == name].mean()) for name in dict.fromkeys(sources.tolist())}
    metrics["average"] = sum(each.values()) / len(each)
    if way == SCORE:
        metrics["accuracy_norm"] = float(_right(predictions, rows, [each.by_length for each in predictions]).mean())
    if len(each) > 1:
        metrics |= {f"accuracy_{name}": value for name, value in each.items()}
    return metrics


def _right(predictions: Sequence[Answered], rows: Dataset, answers: Sequence[str | None]) -> np.ndarray:
    triples = zip(_rules(rows), answers, rows["answer"], strict=True)
    return np.array([answer is not None and rule.same(answer, right) for rule, answer, right in triples])


def _show(spec: Task, predictions: Sequence[Any], rows: Dataset) -> list[dict[str, Any]]:
    names = row_names(rows)
    if settings_of(spec).evaluate_by == LOSS:
        return show_foretold(predictions, names)
    right = _right(predictions, rows, [each.answer for each in predictions])
    entries = []
    for name, each, source, answer, is_right in zip(
        names, predictions, rows["source"], rows["answer"], right.tolist(), strict=True
    ):
        entry = {"index": name, "prediction": each.answer, "answer": answer, "right": is_right}
        entry |= {"source": source} if source else {}
        entries.append(entry | ({} if each.text is None else {"text": each.text}))
    return entries


def _generation(spec: Task) -> Generation | None:
    settings = settings_of(spec)
    return Generation(settings.max_new_tokens, settings.num_beams) if settings.evaluate_by == GENERATE else None


INSTRUCTIONS = Kind(
    head=next_token.HEAD,
    outputs=(_LOGITS,),
    targets=("labels",),
    check=_check,
    num_labels=lambda spec: 0,
    metrics=_metrics,
    usual_metrics=("accuracy", "average"),
    rows=_rows,
    is_labelled=lambda spec, label: label not in (None, ""),
    features=_features,
    decode=_decode,
    measure=_measure,
    show=_show,
    optional_columns=OPTIONAL_COLUMNS,
    less_is_better=next_token.LESS_IS_BETTER,
    means=("accuracy", "accuracy_norm"),
    causal=True,
    read=_read,
    probes=_probes,
    generation=_generation,
    corpus=_corpus,
)
