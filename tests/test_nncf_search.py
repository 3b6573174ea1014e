"""What the search and depth sections of an NNCF config do: files written on the way, other metrics, fixed blocks."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from command_line import LENGTH, eftnas, metrics_of, succeed, write_config
from conftest import TaskFiles, build_tiny_bert
from transformers import AutoModelForSequenceClassification

import bootstrapnas.pipeline.search.command as search_stage
import bootstrapnas.pipeline.search.finalists as finalists_module
from bootstrapnas.artefacts import read_json, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import Conditions, Costs, count_costs
from bootstrapnas.dims import Key, Subnet, subnet_from_json
from bootstrapnas.export import Latency, LatencySettings, load_ir, predict_ir
from bootstrapnas.export.runtime import describe_ir
from bootstrapnas.extraction import load_model
from bootstrapnas.nncf_config import NodeNames, config_with_space
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.models import load_tokenizer, outputs_of
from bootstrapnas.pipeline.search.objectives import ConstraintArguments, objectives_of
from bootstrapnas.pipeline.search.problem import build_problem, canonical_of
from bootstrapnas.pipeline.search.progression import Progression
from bootstrapnas.pipeline.supernets import load_supernet
from bootstrapnas.search import Candidate, Constraint, Objective, SearchResult, pareto_front
from bootstrapnas.space import Gene, SearchSpace
from bootstrapnas.supernet import Supernet

SPACE = SearchSpace(
    (
        *(Gene((Key("head", layer),), (4, 2, 1)) for layer in range(2)),
        *(Gene((Key("ffn", layer),), (128, 64, 32)) for layer in range(2)),
        Gene((Key("mha_block", 1),), (1, 0)),
        Gene((Key("ffn_block", 1),), (1, 0)),
        Gene((Key("ffn_block", 0),), (0,)),
    )
)
POPULATION, EVALS = 5, 20


class Trained(NamedTuple):
    root: Path
    active: list[Subnet]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> Trained:
    """A supernet of which one FFN is always skipped, and the subnets that its training computed. Read-only."""
    root = tmp_path_factory.mktemp("nncf_search")
    model = build_tiny_bert()
    raw = config_with_space(
        json.loads(write_config(root / "template.json").read_text()), Blueprint.of(model), NodeNames.of(model), SPACE
    )
    raw["bootstrapNAS"]["search"] |= {
        "algorithm": "RNSGA2",
        "num_evals": EVALS + 3,
        "population": POPULATION,
        "aspiration_points": [[0.5, -90]],
        "epsilon": 0.01,
        "eval_metric_name": "eval_macro_f1",
        "ref_acc": 99.9,
    }
    (root / "config.json").write_text(json.dumps(raw))
    active: list[Subnet] = []
    activate = Supernet.activate

    @contextmanager
    def recorded(self: Supernet, subnet: Subnet) -> Iterator[Any]:
        active.append(dict(subnet))
        with activate(self, subnet) as activated:
            yield activated

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Supernet, "activate", recorded)
        succeed(
            "train",
            model_name_or_path=tiny_bert_dir,
            train_file=tiny_task_files.train,
            validation_file=tiny_task_files.validation,
            max_seq_length=LENGTH,
            nncf_config=root / "config.json",
            output_dir=root / "supernet",
            num_train_epochs=1,
            per_device_train_batch_size=8,
        )
    return Trained(root, active)


def search(trained: Trained, directory: Path, **flags: Any) -> str:
    return succeed(
        "search", supernet_dir=trained.root / "supernet", output_dir=directory, precision="float32", **flags
    ).err


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def test_blocks_are_skipped_in_training_as_the_config_says(trained: Trained) -> None:
    for key, sizes in {("ffn_block", 0): {0}, ("mha_block", 1): {0, 1}, ("ffn_block", 1): {0, 1}}.items():
        assert {subnet[Key(*key)] for subnet in trained.active} == sizes
    assert all(Key("mha_block", 0) not in subnet for subnet in trained.active)


def test_files_are_written_during_the_search_and_after_a_kill_are_as_if_it_had_not_been(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progression, "PICTURE_EVERY_S", 0.0)
    told = search(trained, tmp_path / "whole")
    found = read_json(tmp_path / "whole" / "pareto.json")
    assert found["metric"] == "macro_f1"
    assert all("accuracy" not in entry["values"] for entry in found["front"])
    # No subnet reaches the floor: the run is kept, and the nearest to it is taken, not the largest.
    assert "no subnet found has macro_f1 >= 0.9890 (ref_acc 0.9990 less acc_delta 1 point)" in told
    assert "taking the nearest to the floor, which has" in told
    rows = [json.loads(line) for line in (tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()[1:]]
    best = max(rows, key=lambda row: (row["values"]["macro_f1"], -row["values"]["macs"]))
    assert found["best"]["values"] == best["values"]
    assert told.rstrip().splitlines()[-1] == (
        f"search: {len(found['front'])} of {len(rows)} subnets are on the front; the best one has macro_f1 "
        f"{best['values']['macro_f1']:.4f} at {best['values']['macs'] / 1e6:,.2f} M MACs"
    )

    evaluate, done = search_stage.outputs_of, []

    def killed(*arguments: Any, **options: Any) -> Any:
        if len(done) == POPULATION + 1:
            raise KeyboardInterrupt
        done.append(1)
        return evaluate(*arguments, **options)

    directory = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(search_stage, "outputs_of", killed)
        eftnas("search", supernet_dir=trained.root / "supernet", output_dir=directory, precision="float32")
    assert read_json(directory / "stage.json")["status"] == "running"
    written = read_csv(directory / "search_progression.csv")
    assert len(written) >= POPULATION
    assert len(written) % POPULATION == 0  # whole generations
    assert (directory / "search_progression.png").read_bytes().startswith(b"\x89PNG")
    search(trained, directory)
    whole = read_csv(tmp_path / "whole" / "search_progression.csv")
    assert read_csv(directory / "search_progression.csv") == whole
    assert whole[: len(written)] == written
    assert len(whole) == EVALS  # rounded down to whole generations
    assert (directory / "pareto.json").read_bytes() == (tmp_path / "whole" / "pareto.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"eval_metric_name": "eval_accurracy"},
            "--eval_metric_name: task files has no metric 'eval_accurracy'; did you mean 'accuracy'?; it has: ",
        ),
    ],
)
def test_a_metric_that_the_task_does_not_produce_is_refused(
    trained: Trained, tmp_path: Path, flags: dict[str, str], message: str
) -> None:
    outcome = eftnas("search", supernet_dir=trained.root / "supernet", output_dir=tmp_path / "new", **flags)
    assert outcome.status == 2
    assert message in outcome.err
    assert "macro_f1" in outcome.err
    assert not (tmp_path / "new").exists()


def evaluations(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line)["values"] for line in (directory / "evaluations.jsonl").read_text().splitlines()[1:]]


def costs_of(trained: Trained) -> tuple[Costs, list[Costs]]:
    """Return the costs of the full model and of every subnet of the space."""
    blueprint = Blueprint.of(build_tiny_bert())
    genomes = product(*map(range, SPACE.cardinalities))
    return count_costs(blueprint, length=LENGTH), [
        count_costs(blueprint, SPACE.subnet(genome), length=LENGTH) for genome in genomes
    ]


def test_objectives_and_bounds_of_the_command_line(trained: Trained, tmp_path: Path) -> None:
    """Three objectives, and a budget that few subnets keep: what breaks it is neither evaluated nor on the front."""
    full, all_costs = costs_of(trained)
    macs = sorted(costs.macs for costs in all_costs)
    least, most = macs[len(macs) // 4] / full.macs, macs[len(macs) // 4 + 40] / full.macs
    bounds = {"min_macs_ratio": least, "max_macs_ratio": most, "max_params": full.params}
    search(trained, tmp_path, objectives="metric,params,macs", algorithm="NSGA2", ref_acc=0.1, **bounds)
    found, rows = read_json(tmp_path / "pareto.json"), evaluations(tmp_path)
    assert [goal["name"] for goal in found["objectives"]] == ["params", "macs", "macro_f1"]
    assert (found["cost"], found["full"]) == ("params", {"macs": full.macs, "params": full.params})
    assert [entry["name"] for entry in found["constraints"]] == ["macs", "params", "macs"]
    inside = [row for row in rows if least <= row["macs"] / full.macs <= most]
    assert len(inside) >= POPULATION
    assert all("macro_f1" in row for row in inside)
    assert all("macro_f1" not in row for row in rows if row not in inside)
    goals = (Objective("params"), Objective("macs"), Objective("macro_f1", maximise=True))
    wanted = [inside[index] for index in pareto_front(inside, goals)]
    front = [entry["values"] for entry in found["front"]]
    assert sorted(map(str, front)) == sorted(map(str, wanted))
    assert [values["params"] for values in front] == sorted(values["params"] for values in front)
    qualified = [row["params"] for row in inside if row["macro_f1"] >= 0.1 - 0.01]
    assert found["best"]["values"]["params"] == min(qualified)
    rows_of_csv = read_csv(tmp_path / "search_progression.csv")
    assert {row[1] for row in rows_of_csv} == {"params"}
    assert {float(row[2]) for row in rows_of_csv} == {row["params"] / 1e6 for row in inside}
    assert (tmp_path / "search_progression.png").read_bytes().startswith(b"\x89PNG")

    # The same command finds it again; other bounds in the same place are another run.
    again = search(trained, tmp_path, objectives="metric,params,macs", algorithm="NSGA2", ref_acc=0.1, **bounds)
    assert "finished already" in again
    other = eftnas("search", supernet_dir=trained.root / "supernet", output_dir=tmp_path, precision="float32")
    assert (other.status, "was made by another run" in other.err or "there, None here" in other.err) == (2, True)

    # A subnet can be chosen by any bound, also by one on what the search did not count.
    def chosen(name: str, **flags: Any) -> dict[str, Any]:
        succeed(
            "extract",
            supernet_dir=trained.root / "supernet",
            search_dir=tmp_path,
            output_dir=tmp_path.with_name(f"{tmp_path.name}_{name}"),
            **flags,
        )
        return dict(read_json(tmp_path.with_name(f"{tmp_path.name}_{name}") / "subnet.json"))

    middle = sorted(values["params"] for values in front)[len(front) // 2]
    affordable = [values for values in front if values["params"] <= middle]
    by_params = chosen("params", max_params=middle)
    assert by_params["chosen_by"] == f"max_params {float(middle)}"
    assert by_params["search_values"]["macro_f1"] == max(values["macro_f1"] for values in affordable)
    bare = chosen("bare", max_params_without_embeddings_ratio=0.99)
    assert bare["costs"]["params_without_embeddings"] <= 0.99 * full.params_without_embeddings
    best_metric = max(values["macro_f1"] for values in front)
    cheapest = chosen("metric", min_metric=best_metric)
    assert cheapest["costs"]["params"] == min(v["params"] for v in front if v["macro_f1"] == best_metric)


def test_a_metric_that_nothing_reaches_leaves_the_nearest(trained: Trained, tmp_path: Path) -> None:
    told = search(trained, tmp_path, algorithm="NSGA2", min_metric=99.9, num_evals=2 * POPULATION)
    assert "no subnet found has at least 0.9990 macro_f1; the nearest has 0." in told
    found, rows = read_json(tmp_path / "pareto.json"), evaluations(tmp_path)
    assert {entry["values"]["macro_f1"] for entry in found["front"]} == {max(row["macro_f1"] for row in rows)}


def test_a_search_that_runs_out_of_subnets_says_so(trained: Trained, tmp_path: Path) -> None:
    largest = max(costs.macs for costs in costs_of(trained)[1])
    told = search(trained, tmp_path, algorithm="NSGA2", min_macs=largest)
    assert [row["macs"] for row in evaluations(tmp_path)] == [largest]
    # One FFN is always skipped, so three genomes, which differ in its width alone, are this subnet.
    assert f"search: nothing new to propose after 3 of {EVALS} proposals" in told


def test_finalists_are_exported_and_measured_side_by_side(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill, what was exported is found again."""
    exported: list[Path] = []
    export, calls = finalists_module.export_openvino, iter(range(1, 100))

    def killed(model: Any, tokenizer: Any, directory: Path, **options: Any) -> Any:
        if len(exported) == 1 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt
        exported.append(directory)
        return export(model, tokenizer, directory, **options)

    monkeypatch.setattr(finalists_module, "export_openvino", killed)
    monkeypatch.setattr(finalists_module, "MAX_SECONDS", 1.0)
    # The largest, the middle and the smallest come first, so that the front has all three.
    monkeypatch.setattr(Rows, "measure", lambda *arguments: {"macro_f1": 1 / next(calls)})
    directory = tmp_path / "search"
    flags = {"supernet_dir": trained.root / "supernet", "output_dir": directory, "precision": "float32"}
    flags |= {"algorithm": "NSGA2", "num_evals": POPULATION, "measure_finalists": 2, "latency_batch": 2}
    assert eftnas("search", **flags).status == 130
    assert read_json(directory / "stage.json")["status"] == "running"
    succeed("search", **flags)
    found, front = read_json(directory / "finalists.json"), read_json(directory / "pareto.json")
    smallest, largest = found["finalists"]
    canonical = canonical_of(Supernet(build_tiny_bert(), SPACE))
    assert tuple(smallest["genome"]) == canonical(SPACE.min_genome)
    assert tuple(largest["genome"]) == SPACE.max_genome
    assert front["best"]["genome"] == largest["genome"]
    assert [path.name for path in exported] == [smallest["name"], largest["name"]]
    for entry in (smallest, largest):
        assert front["front"][int(entry["name"])]["values"] == entry["values"]
        assert 0 <= entry["measured"]["macro_f1"] <= 1
        assert entry["measured"]["latency"] == entry["latency"]["median_ms"] > 0
        settings = entry["latency"]["settings"]
        assert (settings["precision"], settings["batch"], settings["length"]) == ("f32", 2, LENGTH)
    assert largest["speed_up"] == 1.0
    assert "| largest |" in (directory / "finalists" / "report.md").read_text()
    assert not (directory / "finalists" / "ir").exists()


