"""Token classification: files, tags at tokens, metrics, and the way through every command."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import metrics_of, succeed, write_config
from conftest import FILLERS, SIGNALS
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bootstrapnas.artefacts import read_json
from bootstrapnas.distillation import Distillation
from bootstrapnas.errors import UserError
from bootstrapnas.outputs import IGNORED
from bootstrapnas.pipeline.models import load_tokenizer
from bootstrapnas.tasks import build_task_spec, load_task, tokenize
from bootstrapnas.tasks.files import read_table
from bootstrapnas.tasks.token_classification import NONE, TOKEN_CLASSIFICATION, entities, first_tokens

TAGS = ("B-light", "I-light", "O")


def write(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Return sentences in which a light is one to three colours in a row."""
    generator, rows = random.Random(seed), []
    for _ in range(count):
        words, tags = [], []
        for _ in range(generator.randint(1, 3)):
            fill = generator.choices(FILLERS, k=generator.randint(1, 3))
            light = generator.choices(list(SIGNALS), k=generator.randint(1, 3))
            words += fill + light
            tags += ["O"] * len(fill) + ["B-light"] + ["I-light"] * (len(light) - 1)
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_of_tagged_words_is_known_by_its_columns(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", sentences(6, 0))
    spec = build_task_spec(train_file=train, validation_file=train)
    assert (spec.problem_type, spec.text_columns, spec.label_column) == (
        "token_classification",
        ("tokens",),
        "ner_tags",
    )
    assert (spec.label_names, spec.metric) == (TAGS, "f1")
    rows = load_task(spec).train
    assert [TAGS[tag] for tag in rows[0]["label"]] == sentences(6, 0)[0]["ner_tags"]
    numbers = write(tmp_path / "n.jsonl", [{"w": ["a", "b", "c"], "t": [0, 11, 2]}])
    spec = build_task_spec(train_file=numbers, validation_file=numbers, text_columns=["w"], label_column="t")
    assert (spec.label_names, spec.metric, spec.metrics) == (("0", "2", "11"), "accuracy", ("accuracy",))
    assert load_task(spec).train[0]["label"] == [0, 2, 1]


def test_files_of_conll(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\nBlackburn NNP I-PER\n")
    words, tags = [["EU", "rejects"], ["Peter", "Blackburn"]], [["B-ORG", "O"], ["B-PER", "I-PER"]]
    parts = [["NNP", "VBZ"], ["NNP", "NNP"]]
    assert read_table(path) == {"tokens": words, "tags": tags, "1": words, "2": parts, "3": tags}
    spec = build_task_spec(train_file=path, validation_file=path)
    assert spec.label_names == ("B-ORG", "B-PER", "I-PER", "O")
    spec = build_task_spec(train_file=path, validation_file=path, label_column="2")
    assert (spec.label_names, spec.metrics) == (("NNP", "VBZ"), ("accuracy",))
    assert load_task(spec).validation["label"] == [[0, 1], [0, 0]]
    path.write_text("1 EU NNP B-ORG\n2 rejects VBZ\n")
    spec = build_task_spec(train_file=path, validation_file=path, text_columns=["2"], label_column="3")
    assert load_task(spec).train["words"] == [["EU", "rejects"]]
    with pytest.raises(UserError, match=r"has no column .4. \(line 1\); found: tokens, tags, 1, 2, 3"):
        build_task_spec(train_file=path, validation_file=path, label_column="4")
    path.write_text("EU B-ORG\nrejects\n")
    with pytest.raises(UserError, match="line 2: expected a word and its tag, found 'rejects'"):
        read_table(path)


GOOD = {"tokens": ["a", "b"], "tags": ["O", "B-x"]}


@pytest.mark.parametrize(
    ("bad", "flags", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O", None]}, {}, "row 1 has no list of tags, but \"['O', None]\""),
        ({"tokens": ["a"], "tags": [["O"]]}, {}, "row 1 has no list of tags, but \"[['O']]\""),
        ({"tokens": ["a", "b"], "tags": ["O"]}, {}, "column 'tags': row 1 has 1 tags for 2 words"),
        ({"tokens": ["a"], "tags": ["B-y"]}, {}, "row 1 has the label 'B-y', which is none of the classes B-x, O; did"),
        ({"tokens": [], "tags": []}, {}, "row 1 has no words in column 'tokens'"),
        ({"tokens": "a b", "tags": ["O", "O"]}, {}, "row 1 has no list of words in column 'tokens', but 'a b'"),
        ({"tokens": ["a"], "tags": "O"}, {}, "column 'tags': row 1 has no list of tags, but 'O'"),
        ({"tokens": ["a"], "tag": ["O"]}, {}, "has no column 'tags' (line 2); did you mean 'tag'?"),
        (GOOD, {"label_column": "ner"}, "has no column 'ner' (line 1)"),
        (GOOD, {"metric": "f2"}, "has no metric 'f2'; it has: accuracy, f1, precision, recall"),
        (GOOD, {"text_columns": ["tokens", "tags"], "problem_type": "token_classification"}, "text_columns must name"),
    ],
)
def test_bad_rows(bad: Mapping[str, Any], flags: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [GOOD])
    validation = write(tmp_path / "validation.jsonl", [GOOD, bad])
    with pytest.raises(UserError) as caught:
        load_task(build_task_spec(train_file=train, validation_file=validation, **flags))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_tags_names_the_nearest_column(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", [{"tokens": ["a"], "ner_tag": ["O"]}])
    for named in ({}, {"problem_type": "token_classification"}):
        with pytest.raises(UserError, match=r"has no column of tags \(.*\); name yours by --label_column.*'ner_tags'"):
            build_task_spec(train_file=path, validation_file=path, **named)  # type: ignore[arg-type]


def test_rows_of_a_known_task_may_have_numbers_for_tags(tmp_path: Path, tiny_bert_dir: Path) -> None:
    rows = [{"tokens": ["EU", "rejects"], "ner_tags": [3, 0]}, {"tokens": ["\u200b"], "ner_tags": ["I-MISC"]}]
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", rows)
    spec = build_task_spec("conll2003", dataset_dir=tmp_path)
    loaded = load_task(spec).train
    assert loaded["label"] == [[3, 0], [8]]
    assert spec.metrics == spec.reported_metrics == ("f1", "precision", "recall", "accuracy")
    with pytest.raises(UserError, match=r"makes no token of the words .* within --max_seq_length 128: leave such rows"):
        tokenize(loaded, load_tokenizer(str(tiny_bert_dir)), spec)


# -- tokens ------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_every_word_is_read_at_its_first_token(data: st.DataObject) -> None:
    """Whatever the words are cut into, and whether a token begins with the blank before it or not."""
    words = data.draw(st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=6))
    offsets, first, place = [(0, 0)], [], 0
    for number, word in enumerate(words):
        first.append(len(offsets))
        cuts = sorted({0, len(word), *data.draw(st.lists(st.integers(1, len(word)), max_size=2))})
        blank = bool(number) and data.draw(st.booleans())
        for start, end in pairwise(cuts):
            offsets.append((place + start - (blank and start == 0), place + end))
        place += len(word) + 1
    offsets.append((0, 0))
    assert first_tokens(words, offsets) == first
    kept = data.draw(st.integers(1, len(offsets)))
    assert first_tokens(words, offsets[:kept]) == [token if token < kept else NONE for token in first]


def test_other_tokens_have_nothing_to_learn(tmp_path: Path, tiny_bert_dir: Path, capsys: Any) -> None:
    word = f"{FILLERS[1]}#{FILLERS[2]}"  # three tokens
    train = write(tmp_path / "train.jsonl", [{"tokens": ["red", word, "red"], "tags": ["B-a", "O", "I-a"]}])
    spec = build_task_spec(train_file=train, validation_file=train, max_seq_length=5)
    rows = load_task(spec).train
    features = tokenize(rows, load_tokenizer(str(tiny_bert_dir)), spec)
    feature = features[0]
    names = [None if label == IGNORED else spec.label_names[label] for label in feature["labels"]]
    assert names == [None, "B-a", "O", None, None]
    assert feature["first"] == [1, 2, NONE]
    assert "1 of 3 words have no token: they lie beyond --max_seq_length 5, or" in capsys.readouterr().err
    logits = np.eye(3)[[2, 0, 2, 2, 2]]
    said = TOKEN_CLASSIFICATION.decode(spec, {"logits": [logits]}, rows, features)
    assert said == [[0, 2, NONE]]
    found = TOKEN_CLASSIFICATION.measure(spec, said, rows)
    # Of the entities red (0 to 1) and red (2 to 3), which begins after O, one was found.
    assert found == pytest.approx({"f1": 2 / 3, "precision": 1, "recall": 0.5, "accuracy": 2 / 3})
    assert TOKEN_CLASSIFICATION.show(spec, said, rows) == [{"index": 0, "prediction": ["B-a", "O", None]}]


# -- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-x I-x O B-y", {(0, 2, "x"), (3, 4, "y")}),
        ("I-x I-x O I-y", {(0, 2, "x"), (3, 4, "y")}),  # IOB1
        ("B-x B-x I-x", {(0, 1, "x"), (1, 3, "x")}),
        ("B-x I-y I-y", {(0, 1, "x"), (1, 3, "y")}),  # another type begins another entity
        ("O I-x O", {(1, 2, "x")}),
        ("S-x B-x I-x E-x E-x", {(0, 1, "x"), (1, 4, "x"), (4, 5, "x")}),  # IOBES
        ("U-x B-y L-y I-y", {(0, 1, "x"), (1, 3, "y"), (3, 4, "y")}),  # BILOU
        ("B-a-b I-a-b", {(0, 2, "a-b")}),
        ("O O", set()),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, found: set[tuple[int, int, str]]) -> None:
    assert entities(tags.split()) == found


