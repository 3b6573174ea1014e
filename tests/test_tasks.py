"""Tasks: loading, tokens, batches, metrics and the built-in text."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootstrapnas.errors import UserError
from bootstrapnas.tasks import (
    TaskSpec,
    batches,
    build_collator,
    build_task_spec,
    builtin_text,
    compute_metrics,
    export_builtin,
    load_task,
    predictions,
    tfidf_baseline,
    tokenize,
    why_no_rows,
    write_predictions,
)
from bootstrapnas.tasks.files import ROW, row_names
from bootstrapnas.tasks.instructions import Answered
from bootstrapnas.tasks.known import KNOWN
from bootstrapnas.tasks.labels import infer_labels
from bootstrapnas.tasks.metrics import METRICS
from bootstrapnas.tasks.next_token import Foretold

GLUE = [name for name, known in KNOWN.items() if known.hub[:1] == ("nyu-mll/glue",)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    train = [{"text": f"row {i}", "label": ["neg", "pos"][i % 2]} for i in range(20)]
    return {
        "train_file": write_rows(tmp_path / "train.jsonl", train),
        "validation_file": write_rows(tmp_path / "validation.jsonl", train[:5]),
    }


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


# -- GLUE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_name", sorted(GLUE))
@pytest.mark.parametrize("below", [True, False], ids=["subdirectory", "directory"])
def test_glue_task_loads_from_a_directory(task_name: str, below: bool, tmp_path: Path) -> None:
    glue = KNOWN[task_name]
    labels = list(range(len(glue.label_names))) or [0.5, 5.0]
    rows = [{c: f"{c} {i}" for c in glue.text_columns} | {"label": label, "idx": i} for i, label in enumerate(labels)]
    directory = tmp_path / task_name if below else tmp_path
    write_rows(directory / "train.jsonl.gz", rows)
    write_rows(directory / ("validation_matched.jsonl" if task_name == "mnli" else "validation.jsonl"), rows[::-1])

    spec = build_task_spec(task_name, dataset_dir=tmp_path)
    data = load_task(spec)

    assert spec.metric == glue.metrics[0]
    assert spec.max_seq_length == 128
    assert spec.num_labels == (len(glue.label_names) or 1)
    assert data.train.column_names == [*["text_a", "text_b"][: len(glue.text_columns)], "label", ROW]
    assert list(data.train["label"]) == labels
    assert list(data.validation["label"]) == labels[::-1]
    assert data.train[1]["text_a"] == f"{glue.text_columns[0]} 1"
    assert data.test is None
    assert data.validation_mismatched is None


def test_mnli_keeps_the_mismatched_rows_apart(tmp_path: Path) -> None:
    for name, label in (("train", 0), ("validation_matched", 1), ("validation_mismatched", 2)):
        write_rows(tmp_path / f"{name}.jsonl", [{"premise": "p", "hypothesis": "h", "label": label}])
    data = load_task(build_task_spec("mnli", dataset_dir=tmp_path))
    assert data.validation[0]["label"] == 1
    assert data.validation_mismatched is not None
    assert data.validation_mismatched[0]["label"] == 2


def test_a_split_that_is_not_there_is_told_by_its_file(tmp_path: Path) -> None:
    for name, label in (("train", 0), ("validation_matched", 1), ("test", -1)):
        write_rows(tmp_path / f"{name}.jsonl", [{"premise": "p", "hypothesis": "h", "label": label}])
    spec = build_task_spec("mnli", dataset_dir=tmp_path)
    assert why_no_rows(spec, "validation_mismatched") == (
        f"{tmp_path} holds no mnli/validation_mismatched.jsonl: there is no split 'validation_mismatched'"
    )
    assert why_no_rows(spec, "test") == f"no row of {tmp_path / 'test.jsonl'} has a label"


def test_imdb_holds_a_tenth_of_its_training_rows_out(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("test", 3)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name} {row}", "label": row % 2} for row in range(count)])
    spec = build_task_spec("imdb", dataset_dir=tmp_path)
    data = load_task(spec)
    train, validation = (list(split["text_a"]) for split in (data.train, data.validation))
    assert len(validation) == 4
    assert sorted(train + validation) == sorted(f"train {row}" for row in range(40))
    for split in (data.train, data.validation):
        assert [f"train {row}" for row in row_names(split)] == list(split["text_a"])
    assert data.test is not None
    assert list(data.test["text_a"]) == ["test 0", "test 1", "test 2"]
    other = load_task(build_task_spec("imdb", dataset_dir=tmp_path, max_train_samples=5))
    assert list(other.validation["text_a"]) == validation
    assert set(other.train["text_a"]) < set(train)


@pytest.mark.parametrize(
    ("task", "limits", "row"),
    [
        ("sst2", {"max_train_samples": 3}, {"sentence": "s"}),
        ("stsb", {"max_train_samples": 3}, {"sentence1": "s", "sentence2": "t"}),
        ("math", {"val_set_size": 3}, {"instruction": "i", "output": "o", "source": "gsm8k"}),
        ("squad", {"max_train_samples": 3}, {"question": "q", "context": "c"}),
    ],
)
def test_a_message_numbers_rows_as_their_file_does(
    task: str, limits: dict[str, int], row: dict[str, str], tmp_path: Path
) -> None:
    """Also where only some rows of it were taken."""
    label = KNOWN[task].label_column
    rows = [{**row, "id": str(number), label: f"bad {number}"} for number in range(40)]
    spec = build_task_spec(task, dataset_dir=tmp_path, **limits)
    write_rows(tmp_path / "train.jsonl", rows)
    if "val_set_size" not in limits:
        write_rows(tmp_path / "validation.jsonl", rows)
    with pytest.raises(UserError, match=r"row (\d+).* 'bad \1'"):
        load_task(spec)


@pytest.mark.parametrize(
    ("task", "row", "label", "column", "said"),
    [
        ("sst2", {"sentence": "{}"}, 1, "text_a", 1),
        ("stsb", {"sentence1": "{}", "sentence2": "t"}, 0.5, "text_a", 0.5),
        ("conll2003", {"tokens": ["{}"]}, ["O"], "words", [0]),
        ("squad", {"question": "{}", "context": "c"}, {"text": ["c"], "answer_start": [0]}, "question", "c"),
        ("math", {"instruction": "{}", "output": "o", "source": "gsm8k"}, "4", "instruction", Answered("4")),
        ("sft", {"instruction": "{}", "output": "o"}, None, "instruction", Foretold(1.0, 1.0, 1)),
    ],
)
def test_predictions_number_rows_as_their_file_does(
    task: str, row: dict[str, Any], label: Any, column: str, said: Any, tmp_path: Path
) -> None:
    """Also where only some rows of it were taken."""
    text = json.dumps({**row, KNOWN[task].label_column: label})
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", [json.loads(text.replace("{}", str(number))) for number in range(40)])
    spec = build_task_spec(task, dataset_dir=tmp_path, max_validation_samples=5)
    rows = load_task(spec).validation
    assert rows is not None
    texts = [value if isinstance(value, str) else value[0] for value in rows[column]]
    entries = spec.kind.show(spec, [said] * 5, rows)
    assert [str(entry["index"]) for entry in entries] == texts != [str(number) for number in range(5)]


def test_a_message_names_the_file_of_a_part(tmp_path: Path) -> None:
    rows = [{"instruction": "i", "input": "", "output": "o", "answer": str(number)} for number in range(3)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "gsm8k" / "test.jsonl", rows)
    path = write_rows(tmp_path / "mawps" / "test.jsonl", [*rows, {**rows[0], "answer": "many"}])
    with pytest.raises(UserError, match=f"row 3 of {path} has the answer 'many', which is none of the data set mawps"):
        load_task(build_task_spec("math", dataset_dir=tmp_path, val_set_size=1))


def test_labels_may_be_names_and_unlabelled_test_rows_are_dropped(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"sentence": "s", "label": "positive"}, {"sentence": "t", "label": 0}])
    write_rows(tmp_path / "validation.jsonl", [{"sentence": "s", "label": 1}])
    write_rows(tmp_path / "test.jsonl", [{"sentence": "s", "label": -1}, {"sentence": "kept", "label": 1}])
    data = load_task(build_task_spec("sst2", dataset_dir=tmp_path))
    assert list(data.train["label"]) == [1, 0]
    assert data.test is not None
    assert list(data.test["text_a"]) == ["kept"]
    assert row_names(data.test) == [1]

    write_rows(tmp_path / "test.jsonl", [{"sentence": "s", "label": -1}])
    assert load_task(build_task_spec("sst2", dataset_dir=tmp_path)).test is None


def test_hub_out_of_reach_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: str) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"--dataset_dir DIR .*--train_file"):
        load_task(build_task_spec("rte"))


def test_hub_splits_map_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def split(label: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"premise": ["p"], "hypothesis": ["h"], "label": [label], "idx": [0]})

    hub = {"train": split(0), "validation_matched": split(1), "validation_mismatched": split(2)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: hub | {"test_matched": split(-1)})
    data = load_task(build_task_spec("mnli"))
    assert data.validation_mismatched is not None
    assert [data.train[0]["label"], data.validation[0]["label"], data.validation_mismatched[0]["label"]] == [0, 1, 2]
    assert data.test is None


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_of_jsonl_and_csv_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"sentence1": "a, b", "sentence2": f"c {i}", "label": [10, 9, 100][i % 3]} for i in range(6)]
    jsonl = write_rows(tmp_path / "rows.jsonl", rows)
    csv = tmp_path / "rows.csv"
    csv.write_text("sentence1,sentence2,label\n" + "".join(f'"a, b",{r["sentence2"]},{r["label"]}\n' for r in rows))
    loaded = []
    for path in (jsonl, csv):
        spec = build_task_spec(train_file=path, validation_file=path)
        assert spec.task_name == "files"
        assert spec.text_columns == ("sentence1", "sentence2")
        assert spec.label_names == ("9", "10", "100")
        loaded.append(load_task(spec).train.to_list())
    assert loaded[0] == loaded[1]
    assert loaded[0][0] == {"text_a": "a, b", "text_b": "c 0", "label": 1, ROW: 0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b"], ("single_label_classification", ("a", "b"))),
        ([10, 2, 10], ("single_label_classification", ("2", "10"))),
        (["-1", "1"], ("single_label_classification", ("-1", "1"))),
        ([1.0, 0.0], ("single_label_classification", ("0", "1"))),
        ([True, False], ("single_label_classification", ("false", "true"))),
        ([0.5, 1.0, 2.0], ("regression", ())),
        (["0.5", "1"], ("regression", ())),
        ([float(i) for i in range(40)], ("regression", ())),
        (list(range(40)), ("single_label_classification", tuple(str(i) for i in range(40)))),
    ],
)
def test_labels_tell_classes_from_numbers(values: list[Any], expected: tuple[str, tuple[str, ...]]) -> None:
    assert infer_labels(values, "file") == expected


def test_regression_of_whole_numbers_has_to_be_asked_for(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "stars.jsonl", [{"text": "t", "label": i} for i in (1, 5)])
    spec = build_task_spec(train_file=path, validation_file=path, problem_type="regression")
    assert (spec.num_labels, spec.metric) == (1, "pearson")
    data = load_task(spec)
    assert data.train.features["label"].dtype == "float32"
    assert list(data.train["label"]) == [1.0, 5.0]


def test_minus_one_stays_a_class_or_a_number_in_files(tmp_path: Path) -> None:
    for other in (1, 0.5):
        path = write_rows(tmp_path / "rows.jsonl", [{"text": "t", "label": label} for label in (-1, other)])
        data = load_task(build_task_spec(train_file=path, validation_file=path, test_file=path))
        assert data.test is not None
        assert len(data.test) == 2


def test_samples_are_a_seeded_subset_in_order(files: dict[str, Path]) -> None:
    def texts(seed: int) -> list[str]:
        spec = build_task_spec(**files, max_train_samples=7, max_validation_samples=2, seed=seed)
        data = load_task(spec)
        assert len(data.validation) == 2
        return list(data.train["text_a"])

    assert texts(0) == texts(0) != texts(1)
    assert len(texts(0)) == 7
    numbers = [int(text.split()[1]) for text in texts(0)]
    assert numbers == sorted(numbers)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_name": "sst"}, r"unknown task 'sst'; did you mean 'sst2'\?"),
        ({"task_name": "MRPC"}, r"did you mean 'mrpc'\?"),
        ({}, r"no task: pass --task_name .* or --train_file"),
        ({"task_name": "files"}, "needs --train_file"),
        ({"task_name": "rte", "train_file": "x.jsonl"}, "--train_file is for the task files"),
        ({"task_name": "rte", "dataset_dir": "/nowhere"}, "dataset_dir /nowhere does not exist"),
        (
            {"task_name": "rte", "metric": "acuracy"},
            r"rte has no metric 'acuracy'; did you mean 'accuracy'\?; it has: acc",
        ),
        ({"task_name": "mnli", "metric": "f1"}, r"mnli has no metric 'f1'.*; it has: accuracy, macro_f1, matthews"),
        ({"task_name": "stsb", "metric": "eval_f1"}, r"stsb has no metric 'eval_f1'; it has: pearson, spearmanr"),
        ({"task_name": "rte", "max_seq_length": 0}, "max_seq_length must be positive, not 0"),
    ],
)
def test_mistakes_in_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_task_spec(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        (
            "a.jsonl",
            '{"text": "t", "labels": 1}',
            {},
            r"a.jsonl has no column 'label' .*'labels'\?; found: text, labels",
        ),
        ("a.jsonl", '{"txt": "t", "label": 1}', {}, r"no column 'text' .* found: txt, label; did you mean 'text'\?"),
        ("a.jsonl", '{"text": "t", "label": 1}', {"text_columns": ["txt"]}, r"no column 'txt' .*mean 'text'\?"),
        ("a.jsonl", '{"text": "t", "label": 1}\n{"text"', {}, "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": "t", "label": 1}\n{"text": "u"}', {}, r"no column 'label' \(line 2\)"),
        ("a.jsonl", "[1]", {}, "line 1: expected a JSON object, found list"),
        ("a.jsonl", "\n", {}, "a.jsonl holds no rows"),
        ("a.jsonl", '{"text": "t", "label": null}', {}, "row 0 has no label"),
        ("a.jsonl", '{"text": "t", "label": 1}', {}, r"needs two classes or more, it has \['1'\]"),
        ("a.jsonl", '{"text": "t", "label": "x"}', {"problem_type": "regression"}, "label 'x' is no number"),
        ("a.csv", "text,label\nt\n", {}, "a.csv, line 2: the row has not the 2 fields"),
        ("a.csv", "text,label\nt,1,2\n", {}, "a.csv, line 2: the row has not the 2 fields"),
        ("a.parquet", "", {}, r"a.parquet: unknown kind of data file; give one of .jsonl"),
        ("a.jsonl.gz", "no gzip", {}, "cannot read .*a.jsonl.gz"),
    ],
)
def test_mistakes_in_files(name: str, content: str, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        build_task_spec(train_file=path, validation_file=path, **arguments)
    assert "\n" not in str(caught.value)


def test_a_directory_is_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory, not a data file; --dataset_dir takes a directory of them"):
        build_task_spec(train_file=tmp_path, validation_file=tmp_path)


def test_mistakes_that_show_when_loading(files: dict[str, Path], tmp_path: Path) -> None:
    for row, message in (
        ({"text": "t", "label": "Pos"}, r"row 0 has the label 'Pos', .* neg, pos; did you mean 'pos'\?"),
        ({"text": None, "label": "pos"}, "row 0 has no text in column 'text', but None"),
        ({"text": "t", "label": 0}, "none of the classes"),  # indices are for GLUE's own files
    ):
        files["validation_file"] = write_rows(tmp_path / "other.jsonl", [row])
        with pytest.raises(UserError, match=message):
            load_task(build_task_spec(**files))
    with pytest.raises(UserError, match=r"missing.jsonl does not exist"):
        load_task(build_task_spec(train_file=files["train_file"], validation_file=tmp_path / "missing.jsonl"))


def test_directory_without_a_split_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "sst2" / "train.jsonl", [{"sentence": "s", "label": 1}])
    with pytest.raises(UserError, match=r"holds no validation.jsonl of the task sst2"):
        load_task(build_task_spec("sst2", dataset_dir=tmp_path))


# -- task.json ---------------------------------------------------------------------------------------------------------


def test_spec_survives_its_file_with_absolute_paths(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = build_task_spec(train_file="train.jsonl", validation_file="validation.jsonl", max_train_samples=3)
    assert spec.train_file == str(files["train_file"])
    spec.save(tmp_path / "task.json")
    assert TaskSpec.load(tmp_path / "task.json") == spec


def test_task_of_files_takes_no_directory(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it takes no dataset_dir"):
        dataclasses.replace(build_task_spec(**files), dataset_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrc": "f1"}, r"task.json: unknown key 'metrc'; did you mean 'metric'\?"),
        ({"format": 99}, "format 99"),
        ({"max_seq_length": "64"}, "task.json: max_seq_length: "),
        ({"label_names": [1, 2]}, "task.json: label_names.0: "),
        ({"problem_type": "ranking"}, "task.json: problem_type: "),
        ({"metric": None}, "task.json: metric: "),
    ],
)
def test_mistakes_in_task_json(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    build_task_spec("rte").save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        TaskSpec.load(path)


def test_task_json_without_a_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"format": 1, "task_name": "rte"}))
    with pytest.raises(UserError, match=r"task.json: text_columns: .*required"):
        TaskSpec.load(path)


# -- tokens and batches ------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[TaskSpec, Any]:
    texts = [("a", "b"), ("a b c d e", "a b c d e"), ("a b", "c"), ("a", "b c d e")]
    rows = [{"sentence1": a, "sentence2": b, "label": i % 2} for i, (a, b) in enumerate(texts)]
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", rows)
    spec = build_task_spec("rte", dataset_dir=tmp_path, max_seq_length=9)
    return spec, load_task(spec).train


def test_tokenize_cuts_and_does_not_pad(pairs: tuple[TaskSpec, Any], tokenizer: Any) -> None:
    spec, rows = pairs
    tokens = tokenize(rows, tokenizer, spec)
    assert set(tokens.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels", "length"}
    assert list(tokens["length"]) == [5, 9, 6, 8]
    assert tokens[0]["input_ids"] == [2, 4, 3, 5, 3]
    assert tokens[0]["token_type_ids"] == [0, 0, 0, 1, 1]
    assert list(tokens["labels"]) == [0, 1, 0, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collator_pads_to_the_batch(side: str, pairs: tuple[TaskSpec, Any], tokenizer: Any) -> None:
    import torch

    spec, rows = pairs
    tokens = tokenize(rows, tokenizer, spec)
    tokenizer.padding_side = side
    batch = build_collator(tokenizer, spec)([tokens[0], tokens[2]])
    wide = build_collator(tokenizer, spec, multiple_of=8)([tokens[0] | {"teacher_logits": [0.5, -1]}, tokens[1]][:1])
    tokenizer.padding_side = "right"

    assert batch["input_ids"].tolist()[0] == ([2, 4, 3, 5, 3, 0] if side == "right" else [0, 2, 4, 3, 5, 3])
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 6]
    assert batch["labels"].dtype == torch.int64
    assert "length" not in batch
    assert wide["input_ids"].shape == (1, 8)
    assert wide["teacher_logits"].dtype == torch.float32
    assert wide["teacher_logits"].tolist() == [[0.5, -1.0]]


def test_regression_labels_are_floats(tmp_path: Path, tokenizer: Any) -> None:
    import torch

    path = write_rows(tmp_path / "r.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 2.5}])
    spec = build_task_spec(train_file=path, validation_file=path)
    (batch,) = batches(tokenize(load_task(spec).train, tokenizer, spec), build_collator(tokenizer, spec), 8)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [1.0, 2.5]


def test_batches_are_sorted_and_know_their_rows(pairs: tuple[TaskSpec, Any], tokenizer: Any) -> None:
    spec, rows = pairs
    tokens = tokenize(rows, tokenizer, spec)
    found = list(batches(tokens, build_collator(tokenizer, spec), batch_size=3))
    assert [batch["index"].tolist() for batch in found] == [[1, 3, 2], [0]]
    assert [batch["input_ids"].shape[1] for batch in found] == [9, 5]
    for batch in found:
        for index, ids, mask in zip(batch["index"], batch["input_ids"], batch["attention_mask"], strict=True):
            assert ids[mask.bool()].tolist() == tokens[int(index)]["input_ids"]


def test_trainer_takes_the_lengths_and_drops_nothing_it_needs(pairs: tuple[TaskSpec, Any], tokenizer: Any) -> None:
    from transformers.trainer_pt_utils import LengthGroupedSampler

    spec, rows = pairs
    tokens = tokenize(rows, tokenizer, spec)
    sampler = LengthGroupedSampler(2, dataset=tokens, lengths=tokens["length"])
    assert sorted(sampler) == [0, 1, 2, 3]


def test_tokenizer_without_padding_token_is_refused(tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no padding token"):
        build_collator(bare, build_task_spec("rte"))


# -- metrics -----------------------------------------------------------------------------------------------------------


def logits_of(classes: list[int], num_labels: int) -> np.ndarray:
    return np.eye(num_labels)[classes]


def measured(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from datasets import Dataset

    rows = Dataset.from_dict({"label": labels})
    return compute_metrics(spec, {"logits": list(logits)}, rows, rows)


def test_metrics_of_classes_by_hand(tmp_path: Path) -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    labels = np.array([1] * 5 + [0] * 5)
    logits = logits_of([1, 1, 1, 0, 0, 1, 0, 0, 0, 0], 2)
    mrpc = measured(build_task_spec("mrpc"), logits, labels)
    assert list(mrpc) == ["f1", "accuracy"]
    assert mrpc["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert mrpc["accuracy"] == pytest.approx(0.7)
    cola = measured(build_task_spec("cola"), logits, labels)
    assert cola["matthews_correlation"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    chosen = measured(build_task_spec("rte", metric="macro_f1"), logits, labels)
    assert chosen["macro_f1"] == pytest.approx((2 / 3 + 8 / 11) / 2)


def test_metrics_of_numbers_by_hand() -> None:
    found = measured(build_task_spec("stsb"), np.array([[1.0], [2.0], [9.0]]), np.array([1.0, 3.0, 2.0]))
    assert found["pearson"] == pytest.approx(1 / math.sqrt(38 * 2))
    assert found["spearmanr"] == pytest.approx(0.5)


def test_undefined_correlations_count_as_nothing() -> None:
    labels = np.array([0.0, 1.0])
    assert measured(build_task_spec("stsb"), np.ones((2, 1)), labels) == {"pearson": 0.0, "spearmanr": 0.0}
    assert measured(build_task_spec("cola"), logits_of([1, 1], 2), labels)["matthews_correlation"] == 0.0
    assert measured(build_task_spec("mrpc"), logits_of([0, 0], 2), labels)["f1"] == 0.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2), "do not fit 2 outputs"),
        (np.zeros((2, 2)), np.zeros(3), "do not fit predictions"),
        (np.zeros((0, 2)), np.zeros(0), "empty"),
        (np.full((2, 2), np.nan), np.zeros(2), "NaN"),
    ],
)
def test_metrics_refuse_what_does_not_fit(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(build_task_spec("rte"), logits, labels)


def test_every_metric_fits_some_task() -> None:
    for metric in METRICS.values():
        assert metric.fits(1) != metric.fits(2)


def test_predictions_are_names_or_numbers(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"label": [0, 0]})
    found = predictions(build_task_spec("mnli"), {"logits": list(logits_of([2, 0], 3))}, rows, rows)
    assert [row["prediction"] for row in found] == ["contradiction", "entailment"]
    write_predictions(tmp_path / "p.jsonl", build_task_spec("stsb"), {"logits": [np.array([0.5]), 2.0]}, rows, rows)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert lines == [{"index": 0, "prediction": 0.5}, {"index": 1, "prediction": 2.0}]


def test_metric_is_found_by_nncfs_name() -> None:
    assert build_task_spec("cola").metric_named("eval_matthews_correlation") == "matthews_correlation"
    assert build_task_spec("mrpc", metric="eval_accuracy").metric == "accuracy"
    assert build_task_spec("mrpc", metric="eval_accuracy").reported_metrics == ("accuracy", "f1")


# -- the built-in text -------------------------------------------------------------------------------------------------

TOPICS = {
    "red": "graph node edge path",
    "green": "matrix vector norm",
    "blue": "token model layer",
    "grey": "axis plot",
}


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    """Return four small packages of documented functions; nothing in them may be imported."""
    rng = np.random.default_rng(0)
    filler = [f"w{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]
    found = {}
    for label, topic in TOPICS.items():
        found[label] = tmp_path / "site" / label
        (found[label] / "tests").mkdir(parents=True)
        for module in range(12):
            text = ['raise ImportError("this must not be run")']
            for name in ("first", "second", "_private"):
                words = [*rng.choice(filler, 20), *rng.choice(topic.split(), 10), "numpy", "np.sum", "PyTorch"]
                text.append(f'def {name}():\n    """{" ".join(rng.permutation(words))} of module {module} {name}."""\n')
            (found[label] / f"m{module}.py").write_text("\n".join(text))
        (found[label] / "tests" / "test_it.py").write_text((found[label] / "m0.py").read_text())
        (found[label] / "broken.py").write_text("def f(:")
    return found


def test_scan_is_masked_split_by_module_and_the_same_each_time(packages: dict[str, Path]) -> None:
    caps = {"train": 12, "validation": 4, "test": 4}
    rows = builtin_text.scan(packages, caps)
    assert rows == builtin_text.scan(dict(reversed(packages.items())), caps)
    assert {split: len(found) for split, found in rows.items()} == {"train": 48, "validation": 16, "test": 16}

    modules = {}
    for split, found in rows.items():
        modules[split] = {(row["label"], row["text"].split()[-2]) for row in found}
        for row in found:
            assert not {"numpy", "np", "pytorch"} & set(row["text"].lower().replace(".", " ").split())
            assert not row["text"].endswith("_private.")
            assert 20 <= len(row["text"].split()) <= 48
    texts = [row["text"] for found in rows.values() for row in found]
    assert len(set(texts)) == len(texts)
    assert len(modules["train"] | modules["validation"] | modules["test"]) == sum(map(len, modules.values()))


def test_near_copies_are_kept_once(tmp_path: Path) -> None:
    words = [f"word{chr(97 + i)}" for i in range(26)]
    for name, last in (("a", "one"), ("b", "two")):
        (tmp_path / f"{name}.py").write_text(f'"""{" ".join(words)} {last}."""')
    rows = builtin_text.scan({"label": tmp_path}, {"train": 5, "test": 5})
    assert sum(len(found) for found in rows.values()) == 1


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("{20}\n\nParameters\n----------\nx : int", "{20}"),
        ("{20}\n\nArgs:\n    x: a number", "{20}"),
        ("{20}\n:param x: a number", "{20}"),
        ("{20}\n\n>>> f(1)", "{20}"),
        ("Title\n=====\n\n{20}", "{20}"),
        ("{20}\n\n    code = 1\n\nmore words", "{20} more words"),
        ("See :class:`~torch.nn.Linear` and ``np.add``. {20}", "See package.nn.Linear and package.add. {20}"),
        ("From `the site <https://x.org>`_, https://y.org. {20}", "From the site, {20}"),
        (
            "The torch_dtype of scikit-learn, Hugging Face and pd. {20}",
            "The package of package, package and package. {20}",
        ),
        ("{50}", "{48}"),
        ("{19}", None),
        ("x=1 " * 10 + "{20}", None),
    ],
)
def test_prose_of_a_docstring(docstring: str, expected: str | None) -> None:
    def fill(text: str) -> str:
        for count in (19, 20, 48, 50):
            text = text.replace(f"{{{count}}}", " ".join(["word"] * count))
        return text

    assert builtin_text.prose(fill(docstring)) == (None if expected is None else fill(expected))


def test_too_few_packages_are_refused() -> None:
    with pytest.raises(UserError, match=r"at least 4 of the packages .* installed: json"):
        builtin_text.find_packages(("json", "no_such_package_here"))


def test_exported_set_is_a_task_that_needs_no_packages(
    packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin_text, "find_packages", lambda: packages)
    assert build_task_spec("builtin-text").label_names == ("blue", "green", "grey", "red")
    directory = export_builtin(tmp_path / "data")

    def gone() -> None:
        raise AssertionError("the packages were scanned again")

    monkeypatch.setattr(builtin_text, "find_packages", gone)
    spec = build_task_spec("builtin-text", dataset_dir=directory)
    data = load_task(spec)
    assert spec.label_names == ("blue", "green", "grey", "red")
    assert data.test is not None
    assert len(data.train) > len(data.validation) > 0
    # The topics' words tell the packages apart; shuffled labels would give about a quarter.
    assert tfidf_baseline(data) > 0.6
    shuffled = data.train.remove_columns("label").add_column("label", list(np.roll(data.train["label"], 1)))
    assert tfidf_baseline(dataclasses.replace(data, train=shuffled)) < 0.6


def test_installed_packages_are_found_without_importing_them() -> None:
    code = (
        "import sys; from bootstrapnas.tasks import builtin_text, build_task_spec; "
        "found = builtin_text.find_packages(); build_task_spec('rte'); "
        "print(len(found), *sorted({'torch', 'transformers', 'datasets', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *imported = run.stdout.split()
    assert int(count) >= 4
    assert imported == []
