"""The benchmarks of quality: what they count as budget, how they split, cut and summarise, and that a column runs."""

from __future__ import annotations

import importlib
import json
import re
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from command_line import write_config
from conftest import FILLERS
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig

from bootstrapnas.artefacts import read_json, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.nncf_config import build_space, read_config
from bootstrapnas.supernet import Supernet

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/quality.py`` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("quality")


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/adapters_quality.py`` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("adapters_quality")


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/columns.py`` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("columns")


@pytest.fixture
def six_layers() -> Blueprint:
    """The shapes of the 6 x 384 BERT that the benchmark is about."""
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return Blueprint(config, "BertForSequenceClassification")


class TestBudget:
    def test_every_pass_counts_its_tokens_and_a_forward_a_third(self, quality: ModuleType) -> None:
        sandwich = quality.Spent.passes(100, [1.0, 0.5, 0.25])
        assert (sandwich.tokens, sandwich.weighted) == (300, 175)
        search = quality.Spent.passes(30, [1.0, 0.5], forward_only=True)
        assert (search.tokens, search.weighted) == (20, 15)
        total = sandwich + search
        assert (total.tokens, total.weighted) == (320, 190)
        assert (total / 4).tokens == 80

    @pytest.mark.parametrize("sizes", [1, 3])
    def test_a_baseline_gets_the_tokens_of_a_delivered_size(self, quality: ModuleType, sizes: int) -> None:
        shared, per_epoch = quality.Spent(tokens=123_456, weighted=1), 7_000
        epochs = quality.baseline_epochs(shared, 3, per_epoch, sizes)
        assert epochs * per_epoch == pytest.approx(shared.tokens / sizes + 3 * per_epoch, abs=0.005 * per_epoch)


class TestSplits:
    def test_rows_are_held_out_of_training_and_the_official_ones_only_reported(
        self, columns: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = tmp_path / "source" / "cola", tmp_path / "work" / "cola"
        source.mkdir(parents=True)
        rows = {
            split: [{"sentence": f"{split} {index}", "label": index % 2} for index in range(count)]
            for split, count in {"train": 50, "validation": 7}.items()
        }
        for split, found in rows.items():
            (source / f"{split}.jsonl").write_text("\n".join(map(json.dumps, found)))
        columns.write_splits(tmp_path / "source", target, "cola")
        written = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in target.iterdir()}
        assert written["test"] == rows["validation"]
        assert len(written["validation"]) == 6
        both = [row["sentence"] for row in written["train"] + written["validation"]]
        assert sorted(both) == sorted(row["sentence"] for row in rows["train"])
        monkeypatch.setattr(columns, "MOST_ROWS", 20)
        fewer = tmp_path / "fewer"
        columns.write_splits(tmp_path / "source", fewer, "cola")
        counts = {path.stem: len(path.read_text().splitlines()) for path in fewer.iterdir()}
        assert counts == {"train": 18, "validation": 2, "test": 7}
        monkeypatch.undo()
        again = tmp_path / "again"
        columns.write_splits(tmp_path / "source", again, "cola")
        assert (again / "train.jsonl").read_text() == (target / "train.jsonl").read_text()

    def test_missing_data_are_named(self, quality: ModuleType, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "cola").mkdir()
        arguments = ["run", "--data_dir", str(tmp_path), "--work_dir", str(tmp_path / "w"), "--tasks", "cola"]
        assert quality.main(arguments) == 2
        assert "holds no train.jsonl of the task cola" in capsys.readouterr().err