def test_a_front_is_written_before_its_finalists_are_measured(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that nobody has foreseen costs the measuring alone: a rerun evaluates nothing again."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a layer of another kind")

    monkeypatch.setattr(finalists_module, "MAX_SECONDS", 1.0)
    directory = tmp_path / "search"
    flags = {"supernet_dir": trained.root / "supernet", "output_dir": directory, "measure_finalists": 1}
    flags |= {"algorithm": "NSGA2", "num_evals": POPULATION}
    with monkeypatch.context() as patch:
        patch.setattr(finalists_module, "export_openvino", fail)
        with pytest.raises(RuntimeError, match="a layer of another kind"):
            eftnas("search", **flags)
    front = (directory / "pareto.json").read_bytes()
    assert (directory / "search_progression.png").is_file()
    assert read_json(directory / "stage.json")["status"] == "running"

    def evaluate(*_: Any) -> None:
        raise AssertionError("evaluated again")

    with monkeypatch.context() as patch:
        patch.setattr(search_stage, "outputs_of", evaluate)
        succeed("search", **flags)
    assert (directory / "pareto.json").read_bytes() == front
    assert (directory / "finalists.json").is_file()


def test_finalists_are_quantised_where_int8_is_deployed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their metric is what their IRs reach, their size what these take."""
    monkeypatch.setattr(finalists_module, "MAX_SECONDS", 1.0)
    flags = {"algorithm": "NSGA2", "num_evals": POPULATION, "measure_finalists": 1, "keep_finalists": True}
    search(trained, tmp_path / "search", latency_precision="int8", **flags)
    for entry in read_json(tmp_path / "search" / "finalists.json")["finalists"]:
        ir = tmp_path / "search" / "finalists" / "ir" / entry["name"]
        assert describe_ir(ir).quantised
        assert list(entry["figures"]) == ["int8"]
        assert entry["figures"]["int8"]["settings"]["precision"] == "f32"
        spec = inherited_task(str(tmp_path / "search"))
        rows = Rows(spec, load_tokenizer(str(trained.root / "supernet")))
        outputs = predict_ir(load_ir(ir), rows.batches("validation"), spec.kind.outputs)
        assert entry["measured"]["macro_f1"] == pytest.approx(rows.measure("validation", outputs)["macro_f1"])
    report = (tmp_path / "search" / "finalists" / "report.md").read_text()
    assert "macro_f1 on the validation rows, by the int8 IR" in report
    assert "int8 latency (ms)" in report


def test_predicted_shares_do_not_depend_on_the_machines_mood() -> None:
    """It was half as fast when the finalists were measured: as shares, one prediction was right, one 20 % too high."""
    settings = LatencySettings(1, 8, "f32", 1, 0, "", "")
    largest, *others = (
        finalists_module.Finalist(
            str(gene), Candidate((gene,), {"latency": said}, 1), 0.9, Latency((took, took), settings)
        )
        for gene, (said, took) in enumerate([(10.0, 20.0), (5.0, 10.0), (3.0, 5.0)])
    )
    found = finalists_module._relative([others[0], largest, others[1]], largest)
    assert found is not None
    assert (found.predicted_ms, found.measured_ms) == ((5.0, 3.0), (5.0, 2.5))
    assert found.mean_error == pytest.approx(0.1)
    assert finalists_module._relative([largest], largest) is None


def test_the_best_of_a_search_by_latency_is_the_best_as_measured() -> None:
    """The prediction's order is wrong here, the metric of one IR as well."""

    def candidate(gene: int, latency: float, f1: float) -> Candidate:
        return Candidate((gene,), {"latency": latency, "f1": f1}, 1)

    settings = LatencySettings(1, 8, "f32", 1, 0, "", "")
    goal = Objective("f1", maximise=True)
    found = [candidate(0, 9, 0.9), candidate(1, 5, 0.895), candidate(2, 4, 0.894), candidate(3, 3, 0.893)]
    result = SearchResult((Objective("latency"), goal), tuple(found), tuple(found))
    real = [
        finalists_module.Finalist(str(each.genome[0]), each, f1, Latency((ms,), settings))
        for each, f1, ms in zip(found, (0.9, 0.895, 0.894, 0.8), (9.0, 4.0, 5.0, 3.0), strict=True)
    ]
    assert search_stage.best_as_measured(result, real, goal, None, 1.0).genome == (1,)
    assert search_stage.best_as_measured(result, real, goal, 0.5, 1.0).genome == (3,)


