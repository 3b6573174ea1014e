"""Question answering: windows and their targets, answers from scores, SQuAD's metrics, and the pipeline end to end."""

from __future__ import annotations

import json
import random
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import eftnas, metrics_of, succeed, write_config
from conftest import FILLERS, SIGNALS
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrapnas.artefacts import read_json
from bootstrapnas.errors import UserError
from bootstrapnas.tasks import (
    TASK_FILE,
    AnswerSettings,
    TaskSpec,
    build_collator,
    build_task_spec,
    compute_metrics,
    load_task,
    predictions,
    tokenize,
    write_predictions,
)
from bootstrapnas.tasks.files import ROW, row_names
from bootstrapnas.tasks.question_answering import exact_and_f1

Answers = dict[str, list[Any]]


def answers(context: str, *texts: str) -> Answers:
    return {"text": list(texts), "answer_start": [context.index(text) for text in texts]}


def row(question: str, context: str, *texts: str, **more: Any) -> dict[str, Any]:
    return {"question": question, "context": context, "answers": answers(context, *texts), **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    return path


def spec_of(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> TaskSpec:
    path = write(tmp_path / "rows.jsonl", rows)
    return build_task_spec(**{"train_file": path, "validation_file": path, **changes})


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert_dir)


LONG = " ".join(FILLERS[:20]) + " red " + " ".join(FILLERS[20:35])


# -- what a task is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "negative"), [("squad", False), ("squadv1", False), ("squadv2", True)])
def test_squad_reads_hugging_faces_columns(name: str, negative: bool, tmp_path: Path) -> None:
    spec = build_task_spec(name)
    (tmp_path / spec.task_name).mkdir()
    for split in ("train", "validation"):
        write(tmp_path / spec.task_name / f"{split}.jsonl", [row("who", "a red dog", "red", id="x1", title="t")])
    spec = build_task_spec(name, dataset_dir=tmp_path)
    assert (spec.task_name, spec.max_seq_length, spec.metric) == ("squad_v2" if negative else "squad", 384, "f1")
    assert spec.answers == AnswerSettings(version_2_with_negative=negative)
    assert spec.answers.stride(384) == 128
    data = load_task(spec)
    assert data.train[0] == {
        "id": "x1", "question": "who", "context": "a red dog", "answers": ["red"], "start": 2, "end": 5, ROW: 0,
    }  # fmt: skip


def test_files_with_answers_are_told_from_others_and_survive_task_json(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, [row("who", "a red dog", "red")], answers={"doc_stride": 20}, metric="eval_exact_match")
    assert (spec.problem_type, spec.metric, spec.num_labels) == ("question_answering", "exact_match", 2)
    spec.save(tmp_path / TASK_FILE)
    assert TaskSpec.load(tmp_path / TASK_FILE) == spec
    renamed = [{"q": "who", "c": "a red dog", "a": [{"text": "red", "answer_start": 2}]}]
    other = spec_of(tmp_path, renamed, text_columns=["q", "c"], label_column="a")
    assert (
        load_task(other).train.to_list()
        == load_task(spec_of(tmp_path, [row("who", "a red dog", "red")])).train.to_list()
    )
    csv = tmp_path / "rows.csv"
    csv.write_text('question,context,answers\nwho,a red dog,"{""text"": [""red""], ""answer_start"": [2]}"\n')
    assert load_task(build_task_spec(train_file=csv, validation_file=csv)).train[0]["answers"] == ["red"]
    pairs = spec_of(tmp_path, [{"question": "q", "sentence": "s", "label": i} for i in (0, 1)])
    assert pairs.is_classification


def test_a_wrong_answer_start_is_mended_or_the_row_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = "red dog, red cat"
    rows = [
        {"question": "q", "context": context, "answers": {"text": ["red"], "answer_start": [start]}}
        for start in (0, 9, 7, 3, -5, 99, None)
    ]
    rows.append({"question": "q", "context": context, "answers": {"text": ["blue"], "answer_start": [0]}})
    rows.append({"question": "q", "context": context, "answers": {"text": ["blue", " cat "], "answer_start": [0, 12]}})
    data = load_task(spec_of(tmp_path, rows))
    assert list(data.train["start"]) == [0, 9, 9, 0, 0, 9, 0, 13]
    assert row_names(data.train) == [*range(7), 8]
    assert data.train["end"][7] == 16
    assert len(data.validation) == 9  # of which only the texts are compared
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "1 of 9 rows are left out, as their text does not hold their answer" in said


# -- windows -----------------------------------------------------------------------------------------------------------


def test_windows_cover_the_text_and_share_the_stride(tmp_path: Path, tokenizer: Any) -> None:
    spec = spec_of(tmp_path, [row("one", LONG, "red")], max_seq_length=24, answers={"doc_stride": 6})
    rows = load_task(spec).train
    found = tokenize(rows, tokenizer, spec)
    assert len(found) > 1
    assert max(found["length"]) == 24
    seen: list[list[int]] = [[start for start in window if start >= 0] for window in found["char_start"]]
    assert sorted({start for window in seen for start in window}) == sorted(
        start for start, _ in tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    )
    for before, after in pairwise(seen):
        assert before[-6:] == after[:6]
    for window in found:
        assert window["input_ids"][window["cls"]] == tokenizer.cls_token_id
        first, last = window["start_positions"], window["end_positions"]
        if first == window["cls"]:
            assert tokenizer.convert_tokens_to_ids("red") not in window["input_ids"]
        else:
            assert LONG[window["char_start"][first] : window["char_end"][last]] == "red"


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_answer_is_found_again_in_a_window_that_holds_it(
    data: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = data.draw(st.lists(st.sampled_from([*FILLERS, "xyz", "  red"]), min_size=3, max_size=40))
    first = data.draw(st.integers(0, len(words) - 1))
    text = " ".join(words[first : first + data.draw(st.integers(1, 3))])
    start = len(" ".join([*words[:first], ""]))
    context = " ".join(words)
    question = " ".join(data.draw(st.lists(st.sampled_from(FILLERS), min_size=1, max_size=60)))
    length = data.draw(st.integers(32, 64))
    rows = [{"question": question, "context": context, "answers": {"text": [text], "answer_start": [start]}}]
    spec = spec_of(tmp_path_factory.mktemp("rows"), rows, max_seq_length=length)
    features = tokenize(load_task(spec).train, tokenizer, spec)
    assert max(features["length"]) <= length
    found = [
        context[window["char_start"][window["start_positions"]] : window["char_end"][window["end_positions"]]]
        for window in features
        if window["start_positions"] != window["cls"]
    ]
    assert found  # answers of at most 9 tokens are shorter than what windows share
    assert set(found) == {text.strip()}


def test_a_tokenizer_that_pads_on_the_left_reads_the_text_first(tmp_path: Path, tiny_bert_dir: Path) -> None:
    from transformers import AutoTokenizer

    left = AutoTokenizer.from_pretrained(tiny_bert_dir, padding_side="left")
    spec = spec_of(tmp_path, [row("one two", "a red dog", "red")])
    (window,) = tokenize(load_task(spec).train, left, spec)
    assert left.decode(window["input_ids"]) == "[CLS] a red dog [SEP] one two [SEP]"
    assert window["start_positions"] == window["end_positions"] == 2
    batch = build_collator(left, spec)(
        [window | {"teacher_start_logits": [1.0] * 8}, {**window, "input_ids": [1] * 9}][:1]
    )
    assert batch["teacher_start_logits"].tolist() == [[1.0] * 8]
    assert batch["start_positions"].tolist() == [2]
    assert "char_start" not in batch


def test_teachers_outputs_are_padded_as_the_tokens_are(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row("one", "a red dog", "red"), row("one", "a red dog is near", "dog")]
    spec = spec_of(tmp_path, rows)
    features = [
        window | {"teacher_start_logits": [1.0] * window["length"]}
        for window in tokenize(load_task(spec).train, tokenizer, spec)
    ]
    batch = build_collator(tokenizer, spec)(features)
    assert batch["teacher_start_logits"].tolist() == batch["attention_mask"].float().tolist()
    assert batch["attention_mask"].sum(1).tolist() == [7, 9]


# -- answers and metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "wanted", "exact", "f1"),
    [
        ("the Eiffel Tower!", ["Eiffel tower"], 1, 1),
        ("in Paris, France", ["Paris"], 0, 0.5),
        ("Denver Broncos", ["Denver", "The Denver Broncos team"], 0, 0.8),
        ("dog dog", ["dog"], 0, 2 / 3),
        ("", [], 1, 1),
        ("dog", [], 0, 0),
        ("", ["dog"], 0, 0),
        ("the", ["a", "an"], 1, 1),
        ("state-of-the-art", ["stateoftheart"], 1, 1),
        ("café", ["cafe"], 0, 0),
    ],
)
def test_answers_are_compared_as_squad_does(prediction: str, wanted: list[str], exact: float, f1: float) -> None:
    assert exact_and_f1(prediction, wanted) == pytest.approx((exact, f1))


def scored(features: Any, chosen: dict[int, tuple[int, int, float]], none: float) -> dict[str, list[np.ndarray]]:
    """Return outputs that give a span of some windows a score, and the classification token another."""
    found: dict[str, list[np.ndarray]] = {"start_logits": [], "end_logits": []}
    for index, window in enumerate(features):
        start, end = (np.full(window["length"], -9.0, dtype=np.float32) for _ in range(2))
        start[0] = end[0] = none / 2
        if index in chosen:
            first, last, score = chosen[index]
            start[first] = end[last] = score / 2
        found["start_logits"].append(start)
        found["end_logits"].append(end)
    return found


def test_the_best_window_answers_and_none_is_an_answer_too(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row("one", LONG, "red", id="first"), row("one", "a quiet dog", id="second")]
    spec = spec_of(tmp_path, rows, max_seq_length=24, answers={"doc_stride": 6, "version_2_with_negative": True})
    data = load_task(spec).validation
    features = tokenize(data, tokenizer, spec)
    truth = next(i for i, window in enumerate(features) if window["start_positions"] != 0)
    right = features[truth]["start_positions"]
    last = len(features) - 1
    outputs = scored(features, {truth: (right, right, 4.0), truth + 1: (3, 4, 3.0), last: (4, 5, 1.0)}, 2.0)
    texts = [entry["prediction"] for entry in predictions(spec, outputs, data, features)]
    assert texts == ["red", ""]
    assert compute_metrics(spec, outputs, data, features) == {
        "f1": 1, "exact_match": 1, "HasAns_f1": 1, "HasAns_exact_match": 1, "NoAns_f1": 1, "NoAns_exact_match": 1
    }  # fmt: skip
    write_predictions(tmp_path / "answers.json", spec, outputs, data, features)
    assert read_json(tmp_path / "answers.json") == {"first": "red", "second": ""}

    def with_threshold(value: float) -> list[str]:
        changed = spec_of(
            tmp_path,
            rows,
            max_seq_length=24,
            answers={"doc_stride": 6, "version_2_with_negative": True, "null_score_diff_threshold": value},
        )
        return [entry["prediction"] for entry in predictions(changed, outputs, data, features)]

    assert with_threshold(-2.5) == ["", ""]
    assert with_threshold(1.5)[1] != ""


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), longest=st.integers(1, 12))
def test_the_best_span_is_the_best_of_all(
    seed: int, longest: int, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec = spec_of(
        tmp_path_factory.mktemp("rows"),
        [row("one", LONG, "red")],
        max_seq_length=40,
        answers={"max_answer_length": longest, "n_best_size": 40},
    )
    data = load_task(spec).validation
    features = tokenize(data, tokenizer, spec)
    generator = np.random.default_rng(seed)
    outputs = {
        name: [generator.normal(size=window["length"]).astype(np.float32) for window in features]
        for name in ("start_logits", "end_logits")
    }
    best = max(
        (
            (
                outputs["start_logits"][i][s] + outputs["end_logits"][i][e],
                window["char_start"][s],
                window["char_end"][e],
            )
            for i, window in enumerate(features)
            for s, e in product(range(window["length"]), repeat=2)
            if window["char_start"][s] >= 0 and window["char_start"][e] >= 0 and 0 <= e - s < longest
        ),
        key=lambda found: found[0],
    )
    (entry,) = predictions(spec, outputs, data, features)
    assert entry["prediction"] == LONG[best[1] : best[2]]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"question": "q", "context": "c"}], {}, "has no column 'answers' .*found: question, context"),
        ([row("q", "c", "c"), row("q", "c")], {}, "row 1 has no answer; pass --version_2_with_negative if"),
        ([row("q", "c")], {"answers": {"version_2_with_negative": True}}, "no row has an answer"),
        ([{"question": "q", "context": "c", "answers": None}], {"problem_type": "question_answering"}, "no row has an"),
        ([{"question": "q", "context": "c", "answers": {"text": ["x"], "answer_start": [0]}}], {}, "no text holds its"),
        ([{"question": "q", "context": "c", "answers": {"texts": ["x"]}}], {}, r"row 0: expected \{\"text\": \[…\]"),
        ([{"question": "q", "context": "c", "answers": {"text": ["x"], "answer_start": []}}], {}, "1 texts do not fit"),
        ([{"question": "q", "context": "c", "answers": {"text": [1], "answer_start": [0]}}], {}, "must be strings"),
        ([{"question": 1, "context": "c", "answers": answers("c", "c")}], {}, "row 0 has no text in column 'question'"),
        ([row("q", "c", "c")], {"answers": {"doc_stride": 120}, "max_seq_length": 128}, None),
        (
            [row("q", "c", "c")],
            {"answers": {"doc_stride": 121}, "max_seq_length": 128},
            "doc_stride 121 leaves no room",
        ),
        ([row("q", "c", "c")], {"answers": {"n_best_size": 0}}, "n_best_size must be positive, not 0"),
        ([row("q", "c", "c")], {"metric": "accuracy"}, "files has no metric 'accuracy'; it has: exact_match, f1"),
        ([{"text": "t", "label": i} for i in (0, 1)], {"answers": {"doc_stride": 9}}, "--doc_stride is for question"),
    ],
)
def test_mistakes(rows: list[dict[str, Any]], changes: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    if message is None:
        load_task(spec_of(tmp_path, rows, **changes))
        return
    with pytest.raises(UserError, match=message) as caught:
        load_task(spec_of(tmp_path, rows, **changes))
    assert "\n" not in str(caught.value)


# -- end to end --------------------------------------------------------------------------------------------------------


def write_questions(path: Path, rows: int, seed: int) -> Path:
    """Write questions for the colour of a text; a third of the texts has none. Some texts need two windows."""
    generator = random.Random(seed)
    found = []
    for index in range(rows):
        words = generator.choices(FILLERS, k=generator.randint(5, 40))
        colour = generator.choice(list(SIGNALS)) if index % 3 else ""
        if colour:
            words.insert(generator.randint(0, len(words)), colour)
        found.append(row("which one", " ".join(words), *([colour] if colour else []), id=f"q{index}"))
    return write(path, found)


def test_question_answering_goes_through_every_command(tmp_path: Path, tiny_bert_dir: Path) -> None:
    data = tmp_path / "data" / "squad_v2"
    data.mkdir(parents=True)
    write_questions(data / "train.jsonl", 120, 0)
    write_questions(data / "validation.jsonl", 36, 1)
    config = write_config(
        tmp_path / "config.json", lambda config: config["compression"]["ignored_scopes"].append("{re}.*qa_outputs.*")
    )
    teacher, importance, supernet = tmp_path / "teacher", tmp_path / "importance", tmp_path / "supernet"
    search, half, ir = tmp_path / "search", tmp_path / "half", tmp_path / "ir"
    brief = {"per_device_train_batch_size": 12, "learning_rate": 3e-3}
    succeed(
        "finetune", model_name_or_path=tiny_bert_dir, task_name="squadv2", dataset_dir=tmp_path / "data",
        max_seq_length=32, output_dir=teacher, num_train_epochs=8, gradient_accumulation_steps=2,
        **{**brief, "per_device_train_batch_size": 6},
    )  # fmt: skip
    full = metrics_of(model_dir=teacher)
    assert list(full)[:2] == ["f1", "exact_match"]
    assert full["HasAns_f1"] > 0.8
    assert full["NoAns_f1"] > 0.8
    start = {"model_name_or_path": teacher, "kd_teacher_model": teacher, **brief}
    succeed("importance", **start, nncf_config=config, output_dir=importance)
    ranked = {"importance_weight_dir": importance}
    succeed(
        "search-space",
        source_config=config,
        model_name_or_path=teacher,
        target_config=tmp_path / "space.json",
        **ranked,
    )
    space = tmp_path / "space.json"
    assert "BertForQuestionAnswering/BertModel[bert]" in space.read_text()
    succeed("train", **start, **ranked, nncf_config=space, output_dir=supernet, num_train_epochs=1, bf16=True)
    succeed("search", supernet_dir=supernet, output_dir=search, precision="float32", num_evals=6)
    assert read_json(search / "pareto.json")["metric"] == "f1"
    succeed("extract", supernet_dir=supernet, search_dir=search, subnet="min", output_dir=half)
    assert "AutoModelForQuestionAnswering" in (half / "README.md").read_text()
    succeed("export", model_dir=half, output_dir=ir)
    by_torch, by_ir = tmp_path / "torch.json", tmp_path / "ir.json"
    assert metrics_of(model_dir=half, predict=by_torch) == metrics_of(ir_dir=ir, predict=by_ir)
    assert read_json(by_torch) == read_json(by_ir)
    assert list(read_json(by_torch)) == [f"q{index}" for index in range(36)]
    never = metrics_of(model_dir=teacher, null_score_diff_threshold=-1e9)
    assert (never["NoAns_f1"], never["HasAns_f1"]) == (1, 0)
    # A teacher must see the student's tokens.
    foreign = eftnas("train", **{**start, "kd_teacher_model": other_tokens(teacher, tmp_path / "other")},
                     nncf_config=space, output_dir=tmp_path / "none")  # fmt: skip
    assert foreign.status == 2
    assert "splits texts into other tokens than the student" in foreign.err.splitlines()[-1]


def other_tokens(model: Path, directory: Path) -> Path:
    """Copy a model with a tokenizer that reads every word letter by letter."""
    import shutil

    shutil.copytree(model, directory)
    (directory / "stage.json").unlink()
    path = directory / "tokenizer.json"
    tokenizer = read_json(path)
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        word if len(word) < 2 or word[0] in "[#" else f"{word}_": i for word, i in vocabulary.items()
    }
    path.write_text(json.dumps(tokenizer))
    return directory