def test_a_teacher_is_followed_at_every_token_but_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 3, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    loss = Distillation(outputs=TOKEN_CLASSIFICATION.outputs)(
        torch.tensor(5.0), {"logits": student}, {"logits": teacher}, mask
    )
    by_token = [
        4 * F.kl_div((s / 2).log_softmax(0), (t / 2).softmax(0), reduction="sum")
        for s, t in [(student[0, i], teacher[0, i]) for i in range(4)]
        + [(student[1, i], teacher[1, i]) for i in (0, 1)]
    ]
    torch.testing.assert_close(loss, 0.5 + 0.9 * torch.stack(by_token).mean())


# -- end to end --------------------------------------------------------------------------------------------------------


def test_token_classification_goes_through_every_command(tmp_path: Path, tiny_bert_dir: Path) -> None:
    files = {
        "train_file": write(tmp_path / "train.jsonl", sentences(120, 0)),
        "validation_file": write(tmp_path / "validation.jsonl", sentences(36, 1)),
    }
    config = write_config(
        tmp_path / "config.json", lambda config: config["compression"]["ignored_scopes"].append("{re}.*classifier.*")
    )
    teacher, importance, supernet = tmp_path / "teacher", tmp_path / "importance", tmp_path / "supernet"
    search, half, ir = tmp_path / "search", tmp_path / "half", tmp_path / "ir"
    brief = {"per_device_train_batch_size": 12, "learning_rate": 3e-3}
    succeed(
        "finetune", model_name_or_path=tiny_bert_dir, **files, max_seq_length=32, output_dir=teacher,
        num_train_epochs=8, **brief,
    )  # fmt: skip
    full = metrics_of(model_dir=teacher)
    assert list(full) == ["f1", "precision", "recall", "accuracy"]
    assert full["f1"] > 0.8
    assert read_json(teacher / "config.json")["id2label"] == {str(index): tag for index, tag in enumerate(TAGS)}
    start = {"model_name_or_path": teacher, "kd_teacher_model": teacher, **brief}
    succeed("importance", **start, nncf_config=config, output_dir=importance)
    ranked = {"importance_weight_dir": importance}
    space = tmp_path / "space.json"
    succeed("search-space", source_config=config, model_name_or_path=teacher, target_config=space, **ranked)
    assert "BertForTokenClassification/BertModel[bert]" in space.read_text()
    succeed("train", **start, **ranked, nncf_config=space, output_dir=supernet, num_train_epochs=1)
    succeed("search", supernet_dir=supernet, output_dir=search, precision="float32", num_evals=6)
    assert read_json(search / "pareto.json")["metric"] == "f1"
    succeed(
        "search", supernet_dir=supernet, kd_teacher_model=teacher, objectives="divergence,macs",
        output_dir=tmp_path / "nearest", precision="float32", num_evals=6,
    )  # fmt: skip
    succeed("extract", supernet_dir=supernet, search_dir=search, subnet="min", output_dir=half)
    assert "AutoModelForTokenClassification" in (half / "README.md").read_text()
    succeed("export", model_dir=half, output_dir=ir)
    by_torch, by_ir = tmp_path / "torch.jsonl", tmp_path / "ir.jsonl"
    assert metrics_of(model_dir=half, predict=by_torch) == metrics_of(ir_dir=ir, predict=by_ir)
    assert by_torch.read_text() == by_ir.read_text()
    first = json.loads(by_torch.read_text().splitlines()[0])
    assert len(first["prediction"]) == len(sentences(36, 1)[0]["tokens"])
    succeed("export", model_dir=half, output_dir=tmp_path / "int8", quant_mode="int8")
    measured = read_json(tmp_path / "int8" / "export.json")["metric"]
    assert (measured["name"], measured["rows"]) == ("f1", 36)
    assert measured["torch"] > 0.5
    assert abs(measured["ir"] - measured["torch"]) < 0.1