class TestBaselines:
    @pytest.mark.parametrize("size", ["50", "33", "25"])
    def test_rules_meet_their_size(self, quality: ModuleType, six_layers: Blueprint, size: str) -> None:
        ratio, full = quality.SIZES[size], count_macs(six_layers, length=128)
        share = {
            "uniform": count_macs(six_layers, quality.uniform_subnet(six_layers, ratio), length=128) / full,
            "layers": count_macs(six_layers, quality.shallow_subnet(six_layers, ratio), length=128) / full,
        }
        for name, value in share.items():
            assert ratio - 0.03 < value <= ratio + quality.TOLERANCE, name

    def test_uniform_cuts_every_layer_alike(self, quality: ModuleType, six_layers: Blueprint) -> None:
        subnet = quality.uniform_subnet(six_layers, 1 / 3)
        assert {subnet[Key("head", layer)] for layer in range(6)} == {4}
        assert {subnet[Key("ffn", layer)] for layer in range(6)} == {512}

    def test_the_last_layers_go(self, quality: ModuleType, six_layers: Blueprint) -> None:
        kept = {key for key, size in quality.shallow_subnet(six_layers, 0.5).items() if size}
        assert kept == {Key(block, layer) for block in ("layer_block", "mha_block", "ffn_block") for layer in (0, 1, 2)}
        smaller = {key for key, size in quality.shallow_subnet(six_layers, 0.25).items() if size}
        layers = {Key("layer_block", 0), Key("layer_block", 1)}
        assert smaller == {*layers, Key("mha_block", 0), Key("ffn_block", 0), Key("mha_block", 1)}


def fake(task: str, seed: int, method: str, size: str, value: float) -> dict[str, Any]:
    return {
        "task": task,
        "seed": seed,
        "method": method,
        "size": size,
        "metric": "accuracy",
        "test": {"accuracy": value},
        "validation": {"accuracy": 0.99},
        "macs_share": 1.0 if size == "full" else int(size) / 100,
        "tokens": 1_000_000,
        "weighted_tokens": 500_000,
        "protocol": {"model": "m", "finetune_epochs": 3},
        "machine": "a CPU",
    }


FAKES = [
    fake("cola", 0, "teacher", "full", 0.40),
    fake("cola", 1, "teacher", "full", 0.50),
    fake("mrpc", 0, "teacher", "full", 0.90),
    fake("cola", 0, "ours", "50", 0.40),
    fake("cola", 1, "ours", "50", 0.48),
    fake("mrpc", 0, "ours", "50", 0.89),
    fake("cola", 0, "uniform", "25", 0.30),
]