@pytest.mark.parametrize(
    ("count", "best", "names"),
    [
        (1, 3, ["3"]),
        (2, 0, ["0", "9"]),
        (3, 0, ["0", "4", "9"]),
        (3, 5, ["0", "5", "9"]),
        (4, 3, ["0", "3", "6", "9"]),
        (99, 3, [str(index) for index in range(10)]),
    ],
)
def test_finalists_lie_along_the_front(count: int, best: int, names: list[str]) -> None:
    front = [Candidate((gene,), {}, 1) for gene in range(10)]
    chosen = finalists_module.choose_finalists(front, front[best], count)
    assert list(chosen) == names
    assert chosen[str(best)] == front[best]
    elsewhere = Candidate((99,), {}, 1)
    assert finalists_module.choose_finalists(front, elsewhere, 1) == {"best": elsewhere}


@pytest.mark.parametrize("whose", ["the largest subnet", "a teacher"])
def test_a_search_goes_by_how_far_outputs_are_from_somebodys(trained: Trained, tmp_path: Path, whose: str) -> None:
    """The front is of divergences; the best subnet, bounds on the metric and the pictures still go by the metric."""
    flags = {"objectives": "divergence,macs", "algorithm": "NSGA2", "ref_acc": 0.1, "min_metric": 0.01}
    directory = trained.root / "supernet"
    if whose == "a teacher":
        succeed("extract", supernet_dir=directory, subnet="min", output_dir=tmp_path / "teacher")
        flags["kd_teacher_model"] = tmp_path / "teacher"
    search(trained, tmp_path / "search", **flags)
    found, rows = read_json(tmp_path / "search" / "pareto.json"), evaluations(tmp_path / "search")
    assert found["objectives"] == [asdict(Objective("macs")), asdict(Objective("divergence"))]
    none = [row["macs"] for row in rows if row["divergence"] < 1e-9]
    assert none, "the reference itself is among them"
    assert (min if whose == "a teacher" else max)(row["macs"] for row in rows) in none
    kept = [row for row in rows if row["macro_f1"] >= 0.01]
    wanted = [kept[index] for index in pareto_front(kept, [Objective("macs"), Objective("divergence")])]
    assert [entry["values"] for entry in found["front"]] == sorted(wanted, key=lambda row: row["macs"])
    assert found["best"]["values"]["macs"] == min(row["macs"] for row in kept if row["macro_f1"] >= 0.09)
    shown = {round(-float(row[4]) / 100, 6) for row in read_csv(tmp_path / "search" / "search_progression.csv")}
    assert shown == {round(row["macro_f1"], 6) for row in rows}

    spec = inherited_task(str(directory))
    rows_of_task = Rows(spec, load_tokenizer(str(directory)))
    supernet, _ = load_supernet(str(directory), spec)
    logits = []
    other = found["front"][0 if whose == "the largest subnet" else -1]
    for genome in (SPACE.min_genome if whose == "a teacher" else SPACE.max_genome, tuple(other["genome"])):
        with supernet.activate(supernet.space.subnet(genome)):
            said = outputs_of(supernet.model, rows_of_task, rows_of_task.batches("validation"))["logits"]
        logits.append(torch.tensor(np.stack(said)).double().log_softmax(-1))
    teacher, student = logits
    expected = (teacher.exp() * (teacher - student)).sum(-1).mean()
    assert other["values"]["divergence"] == pytest.approx(float(expected), abs=3e-8)  # hardly trained

    middle = found["front"][len(found["front"]) // 2]
    succeed("extract", supernet_dir=directory, search_dir=tmp_path / "search", output_dir=tmp_path / "small",
            max_macs=middle["values"]["macs"] + 0.5)  # fmt: skip
    within = [e["values"] for e in found["front"] if e["values"]["macs"] <= middle["values"]["macs"]]
    chosen = read_json(tmp_path / "small" / "subnet.json")["search_values"]
    assert chosen == min(within, key=lambda values: values["divergence"])


def test_a_latency_is_predicted_by_what_is_handed_in(trained: Trained) -> None:
    """An objective of its own unit, bounded and shown as such."""
    supernet = Supernet(build_tiny_bert(), SPACE)
    bounds = ConstraintArguments(max_latency_ms=1.5)
    predict = lambda subnet: 1.0 + subnet[Key("mha_block", 1)]  # noqa: E731
    objectives = objectives_of("latency,metric,macs", "f1")
    metric = objectives[-1]
    problem = build_problem(supernet, objectives, metric, bounds, Conditions(LENGTH, predict))
    assert [goal.name for goal in objectives] == ["latency", "macs", "f1"]
    assert problem.cost.shown(problem.costs(SPACE.max_genome)["latency"]) == "2.00 ms latency"
    assert problem.constraints == (Constraint("latency", 1.5),)
    assert problem.window is not None
    assert problem.window.violation(SPACE.max_genome) == pytest.approx(1 / 3)
    assert problem.window.violation(SPACE.min_genome) == 0


@pytest.mark.usefixtures("macs_as_ms")
def test_a_search_by_latency_goes_by_a_table_that_it_measures_first(trained: Trained, tmp_path: Path) -> None:
    search(trained, tmp_path, algorithm="NSGA2", objectives="metric,latency", num_evals=2 * POPULATION)
    found = read_json(tmp_path / "pareto.json")
    assert found["cost"] == "latency"
    assert found["latency_table"]["length"] == LENGTH
    assert found["latency_table"]["accuracy"]["mean_error"] == pytest.approx(0, abs=1e-9)
    assert (tmp_path / "latency_table.json").is_file()
    for entry in found["front"]:
        assert entry["values"]["latency"] == pytest.approx(entry["values"]["macs"] / 1e6)


@pytest.mark.usefixtures("macs_as_ms")
def test_a_search_by_another_table_is_another_search(trained: Trained, tmp_path: Path) -> None:
    table, out = tmp_path / "table.json", tmp_path / "search"
    flags = {"algorithm": "NSGA2", "objectives": "metric,latency", "num_evals": POPULATION, "latency_table": table}
    search(trained, out, **flags)
    kept = read_json(out / "latency_table.json")
    assert kept == read_json(table)
    front = (out / "pareto.json").read_bytes()

    measured = read_json(table)
    states, ms = measured["states"], measured["base"][0]["ms"]
    states.append({**states[0], "sizes": dict.fromkeys(states[0]["sizes"], 99), "ratio": 0.9})  # as for another space
    ms.append(2 * ms[0])
    write_json(table, measured)
    search(trained, out, **flags)
    header = read_json(out / "stage.json")
    write_json(out / "stage.json", {**header, "status": "running"})
    search(trained, out, **flags)
    assert (out / "pareto.json").read_bytes() == front
    assert read_json(out / "latency_table.json") == kept

    states[0]["ratio"] += 0.01
    write_json(table, measured)
    told = f"output_dir {out} holds another run (latency_table: {table} has other times than {out}/latency_table.json)"
    for status in ("complete", "running"):
        write_json(out / "stage.json", {**header, "status": status})
        with pytest.raises(AssertionError, match=re.escape(f"eftnas: error: {told}; choose another --output_dir or")):
            search(trained, out, **flags)
    del states[-1]
    write_json(table, measured)
    inside = {**flags, "latency_table": out / "latency_table.json", "overwrite_output_dir": True}
    with pytest.raises(AssertionError, match=r"latency_table\.json, which --overwrite_output_dir would delete; choose"):
        search(trained, out, **inside)
    with pytest.raises(AssertionError, match=r"no subnet was found with at most 0\.001 ms latency; the nearest has"):
        search(trained, tmp_path / "new", **flags, max_latency_ms=0.001)
    assert not (tmp_path / "new").exists()
    search(trained, out, **flags, overwrite_output_dir=True)
    again = read_json(out / "latency_table.json")["states"]
    assert [state["ratio"] for state in again] == [state["ratio"] for state in states]
    table.unlink()  # where the search has it all
    search(trained, out, **flags)


@pytest.mark.usefixtures("macs_as_ms")
def test_what_was_measured_before_bounds_were_refused_is_kept(trained: Trained, tmp_path: Path) -> None:
    flags = {"algorithm": "NSGA2", "objectives": "metric,latency", "num_evals": POPULATION}
    with pytest.raises(AssertionError, match=r"no subnet was found with at most 0\.001 ms latency; the nearest has"):
        search(trained, tmp_path, **flags, max_latency_ms=0.001)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.keys() == {"stage.json", "latency_table.json"}
    search(trained, tmp_path, **flags, max_latency_ms=1000)
    assert (tmp_path / "latency_table.json").read_bytes() == left["latency_table.json"]
    with pytest.raises(AssertionError, match="holds another run"):  # now it has more than the table
        search(trained, tmp_path, **flags, max_latency_ms=999)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"objectives": "metric,mac"},
            "there is no objective 'mac'; did you mean 'macs'?; known are metric, divergence, macs, params",
        ),
        ({"objectives": "metric"}, "--objectives needs metric and at least one of macs, params"),
        ({"objectives": "macs,params"}, "--objectives needs metric and at least one of macs, params"),
        ({"objectives": "metric,macs,macs"}, "--objectives names macs twice"),
        ({"objectives": "metric,divergence,macs"}, "--objectives takes either metric or divergence: both are about"),
        (
            {"objectives": "divergence,macs", "algorithm": "NSGA2", "early_stop": 0.9},
            "--early_stop bounds a metric that is a mean over rows; a divergence has no bound",
        ),
        ({"kd_teacher_model": "none"}, "--kd_teacher_model has nothing to say in a search by the metric"),
        ({"objectives": "divergence,macs"}, "bootstrapNAS.search.aspiration_points is of MACs and the metric, but"),
        ({"objectives": "metric,params"}, "bootstrapNAS.search.aspiration_points is of MACs and the metric, but"),
        (
            {"objectives": "metric,latency", "algorithm": "NSGA2", "latency_precision": "f23"},
            "unknown precision 'f23', known: bf16, f16, f32, int8, int8+bf16; did you mean 'f32'?",
        ),
        ({"max_latency_ms": 5, "latency_length": 65}, "length 65 exceeds the 64 tokens that the model takes"),
        ({"max_macs": 0.5}, "--max_macs is in units of one, not 0.5; a share of the full model's is --max_macs_ratio"),
        ({"max_params_ratio": 30}, "--max_params_ratio must lie above 0 and at most 1, not 30"),
        ({"max_macs": -4}, "--max_macs must be a number above 0, not -4"),
        ({"max_latency_ms": "nan"}, "--max_latency_ms must be a number above 0, not nan"),
        ({"min_metric": 101}, "--min_metric must be a fraction or a percentage, not 101"),
        ({"max_metric": 10}, "--max_metric: more of macro_f1 is better; its bound is --min_metric"),
        ({"min_macs_ratio": 0.5, "max_macs_ratio": 0.4}, "the least MACs asked for exceed the largest"),
        ({"max_macs": 1000}, "no subnet was found with at most 0.001 M MACs (… of the full model's); the nearest has"),
        ({"measure_finalists": -1}, "--measure_finalists must not be negative, is -1"),
        ({"measure_finalists": 1, "latency_precision": "int7"}, "unknown precision 'int7'"),
        ({"measure_finalists": 1, "latency_device": "NPU"}, "OpenVINO has no device 'NPU' here, only CPU"),
        ({"measure_finalists": 1, "latency_weight_format": "int4"}, "cannot be exported with weight_format int4: "),
        ({"measure_finalists": 1, "latency_batch": 0}, "--latency_batch must be at least 1, not 0"),
        ({"measure_finalists": 1, "latency_length": 0}, "--latency_length must be at least 1, not 0"),
        ({"keep_finalists": True}, "--keep_finalists needs --measure_finalists: none are exported without"),
        (
            {"latency_precision": "int8"},
            "--latency_precision needs latency among --objectives, or --max_latency_ms, or --measure_finalists",
        ),
        (
            {"measure_finalists": 1, "latency_table": "table.json"},
            "--latency_table needs latency among --objectives, or --max_latency_ms",
        ),
        ({"max_mac": 1000}, "unknown flag --max_mac; did you mean '--max_macs'?"),
    ],
)
def test_objectives_and_bounds_that_make_no_sense(
    trained: Trained, tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    outcome = eftnas("search", supernet_dir=trained.root / "supernet", output_dir=tmp_path / "new", **flags)
    assert outcome.status == 2
    told = [line for line in outcome.err.splitlines() if "error:" in line]
    assert len(told) == 1
    assert re.search(re.escape(message).replace("…", ".+"), told[0]), told[0]
    assert not (tmp_path / "new" / "evaluations.jsonl").exists()


@pytest.mark.parametrize("name", ["max", "min"])
def test_fixed_blocks_vanish_from_the_extracted_model(trained: Trained, tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    succeed("extract", supernet_dir=trained.root / "supernet", subnet=name, output_dir=directory)
    noted = read_json(directory / "subnet.json")
    subnet = subnet_from_json(noted["sizes"])
    assert subnet[Key("ffn_block", 0)] == 0
    assert subnet[Key("mha_block", 1)] == subnet[Key("ffn_block", 1)] == (1 if name == "max" else 0)
    small = load_model(str(directory), AutoModelForSequenceClassification).eval()
    names = dict(small.named_parameters())
    assert not [n for n in names if "layer.0.intermediate" in n or "layer.0.output.dense" in n]
    assert "bert.encoder.layer.0.attention.self.query.weight" in names
    assert "bert.encoder.layer.0.output.LayerNorm.weight" in names  # as published, the layer's last norm stays
    assert sum(p.numel() for p in small.parameters()) == noted["costs"]["params"] < noted["full_costs"]["params"]
    assert noted["costs"]["macs"] < noted["full_costs"]["macs"]
    supernet = Supernet(load_model(str(trained.root / "supernet"), AutoModelForSequenceClassification).eval())
    ids = torch.arange(24).reshape(3, 8)
    with torch.inference_mode(), supernet.activate(subnet) as model:
        torch.testing.assert_close(small(ids).logits, model(ids).logits, atol=0, rtol=0)
    assert metrics_of(model_dir=directory)["accuracy"] >= 0
