"""Evaluations in parts: what they add up to, and how the best that is left is bounded."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import LENGTH, eftnas, succeed, write_config
from conftest import TaskFiles

from bootstrapnas.artefacts import read_json
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import evaluate_model, load_for_task, load_tokenizer
from bootstrapnas.pipeline.search.early_stop import LOOKS, check_early_stop, estimates, most_of_mean, split_up
from bootstrapnas.tasks import TaskSpec, build_task_spec


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> Path:
    """A trained supernet of the tiny task. Read-only."""
    root = tmp_path_factory.mktemp("early")
    config = write_config(root / "config.json")
    files = {"train_file": tiny_task_files.train, "validation_file": tiny_task_files.validation}
    learning = {"per_device_train_batch_size": 8, "learning_rate": 2e-3, "num_train_epochs": 10}
    base = {"model_name_or_path": tiny_bert_dir, **files, "max_seq_length": LENGTH}
    succeed("finetune", **base, **learning, output_dir=root / "teacher")
    start, space = {"model_name_or_path": root / "teacher"}, root / "space.json"
    succeed("importance", **start, criterion="l1", criterion_batches=1, output_dir=root / "importance")
    scores = {"importance_weight_dir": root / "importance"}
    succeed("search-space", **start, **scores, source_config=config, target_config=space)
    brief = {"num_train_epochs": 1, "learning_rate": 1e-4}
    succeed("train", **start, **scores, nncf_config=space, output_dir=root / "supernet", **brief)
    return root / "supernet"


def loaded(directory: Path, batch_size: int) -> tuple[Rows, object]:
    spec = TaskSpec.load(directory / "task.json")
    spec = replace(spec, metric="accuracy")
    return Rows(spec, load_tokenizer(str(directory)), batch_size), load_for_task(str(directory), spec)


@pytest.mark.parametrize("batch_size", [4, 7, 64])
def test_parts_add_up_to_the_whole(supernet: Path, batch_size: int) -> None:
    """Every row is in one part; the last estimate is the metric, and no bound of before was below it."""
    rows, model = loaded(supernet, batch_size)
    parts = split_up(rows, "validation")
    whole = rows.rows("validation")
    assert sorted(text for part in parts for text in part.rows["text_a"]) == sorted(whole["text_a"])
    assert len(parts) <= LOOKS
    assert all(len(part.rows) % batch_size == 0 for part in parts[:-1])
    if len(parts) > 1:
        assert [text for part in parts for text in part.rows["text_a"]] != whole["text_a"][:], "in random order"
    metric = evaluate_model(model, rows, "validation")["accuracy"]  # type: ignore[arg-type]
    found = list(estimates(model, rows, parts, 1))
    assert [each.share for each in found] == [
        sum(len(part.rows) for part in parts[: index + 1]) / len(whole) for index in range(len(parts))
    ]
    assert found[-1].values == {"accuracy": pytest.approx(metric)}
    assert found[-1].at_best == {"accuracy": pytest.approx(metric)}
    bounds = [each.at_best["accuracy"] for each in found]
    assert bounds == sorted(bounds, reverse=True), "with every row a certain bound can only sink"


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Of many draws of some numbers out of others; for certain, it always does."""
    generator = random.Random(0)
    missed = 0
    for _ in range(2000):
        numbers = [float(generator.random() < 0.6) for _ in range(200)]
        mean = sum(numbers) / len(numbers)
        generator.shuffle(numbers)
        seen = generator.choice((20, 60, 120))
        part = sum(numbers[:seen]) / seen
        assert most_of_mean(part, seen, 200, 0) >= mean - 1e-12
        missed += most_of_mean(part, seen, 200, 0.2) < mean
    assert 0 < missed <= 0.2 * 2000
    assert most_of_mean(0.5, 100, 200, 0) == pytest.approx(0.75)
    assert most_of_mean(0.5, 100, 200, 0.01) == pytest.approx(0.5 + 0.107833, abs=1e-5)
    assert most_of_mean(0.5, 200, 200, 0.01) == pytest.approx(0.5), "nothing is left"
    assert most_of_mean(0.99, 100, 200, 0.01) == pytest.approx(0.995), "the certain bound is the nearer one"


def test_a_search_stops_what_cannot_reach_its_front(supernet: Path, tmp_path: Path) -> None:
    """The log says which; what was evaluated to the end has the metric that it has without stopping."""
    flags = {"supernet_dir": supernet, "eval_metric_name": "accuracy", "precision": "float32", "num_evals": 20}
    said = succeed("search", **flags, eval_batch_size=4, early_stop=0.8, output_dir=tmp_path / "early").err
    succeed("search", **flags, output_dir=tmp_path / "whole")
    early, whole = (
        [json.loads(line) for line in (tmp_path / name / "evaluations.jsonl").read_text().splitlines()[1:]]
        for name in ("early", "whole")
    )
    stopped = [entry for entry in early if "stopped" in entry]
    assert 0 < len(stopped) < len(early)
    assert f"search: {len(stopped)} of {len(early)} evaluations were stopped early, which saved" in said
    assert not any("stopped" in entry for entry in whole)
    known = {tuple(entry["genome"]): entry["values"]["accuracy"] for entry in whole}
    both = [entry for entry in early if tuple(entry["genome"]) in known and "stopped" not in entry]
    assert both
    for entry in both:
        assert entry["values"]["accuracy"] == pytest.approx(known[tuple(entry["genome"])])
    front = [entry["genome"] for entry in read_json(tmp_path / "early" / "pareto.json")["front"]]
    assert not any(entry["genome"] in front for entry in stopped)
    assert read_json(tmp_path / "early" / "stage.json")["settings"]["early_stop"] == 0.8


def test_metrics_that_nothing_bounds_are_refused(supernet: Path, tmp_path: Path, tiny_task_files: TaskFiles) -> None:
    flags = {"supernet_dir": supernet, "output_dir": tmp_path / "no"}
    for more, message in (
        ({"early_stop": 1.5}, "--early_stop is a confidence from 0.5 to 1, not 1.5"),
        ({"early_stop": 1, "eval_metric_name": "macro_f1"}, "which macro_f1 is not: search by --eval_metric_name acc"),
    ):
        outcome = eftnas("search", **flags, **more)
        assert outcome.status == 2
        assert message in outcome.err
    assert not (tmp_path / "no").exists()
    lines = build_task_spec("sft", train_file=tiny_task_files.train, text_columns=["text", "label"])
    with pytest.raises(UserError, match="which perplexity is not: task sft has none"):
        check_early_stop(0.9, lines)