class TestTable:
    def test_means_over_seeds_averages_over_tasks_and_ratios(self, quality: ModuleType) -> None:
        rows = {(row["method"], row["size"]): row for row in quality.summarise(FAKES)}
        ours = rows["ours", "50"]
        assert ours["tasks"]["cola"]["mean"] == pytest.approx(0.44)
        assert ours["tasks"]["cola"]["std"] == pytest.approx(0.0566, abs=1e-4)
        assert ours["tasks"]["mrpc"]["std"] is None
        assert ours["average"] == pytest.approx((0.44 + 0.89) / 2)
        assert ours["ratio"] == pytest.approx((0.44 + 0.89) / (0.45 + 0.90))
        # A row with one seed is held against that seed's teacher.
        assert rows["uniform", "25"]["ratio"] == pytest.approx(0.30 / 0.40)

    def test_an_average_needs_every_task(self, quality: ModuleType) -> None:
        lines = quality.markdown_rows(quality.summarise(FAKES), ["cola", "mrpc"])
        assert lines[0] == ["teacher", "full", "100.0%", "45.0 ± 7.1", "90.0", "67.5", "100.0%", "2.00", "1.00"]
        assert lines[1] == ["ours", "50 %", "50.0%", "44.0 ± 5.7", "89.0", "66.5", "98.5%", "2.00", "1.00"]
        assert lines[2] == ["(c) uniform", "25 %", "25.0%", "30.0", "", "", "", "", ""]

    def test_files_name_machine_seeds_and_protocol(self, quality: ModuleType, tmp_path: Path) -> None:
        for found in FAKES:
            name = f"{found['task']}/seed{found['seed']}/results/{found['method']}-{found['size']}.json"
            write_json(tmp_path / "work" / name, found)
        assert quality.main(["table", "--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out" / "quality.md").read_text()
        assert "cola: accuracy, seeds 0, 1" in text
        assert "Machine: a CPU" in text
        assert "| ours | 50 % |" in text
        found = read_json(tmp_path / "out" / "quality.json")
        assert len(found["results"]) == len(FAKES)
        assert found["protocols"] == [{"model": "m", "finetune_epochs": 3}]
        only = ["--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "out"), "--tasks", "cola"]
        assert quality.main(["table", *only]) == 0
        assert "mrpc" not in (tmp_path / "out" / "quality.md").read_text()
        assert read_json(tmp_path / "out" / "quality.json") == found

    def test_nothing_to_tabulate(self, quality: ModuleType, tmp_path: Path, capsys: Any) -> None:
        assert quality.main(["table", "--work_dir", str(tmp_path)]) == 2
        assert "holds no results" in capsys.readouterr().err


def write_mnli(directory: Path) -> None:
    """Write rows of three classes that a word tells apart."""
    source = directory / "mnli"
    source.mkdir(parents=True)
    for split, count in {"train": 80, "validation": 16}.items():
        signals = ("stop", "go", "wait")
        rows = [
            {"premise": f"{FILLERS[i % 50]} {signals[i % 3]}", "hypothesis": FILLERS[i % 7], "label": i % 3}
            for i in range(count)
        ]
        (source / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_a_column_runs_is_found_again_and_refuses_another_protocol(
    quality: ModuleType,
    tmp_path: Path,
    tiny_bert_dir: Path,
    capsys: Any,
    macs_as_ms: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_mnli(tmp_path / "data")
    flags = {
        "data_dir": tmp_path / "data", "work_dir": tmp_path / "work", "tasks": "mnli", "seeds": 0, "sizes": "50",
        "model": tiny_bert_dir, "nncf_config": write_config(tmp_path / "config.json"), "teacher_epochs": 2,
        "teacher_learning_rate": 1e-3, "supernet_epochs": 1, "finetune_epochs": 1, "num_evals": 6, "population": 3,
        "macs_ratios": "0.5,0.3",
    }  # fmt: skip
    run = ["run", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]
    assert quality.main(run) == 0
    paths = sorted((tmp_path / "work").glob("*/*/results/*.json"))
    assert [path.stem for path in paths] == [
        "layers-50", "magnitude-50", "ours-50", "searched-50", "teacher-full", "uniform-50",
    ]  # fmt: skip
    found = {path.stem: read_json(path) for path in paths}
    assert 0.3 < found["ours-50"]["macs_share"] <= 0.502
    budget = found["ours-50"]["tokens"]
    for method in quality.BASELINES:
        assert found[f"{method}-50"]["tokens"] == pytest.approx(budget, rel=0.01)
    times = {path: path.stat().st_mtime_ns for path in paths}
    assert quality.main(run) == 0
    assert {path: path.stat().st_mtime_ns for path in paths} == times
    assert quality.main([*run, "--finetune_epochs", "2"]) == 2
    assert "another protocol" in capsys.readouterr().err

    # Its supernet can be searched by latency, too; where MACs take the time, both searches find the same.
    latency_search = importlib.import_module("latency_search")
    monkeypatch.setattr(latency_search, "openvino_timer", macs_as_ms)
    flags = {
        "columns": tmp_path / "work" / "mnli" / "seed0", "work_dir": tmp_path / "searches", "output": tmp_path,
        "precision": "f32", "length": 16, "num_evals": 6, "population": 3, "seeds": 0,
    }  # fmt: skip
    assert latency_search.main([str(part) for name, value in flags.items() for part in (f"--{name}", value)]) == 0
    table = (tmp_path / "latency_search_f32_batch1_16.md").read_text()
    for of in ("each search's", "both searches'"):
        assert f"Saved, of {of} subnets: mnli seed0 0.0%; all 0.0%" in table
    assert "off by 0.0% on average" in table
    line = r"\| mnli \| 0 \| both searches' \| 0\.\d+ \| (\S+) \| \1 \| (\S+) \| \2 \| (\S+) \| \3 \| 0\.0% \|"
    assert re.search(line, table)


def test_the_half_blocks_that_harm_least_are_those_that_a_supernet_may_skip(
    quality: ModuleType, tmp_path: Path, tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skippable = importlib.import_module("skippable")
    harm = {Key("mha_block", 0): 0.3, Key("ffn_block", 0): 0.1, Key("mha_block", 1): 0.2, Key("ffn_block", 1): 0.4}
    measured: list[dict[Key, float]] = []

    def measure(column: Any, supernet: Supernet) -> dict[Key, float]:
        measured.append(original(column, supernet))
        return harm

    original = skippable.SkippableColumn.harm
    monkeypatch.setattr(skippable.SkippableColumn, "harm", measure)
    write_mnli(tmp_path / "data")
    flags = {
        "data_dir": tmp_path / "data", "work_dir": tmp_path / "work", "tasks": "mnli", "model": tiny_bert_dir,
        "nncf_config": write_config(tmp_path / "config.json"), "teacher_epochs": 1, "supernet_epochs": 1,
    }  # fmt: skip
    run = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    assert skippable.main(run) == 0
    assert measured[0].keys() == harm.keys()
    assert len(set(measured[0].values())) == len(harm)  # each is a different model
    column = tmp_path / "work" / "mnli" / "seed0"
    teacher = AutoModelForSequenceClassification.from_pretrained(column / "teacher")
    space = build_space(read_config(column / "supernet" / "nncf_config.json"), Blueprint.of(teacher))
    assert {gene.keys[0] for gene in space.genes if gene.choices == (1, 0)} == {
        Key("ffn_block", 0),
        Key("mha_block", 1),
    }
    assert {len(gene.choices) for gene in space.genes if gene.choices != (1, 0)} == {4}
    assert skippable.main(run) == 0  # finds everything again
    assert len(measured) == 1


def test_fronts_are_compared_at_divergences_that_both_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    latency_search = importlib.import_module("latency_search")
    by_macs, by_latency = (
        [{"values": {"divergence": apart, cost: value}} for apart, value in front]
        for cost, front in (("macs", [(0.1, 90), (0.3, 60), (0.6, 30)]), ("latency", [(0.2, 8.0), (0.5, 5.0)]))
    )
    pairs = latency_search.pairs_of(7, latency_search.FRONTS, by_macs, by_latency)
    found = [(pair.seed, round(pair.level, 2), *(entry["values"] for entry in pair.entries)) for pair in pairs]
    assert found == [
        (7, 0.2, {"divergence": 0.1, "macs": 90}, {"divergence": 0.2, "latency": 8.0}),  # 0.2 is the least of both
        (7, 0.38, {"divergence": 0.3, "macs": 60}, {"divergence": 0.2, "latency": 8.0}),
        (7, 0.52, {"divergence": 0.3, "macs": 60}, {"divergence": 0.5, "latency": 5.0}),
    ]


def test_a_front_of_all_proposed_subnets_has_no_subnet_that_another_one_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    latency_search = importlib.import_module("latency_search")
    values = [(0.3, 70, 5.0), (0.1, 90, 9.0), (0.2, 80, 9.0), (0.2, 85, 6.0), (0.1, 95, 8.0), (0.4, 75, 4.0)]
    entries = [{"values": {"divergence": apart, "macs": macs, "latency": ms}} for apart, macs, ms in values]
    for cost, front in (("macs", [1, 2, 0]), ("latency", [4, 3, 0, 5])):
        assert latency_search.front_of(entries, cost) == [entries[index] for index in front]


def test_half_of_the_macs_is_what_the_deployment_benchmark_cuts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    deployment = importlib.import_module("deployment")
    for name, layers in (("bert-6x384", 6), ("bert-base", 12)):
        sizes = {"num_hidden_layers": layers, "num_attention_heads": 12}
        shape = {"hidden_size": 384, "intermediate_size": 1536} if layers == 6 else {}
        blueprint = Blueprint(BertConfig(**sizes, **shape), "BertForSequenceClassification")
        full = count_macs(blueprint, length=128)
        for label, subnet in deployment.SECTIONS[name].subnets.items():
            share = count_macs(blueprint, subnet, length=128) / full
            assert share == (1 if label == "full" else pytest.approx(0.5, abs=0.01)), (name, label)


def test_standard_errors_are_those_of_the_rows_and_of_paired_differences(adapters: ModuleType) -> None:
    labels = np.arange(400) % 2
    wrong = np.arange(400) % 5 == 0  # 80 % are right
    first, second = np.where(wrong, 1 - labels, labels), np.where(wrong | (np.arange(400) == 1), 1 - labels, labels)
    cells = []
    for method, subnet, said in (("lora", "lora", first), ("published", "searched", second)):
        draws = adapters.resampled("accuracy", said, labels, "mrpc")
        assert draws == adapters.resampled("accuracy", said, labels, "mrpc")
        value = float((said == labels).mean())
        cells.append(
            {**fake("mrpc", 0, method, "full", value), "subnet": subnet, "resampled": draws, "steps": 9}
            | {"macs": 72, "full_macs": 100, "params": 8, "full_params": 10}
        )
    lora, searched = adapters.summarise(cells)
    assert lora["error"] == pytest.approx((0.8 * 0.2 / 400) ** 0.5, rel=0.15)
    assert lora["from"]["lora"]["average"] == lora["from"]["lora"]["error"] == 0
    # One row of 400 is all that they disagree on: its number in a sample is a Poisson variable of mean 1.
    assert searched["from"]["lora"]["average"] == pytest.approx(-1 / 400)
    assert searched["from"]["lora"]["error"] == pytest.approx(1 / 400, rel=0.25)
    assert adapters.markdown_rows([searched], ["mrpc"])[0][:4] == ["published", "searched", "72.0%", "80.0%"]


def test_the_rate_of_lora_is_chosen_by_held_out_rows_of_the_first_seed(adapters: ModuleType) -> None:
    def cell(method: str, subnet: str, task: str, seed: int, held_out: float, reported: float) -> dict[str, Any]:
        return {
            "task": task, "seed": seed, "method": method, "subnet": subnet, "metric": "accuracy", "steps": 9,
            "validation": {"accuracy": held_out}, "test": {"accuracy": reported}, "resampled": [reported, reported],
            "macs": 72, "full_macs": 100, "params": 8, "full_params": 10,
        }  # fmt: skip

    cells = [
        cell("lora", "lora", "mrpc", 0, 0.8, 0.7), cell("lora+slow", "lora", "mrpc", 0, 0.7, 0.9),
        cell("lora", "lora", "mrpc", 1, 0.1, 0.5), cell("lora+slow", "lora", "mrpc", 1, 0.9, 0.9),
        cell("lora", "lora", "rte", 0, 0.5, 0.5), cell("lora+slow", "lora", "rte", 0, 0.6, 0.4),
        cell("own", "tuned", "mrpc", 0, 0.5, 0.9), cell("own", "tuned", "mrpc", 1, 0.5, 0.7),
        cell("own", "tuned", "rte", 0, 0.7, 0.6), cell("own+near", "tuned", "cola", 0, 0.5, 0.6),
        cell("lora", "lora", "cola", 0, 0.5, 0.5),
    ]  # fmt: skip
    found = {row["method"]: row for row in adapters.summarise(cells)}
    assert list(found) == ["lora", "lora+slow", "lora+chosen", "own", "own+near"]
    chosen = found["lora+chosen"]["tasks"]
    values = {task: (entry["trained"], entry["seeds"], round(entry["mean"], 3)) for task, entry in chosen.items()}
    assert values == {"mrpc": ("lora", [0, 1], 0.6), "rte": ("lora+slow", [0], 0.4)}  # CoLA has one rate only
    assert found["own"]["from"]["lora"]["average"] == pytest.approx((0.2 + 0.1) / 2)
    assert found["own"]["from"]["lora+chosen"]["average"] == pytest.approx((0.2 + 0.2) / 2)
    assert found["own+near"]["from"]["lora"]["average"] == pytest.approx(0.1)
    assert found["own+near"]["from"]["lora+chosen"] is None


def test_subnets_of_super_adapters_are_held_against_lora(
    adapters: ModuleType, tmp_path: Path, tiny_bert_dir: Path, capsys: Any
) -> None:
    write_mnli(tmp_path / "data")
    flags = {
        "data_dir": tmp_path / "data", "work_dir": tmp_path / "work", "tasks": "mnli", "model": tiny_bert_dir,
        "methods": "lora,reorder+taught", "epochs": 2, "num_evals": 6, "population": 3, "lora_r": 4, "ranks": "4,2",
        "macs_ratio": 0.8, "length": 32,
    }  # fmt: skip
    run = ["run", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]
    assert adapters.main(run) == 0
    results = tmp_path / "work" / "mnli" / "seed0" / "results"
    found = {path.stem: read_json(path) for path in results.iterdir()}
    shares = {name: cell["macs"] / cell["full_macs"] for name, cell in found.items()}
    assert sorted(shares) == [
        "lora-lora", "reorder+taught-distilled", "reorder+taught-heuristic", "reorder+taught-max",
        "reorder+taught-min", "reorder+taught-searched", "reorder+taught-tuned",
    ]  # fmt: skip
    assert shares["lora-lora"] == shares["reorder+taught-max"] == 1
    assert shares["reorder+taught-min"] <= shares["reorder+taught-searched"] <= 0.8
    tuned = {"reorder+taught-tuned", "reorder+taught-distilled"}
    assert {shares[name] for name in tuned} == {shares["reorder+taught-searched"]}
    assert {name for name, cell in found.items() if cell["steps"] == 10} == {"lora-lora", *tuned}
    assert {cell["steps"] for cell in found.values()} == {5, 10}
    made = tmp_path / "work" / "mnli" / "seed0" / "reorder+taught"
    adapters_of = [
        load_file(made / name / "adapter_model.safetensors") for name in ("parts/adapter", "finetuned", "taught")
    ]
    for name in adapters_of[0]:  # what was trained on, by labels or by the LoRA
        assert not any(torch.equal(one[name], other[name]) for one, other in combinations(adapters_of, 2))
    times = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert adapters.main(run) == 0
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == times
    assert adapters.main([*run, "--epochs", "3"]) == 2
    assert "another protocol" in capsys.readouterr().err
    table = ["table", "--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    assert adapters.main(table) == 0
    text = (tmp_path / "out" / "adapters_quality.md").read_text()
    assert "mnli: accuracy, 16 rows, 10 steps, seeds 0" in text
    assert "| reorder+taught | tuned |" in text
    assert len(read_json(tmp_path / "out" / "adapters_quality.json")["results"]) == 7
    # Searched among subnets of about the largest size, the same training: one that was finished already.
    assert adapters.main([*run, "--methods", "reorder+taught+near", "--subnets", "searched"]) == 0
    near = read_json(results / "reorder+taught+near-searched.json")
    assert 0.66 <= near["macs"] / near["full_macs"] <= 0.8
    assert sorted(path.parent.name for path in made.parent.glob("*/adapter")) == ["lora", "reorder+taught"]
    (results / "lora-lora.json").unlink()
    assert adapters.main(table) == 2
    assert "has no result of LoRA on mnli 0" in capsys.readouterr().err
    assert adapters.main([*run, "--methods", "fast"]) == 2
    assert "unknown 'fast'" in capsys.readouterr().err
