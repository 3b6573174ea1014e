"""Search: algorithms, log, loop, selection rules and the files that a search writes."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrapnas.errors import UserError
from bootstrapnas.search import (
    ALGORITHMS,
    Algorithm,
    Candidate,
    Constraint,
    CostWindow,
    Estimate,
    EvaluationLog,
    Genome,
    NothingQualifiesError,
    Objective,
    SearchResult,
    SearchSettings,
    build_algorithm,
    hypervolume,
    pareto_front,
    run_search,
    select_best,
    select_by_budget,
    violation,
    write_pareto_json,
    write_progression_csv,
    write_progression_png,
)
from bootstrapnas.search.base import GENETIC

OBJECTIVES = (Objective("macs"), Objective("accuracy", maximise=True))
SPACES = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def toy(genome: Genome, cardinalities: Sequence[int]) -> dict[str, float]:
    """Cost grows linearly with every gene, accuracy saturates, and genes differ in what they bring for their cost."""
    shares = [1 - 0.8 * gene / max(1, count - 1) for gene, count in zip(genome, cardinalities, strict=True)]
    cost = sum((1 + i % 3) * share for i, share in enumerate(shares))
    kept = math.prod(1 - (0.1 + 0.4 * (i * 7 % 5) / 4) * (1 - share) ** 2 for i, share in enumerate(shares))
    return {"macs": 1e6 * cost, "accuracy": kept}


def drive(
    algorithm: Algorithm, cardinalities: Sequence[int], budget: int, constraints: Sequence[Constraint] = ()
) -> list[Genome]:
    """Return the genomes that an algorithm proposes for `toy`, without a log."""
    proposed: list[Genome] = []
    while len(proposed) < budget and (batch := algorithm.ask()):
        values = [toy(genome, cardinalities) for genome in batch]
        told = [[goal.minimised(entry) for goal in OBJECTIVES] for entry in values]
        algorithm.tell(batch, told, [violation(constraints, entry) for entry in values])
        proposed += batch
    return proposed


def share_of(genome: Genome, cardinalities: Sequence[int]) -> float:
    """Return a cost of a genome as a share of the largest one's; hardly any two cost the same."""
    weights = [1 + 2 * math.modf(0.618034 * (i + 1))[0] for i in range(len(cardinalities))]
    kept = [1 - 0.9 * gene / max(1, count - 1) for gene, count in zip(genome, cardinalities, strict=True)]
    return sum(map(math.prod, zip(weights, kept, strict=True))) / sum(weights)


def window_of(cardinalities: Sequence[int], least: float, most: float) -> CostWindow:
    bounds = [Constraint("share", most), Constraint("share", least, minimum=True)]
    return CostWindow(cardinalities, lambda genome: {"share": share_of(genome, cardinalities)}, bounds)


def extremes(cardinalities: Sequence[int]) -> list[Genome]:
    return [(0,) * len(cardinalities), tuple(count - 1 for count in cardinalities)]


def candidate(macs: float, accuracy: float, genome: Genome = (1,), generation: int = 1) -> Candidate:
    return Candidate(genome, {"macs": macs, "accuracy": accuracy}, generation)


# -- algorithms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
class TestEveryAlgorithm:
    @settings(max_examples=25, deadline=None)
    @given(cardinalities=SPACES, seed=st.integers(0, 2**31), mutation_prob=st.sampled_from([None, 0.02]))
    def test_respects_bounds_and_is_deterministic(
        self, name: str, cardinalities: list[int], seed: int, mutation_prob: float | None
    ) -> None:
        chosen = SearchSettings(name, num_evals=36, population=6, seed=seed, mutation_prob=mutation_prob)
        runs = [
            drive(build_algorithm(cardinalities, chosen, extremes(cardinalities)), cardinalities, chosen.budget)
            for _ in range(2)
        ]
        assert runs[0] == runs[1]
        for genome in runs[0]:
            assert type(genome) is tuple
            assert all(type(gene) is int for gene in genome)
            assert all(0 <= gene < count for gene, count in zip(genome, cardinalities, strict=True))

    def test_proposes_seeds_first(self, name: str) -> None:
        seeds = extremes((4, 5, 6))
        batch = build_algorithm((4, 5, 6), SearchSettings(name), seeds).ask()
        assert batch[:2] == seeds
        assert len(set(batch)) == len(batch)

    @pytest.mark.parametrize("cardinalities", [(1,), (1, 1, 1), (2,), (2, 1, 3), (3, 3, 3)])
    def test_exhausts_a_tiny_space_and_stops(self, name: str, cardinalities: tuple[int, ...]) -> None:
        algorithm = build_algorithm(cardinalities, SearchSettings(name, num_evals=4000, population=10))
        proposed = drive(algorithm, cardinalities, 4000)
        assert len(set(proposed)) == math.prod(cardinalities)
        assert len(proposed) < 4000
        assert algorithm.ask() == []

    def test_works_with_the_least_population(self, name: str) -> None:
        population = 2 if name in GENETIC else 1
        algorithm = build_algorithm((5, 5, 5), SearchSettings(name, num_evals=12, population=population))
        assert len(drive(algorithm, (5, 5, 5), 12)) == 12

    def test_seed_changes_proposals(self, name: str) -> None:
        first, second = (build_algorithm((9,) * 6, SearchSettings(name, seed=seed)).ask() for seed in (0, 1))
        assert first != second

    def test_leaves_global_random_state_alone(self, name: str) -> None:
        before = random.getstate(), np.random.get_state()[1].tolist()
        drive(build_algorithm((4,) * 5, SearchSettings(name)), (4,) * 5, 60)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before

    def test_suggests_in_under_a_millisecond(self, name: str) -> None:
        cardinalities = (5,) * 48
        algorithm = build_algorithm(cardinalities, SearchSettings(name))
        start = time.process_time()
        proposed = drive(algorithm, cardinalities, 400)
        assert (time.process_time() - start) / len(proposed) < 1e-3

    def test_proposes_what_lies_in_a_window(self, name: str) -> None:
        """Every proposal, seeds included, although one genome in a thousand lies there; the same ones each time."""
        cardinalities = (5,) * 24
        runs = []
        for _ in range(2):
            window = window_of(cardinalities, 0.3, 0.302)
            algorithm = build_algorithm(cardinalities, SearchSettings(name, seed=3), extremes(cardinalities), window)
            runs.append(drive(algorithm, cardinalities, 100))
        assert runs[0] == runs[1]
        assert len(runs[0]) == 100
        assert len(set(runs[0])) > 90
        inside = [0.3 <= share_of(genome, cardinalities) <= 0.302 for genome in runs[0]]
        assert all(inside[:20])
        assert np.mean(inside) > 0.9  # of offspring, what a walk does not lead in stays as it was bred

    def test_ends_with_a_small_window(self, name: str) -> None:
        cardinalities, least = (3, 3, 3, 2), 0.85
        inside = {g for g in product(*map(range, cardinalities)) if least <= share_of(g, cardinalities)}
        algorithm = build_algorithm(
            cardinalities, SearchSettings(name, population=6), window=window_of(cardinalities, least, 1.0)
        )
        assert set(drive(algorithm, cardinalities, 40)) == inside

    def test_what_violates_a_bound_loses_against_what_keeps_it(self, name: str) -> None:
        """A bound that only an evaluation can tell; the random baseline has nothing to learn from it."""
        if name == "random":
            return
        cardinalities, bounds = (5,) * 12, [Constraint("accuracy", 0.7, minimum=True)]
        algorithm = build_algorithm(cardinalities, SearchSettings(name), extremes(cardinalities))
        first = drive(algorithm, cardinalities, 20, bounds)
        later = drive(algorithm, cardinalities, 180, bounds)[-60:]
        broken = lambda genomes: np.mean([violation(bounds, toy(g, cardinalities)) > 0 for g in genomes])  # noqa: E731
        assert broken(first) > 0.9
        assert broken(later) < 0.5
        population = algorithm._algorithm.pop.get("CV")[:, 0]  # type: ignore[attr-defined]
        assert not population.any()


def test_nsga2_beats_random_search() -> None:
    cardinalities = (5,) * 12
    reference = {"macs": 1.01 * toy((0,) * 12, cardinalities)["macs"], "accuracy": 0.0}

    def mean_volume(name: str) -> float:
        volumes = []
        for seed in range(5):
            chosen = SearchSettings(name, num_evals=120, seed=seed)
            algorithm = build_algorithm(cardinalities, chosen, extremes(cardinalities))
            values = [toy(genome, cardinalities) for genome in drive(algorithm, cardinalities, chosen.budget)]
            volumes.append(hypervolume(values, OBJECTIVES, reference))
        return sum(volumes) / len(volumes)

    assert mean_volume("NSGA2") > 1.03 * mean_volume("random")


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_rnsga2_gathers_near_the_point_aspired_to(share: float) -> None:
    """Its population ends nearer to the point, an ideal one at a share of the cost, than that of NSGA-II."""
    cardinalities = (5,) * 12
    largest = toy((0,) * 12, cardinalities)["macs"]
    point = np.array([share * largest, -0.95])

    def mean_distance(name: str) -> float:
        chosen = SearchSettings(name, num_evals=400, aspiration_points=(tuple(point.tolist()),))
        algorithm = build_algorithm(cardinalities, chosen, extremes(cardinalities))
        drive(algorithm, cardinalities, chosen.budget)
        found = algorithm._algorithm.pop.get("F")  # type: ignore[attr-defined]
        return float(np.linalg.norm((found - point) / [largest, 1.0], axis=1).mean())

    assert mean_distance("RNSGA2") < 0.8 * mean_distance("NSGA2")


def test_rnsga2_forgets_the_extremes_of_old_generations() -> None:
    cardinalities = (5,) * 6
    chosen = SearchSettings("RNSGA2", num_evals=200, extreme_points_as_ref_points=True, weights=(2.0, 1.0))
    algorithm = build_algorithm(cardinalities, chosen)
    drive(algorithm, cardinalities, chosen.budget)
    assert len(algorithm._algorithm.survival.ref_points) <= 1 + 2  # type: ignore[attr-defined]


def test_mutation_prob_zero_only_recombines() -> None:
    """Without mutation a gene that all parents share keeps its value; with our default it does not."""

    def later_genes(mutation_prob: float | None) -> set[int]:
        chosen = SearchSettings(population=2, num_evals=40, mutation_prob=mutation_prob)
        proposed = drive(build_algorithm((9, 9), chosen, [(4, 0), (4, 8)]), (9, 9), 40)
        return {first for first, _ in proposed}

    assert later_genes(0.0) == {4}
    assert len(later_genes(None)) > 1


def test_crossover_rounds_to_the_nearest_gene() -> None:
    """Rounding down would drift towards larger subnets, by 0.2 genes a generation here."""
    drift = []
    for seed in range(20):
        chosen = SearchSettings(population=40, seed=seed, mutation_prob=0.0)
        algorithm = build_algorithm((9,) * 6, chosen)
        parents = algorithm.ask()
        algorithm.tell(parents, [[0.0, 0.0]] * 40, [0.0] * 40)
        drift.append(np.mean(algorithm.ask()) - np.mean(parents))
    assert abs(np.mean(drift)) < 0.1


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_evals", "population", "generations", "budget"),
    [(3000, 40, 75, 3000), (1000, 40, 25, 1000), (200, 20, 10, 200), (219, 20, 10, 200), (20, 20, 1, 20), (7, 2, 3, 6)],
)
def test_num_evals_is_rounded_down(num_evals: int, population: int, generations: int, budget: int) -> None:
    chosen = SearchSettings(num_evals=num_evals, population=population)
    assert (chosen.generations, chosen.budget) == (generations, budget)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_evals": 10, "population": 20}, "population (20) must not exceed num_evals (10)"),
        ({"population": 0}, "population must be at least 1, not 0"),
        ({"population": 1}, "population must be at least 2, not 1: NSGA2 crosses the subnets of a generation; 20 is"),
        ({"seed": -1}, "seed must not be negative"),
        ({"crossover_prob": 1.5}, "crossover_prob must lie between 0 and 1, not 1.5"),
        ({"mutation_prob": -0.1}, "mutation_prob must lie between 0 and 1"),
        ({"mutation_eta": -3.0}, "mutation_eta must not be negative"),
        ({"acc_delta": -1.0}, "acc_delta must not be negative"),
        ({"epsilon": -1.0}, "epsilon must not be negative"),
        ({"aspiration_points": ()}, "aspiration_points needs at least one point"),
        ({"aspiration_points": ((0.0, 0.0), (1.0,))}, "as many numbers as weights: one per objective"),
        ({"weights": (1.0, 1.0, 1.0)}, "as many numbers as weights: one per objective"),
        ({"ref_acc": -90.0}, "ref_acc must be a fraction, a percentage, or -1"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        SearchSettings(**wrong)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_unknown_algorithm_suggests_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"no algorithm 'NSGA-II'; did you mean 'NSGA2'\?; known are NSGA2, RNSGA2, random"
    ):
        build_algorithm((2, 2), SearchSettings("NSGA-II"))


@pytest.mark.parametrize(
    ("cardinalities", "seeds", "message"),
    [
        ((), [], "a space needs genes"),
        ((3, 0), [], "at least one choice each"),
        ((3, 3), [(0, 3)], r"the seed \[0, 3\] is not in the space"),
        ((3, 3), [(0,)], r"the seed \[0\] is not in the space"),
        ((3, 3), [(0, 0), (1, 1), (2, 2)], "population must be at least 3"),
    ],
)
def test_space_and_seeds_are_checked(cardinalities: tuple[int, ...], seeds: list[Genome], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_algorithm(cardinalities, SearchSettings(population=2), seeds)


# -- log ---------------------------------------------------------------------------------------------------------------


def test_log_reads_back_what_it_recorded(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    log = EvaluationLog(path, (3, 4), {"seed": 7})
    stored = log.record((0, 3), {"accuracy": np.float32(0.1), "macs": 12345678901}, 0.5)  # type: ignore[dict-item]
    log.record((2, 0), {"accuracy": 1 / 3, "macs": 1}, 0.25)
    again = EvaluationLog(path, (3, 4), {"seed": 7})
    assert len(again) == 2
    assert again[0, 3] == stored == {"accuracy": float(np.float32(0.1)), "macs": 12345678901}
    assert again[2, 0]["accuracy"] == 1 / 3
    assert (1, 1) not in again
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"format": 1, "cardinalities": [3, 4], "settings": {"seed": 7}}
    assert lines[2] == {"index": 1, "genome": [2, 0], "values": {"accuracy": 1 / 3, "macs": 1}, "seconds": 0.25}


def test_log_drops_a_line_cut_short_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    log = EvaluationLog(path, (3, 4), {})
    log.record((0, 3), {"macs": 1}, 0.5)
    whole = path.read_bytes()
    log.record((1, 1), {"macs": 2}, 0.5)
    longer = path.read_bytes()
    for length in range(len(whole), len(longer)):
        path.write_bytes(longer[:length])
        resumed = EvaluationLog(path, (3, 4), {})
        assert len(resumed) == 1
        assert path.read_bytes() == whole
    resumed.record((1, 1), {"macs": 2}, 0.5)
    assert path.read_bytes() == longer
    assert [entry.name for entry in tmp_path.iterdir()] == ["evaluations.jsonl"]


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "", "line 1: it is not JSON"),
        (0, "[]", "line 1: it is not a JSON object"),
        (0, '{"a": 1}', "line 1: it is not the header of an evaluation log"),
        (1, '{"index": 0, "geno', "line 2: it is not JSON"),
        (2, "\udcff", "line 3: it is not JSON"),
        (2, '{"index": 5, "genome": [1, 1], "values": {}}', "line 3: its index must be 1, not 5"),
        (2, '{"index": 1, "genome": [1, 4], "values": {}}', r"line 3: \[1, 4\] is not a genome"),
        (2, '{"index": 1, "genome": [1], "values": {}}', r"line 3: \[1\] is not a genome"),
        (2, '{"index": 1, "genome": [0, 3], "values": {}}', r"line 3: the genome \[0, 3\] occurs twice"),
        (2, '{"index": 1, "genome": [1, 1], "values": {"macs": "2"}}', "line 3: its values are not numbers"),
        (2, '{"index": 1, "genome": [1, 1], "values": {}, "stopped": 1.5}', "line 3: stopped is 1.5, which"),
    ],
)
def test_corrupt_log_is_refused(tmp_path: Path, line: int, text: str, message: str) -> None:
    path = tmp_path / "evaluations.jsonl"
    log = EvaluationLog(path, (3, 4), {})
    log.record((0, 3), {"macs": 1}, 0.5)
    log.record((1, 1), {"macs": 2}, 0.5)
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=f"evaluations.jsonl is corrupt in {message}"):
        EvaluationLog(path, (3, 4), {})


def test_log_of_another_space_or_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    EvaluationLog(path, (3, 4), {})
    with pytest.raises(UserError, match="holds another search: its space has 2 genes with 3, 4 choices"):
        EvaluationLog(path, (3, 5), {})
    path.write_text('{"format": 2, "cardinalities": [3, 4], "settings": {}}\n')
    with pytest.raises(UserError, match="has format 2"):
        EvaluationLog(path, (3, 4), {})


# -- loop --------------------------------------------------------------------------------------------------------------

CARDINALITIES = (5, 4, 1, 6, 3)


def search(path: Path, evaluated: list[Genome], name: str = "NSGA2", budget: int = 60) -> SearchResult:
    def evaluate(genome: Genome) -> dict[str, float]:
        evaluated.append(genome)
        return toy(genome, CARDINALITIES)

    algorithm = build_algorithm(
        CARDINALITIES, SearchSettings(name, num_evals=60, population=10), extremes(CARDINALITIES)
    )
    return run_search(algorithm, evaluate, OBJECTIVES, EvaluationLog(path, CARDINALITIES, {}), budget)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_search_evaluates_once_and_returns_the_front(tmp_path: Path, name: str) -> None:
    evaluated: list[Genome] = []
    result = search(tmp_path / "log.jsonl", evaluated, name)
    proposed = [each.genome for each in result.candidates]
    assert len(proposed) == 60
    assert evaluated == list(dict.fromkeys(proposed))
    assert [each.generation for each in result.candidates] == sorted(each.generation for each in result.candidates)
    assert result.candidates[0].generation == 1
    costs = [each.values["macs"] for each in result.front]
    accuracies = [each.values["accuracy"] for each in result.front]
    assert costs == sorted(costs)
    assert accuracies == sorted(accuracies)
    assert result.front[0].genome == (4, 3, 0, 5, 2)
    assert result.front[-1].genome == (0,) * 5
    assert len({each.genome for each in result.front}) == len(result.front)


def test_generations_are_told_with_all_candidates_so_far(tmp_path: Path) -> None:
    told: list[int] = []
    settings = SearchSettings(num_evals=25, population=10)
    run_search(
        build_algorithm(CARDINALITIES, settings),
        lambda genome: toy(genome, CARDINALITIES),
        OBJECTIVES,
        EvaluationLog(tmp_path / "log.jsonl", CARDINALITIES, {}),
        budget=25,
        generation_done=lambda candidates: told.append(len(candidates)),
    )
    assert told == [10, 20, 25]


def test_search_repeats_are_memoised_and_kept_as_candidates(tmp_path: Path) -> None:
    class Twice:
        def __init__(self) -> None:
            self.told: list[list[list[float]]] = []

        def ask(self) -> list[Genome]:
            return [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0)]

        def tell(
            self, genomes: Sequence[Genome], objectives: Sequence[Sequence[float]], violations: Sequence[float]
        ) -> None:
            assert list(violations) == [0.0, 0.0]
            self.told.append([list(row) for row in objectives])

    evaluated: list[Genome] = []
    algorithm, seen = Twice(), []

    def evaluate(genome: Genome) -> dict[str, float]:
        evaluated.append(genome)
        return {"macs": 10 - genome[0], "accuracy": 0.5}

    log = EvaluationLog(tmp_path / "log.jsonl", CARDINALITIES, {})
    result = run_search(algorithm, evaluate, OBJECTIVES, log, 5, lambda done, each: seen.append((done, each)))
    assert len(evaluated) == len(log) == 2
    assert [each.generation for each in result.candidates] == [1, 1, 2, 2, 3]
    assert algorithm.told == [[[10, -0.5], [9, -0.5]]] * 2
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5]
    assert [each for _, each in seen] == list(result.candidates)
    assert [each.genome for each in result.front] == [(1, 0, 0, 0, 0)]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("stop", [0, 1, 9, 10, 11, 37])
def test_search_resumes_where_it_failed(tmp_path: Path, name: str, stop: int) -> None:
    expected = search(tmp_path / "whole.jsonl", [], name)
    path = tmp_path / "stopped.jsonl"
    evaluated: list[Genome] = []

    def fail(genome: Genome) -> dict[str, float]:
        if len(evaluated) == stop:
            raise RuntimeError("out of memory")
        evaluated.append(genome)
        return toy(genome, CARDINALITIES)

    algorithm = build_algorithm(
        CARDINALITIES, SearchSettings(name, num_evals=60, population=10), extremes(CARDINALITIES)
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        run_search(algorithm, fail, OBJECTIVES, EvaluationLog(path, CARDINALITIES, {}), 60)
    resumed: list[Genome] = []
    assert search(path, resumed, name) == expected
    assert not set(resumed) & set(evaluated)


def test_search_can_be_extended(tmp_path: Path) -> None:
    evaluated: list[Genome] = []
    short = search(tmp_path / "log.jsonl", evaluated, budget=25)
    assert len(short.candidates) == 25
    long = search(tmp_path / "log.jsonl", evaluated, budget=60)
    assert long.candidates[:25] == short.candidates
    assert len(evaluated) == len(set(evaluated))


CHILD = """
import sys, time
from pathlib import Path
import test_search
slow = test_search.toy
test_search.toy = lambda *arguments: (time.sleep(0.01), slow(*arguments))[1]
test_search.search(Path(sys.argv[1]), [])
print("done", flush=True)
"""


def test_search_survives_sigkill(tmp_path: Path) -> None:
    expected = search(tmp_path / "whole.jsonl", [])
    path = tmp_path / "killed.jsonl"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([*sys.path, str(Path(__file__).parent)]))
    for lines in (1, 7, 24):
        command = [sys.executable, "-c", CHILD, str(path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            while child.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < lines):
                time.sleep(0.001)
            child.send_signal(signal.SIGKILL)
            assert child.stdout is not None
            assert child.stdout.read() == ""
        assert child.returncode == -signal.SIGKILL
    evaluated: list[Genome] = []
    assert search(path, evaluated) == expected
    distinct = len({each.genome for each in expected.candidates})
    assert 0 < len(evaluated) <= distinct - 23


LIGHT = (Constraint("macs", 6e6), Constraint("accuracy", 0.63, minimum=True))


def bounded(path: Path, evaluated: list[Genome], constraints: Sequence[Constraint], stop: int = 10**9) -> SearchResult:
    """Search with costs that are known beforehand and without a window, so that some of them break the bounds."""

    def evaluate(genome: Genome) -> dict[str, float]:
        if len(evaluated) == stop:
            raise RuntimeError("out of memory")
        evaluated.append(genome)
        return {"accuracy": toy(genome, CARDINALITIES)["accuracy"]}

    return run_search(
        build_algorithm(CARDINALITIES, SearchSettings(num_evals=60, population=10), extremes(CARDINALITIES)),
        evaluate,
        OBJECTIVES,
        EvaluationLog(path, CARDINALITIES, {}),
        60,
        costs=lambda genome: {"macs": toy(genome, CARDINALITIES)["macs"]},
        constraints=constraints,
    )


def test_what_costs_too_much_is_logged_and_counted_but_not_evaluated(tmp_path: Path) -> None:
    evaluated: list[Genome] = []
    result = bounded(tmp_path / "log.jsonl", evaluated, LIGHT)
    assert len(result.candidates) == 60
    heavy = [each for each in result.candidates if each.values["macs"] > 6e6]
    assert result.candidates[0] in heavy
    for each in heavy:
        # Its accuracy is not known, which counts as the whole of that bound.
        assert (each.evaluated, each.values) == (False, {"macs": toy(each.genome, CARDINALITIES)["macs"]})
        assert each.violation == pytest.approx(each.values["macs"] / 6e6 - 1 + 1)
    light = {each.genome for each in result.candidates} - {each.genome for each in heavy}
    assert set(evaluated) == light
    poor = [each for each in result.candidates if each.evaluated and each.violation]
    assert poor
    assert all(each.violation == pytest.approx(1 - each.values["accuracy"] / 0.63) for each in poor)
    assert result.front
    assert all(each.values["macs"] <= 6e6 and each.values["accuracy"] >= 0.63 for each in result.front)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]
    assert {tuple(line["genome"]) for line in lines if "accuracy" not in line["values"]} == {e.genome for e in heavy}


@pytest.mark.parametrize("stop", [0, 1, 12])
def test_bounded_search_resumes_where_it_failed(tmp_path: Path, stop: int) -> None:
    whole: list[Genome] = []
    expected = bounded(tmp_path / "whole.jsonl", whole, LIGHT)
    evaluated: list[Genome] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        bounded(tmp_path / "stopped.jsonl", evaluated, LIGHT, stop)
    resumed: list[Genome] = []
    assert bounded(tmp_path / "stopped.jsonl", resumed, LIGHT) == expected
    assert evaluated + resumed == whole


def test_front_is_of_those_that_come_nearest_when_none_keeps_the_bounds(tmp_path: Path) -> None:
    result = bounded(tmp_path / "log.jsonl", [], [Constraint("accuracy", 1.5, minimum=True)])
    assert {each.genome for each in result.front} == {(0, 0, 0, 0, 0)}


def test_log_of_a_search_with_other_bounds_or_costs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    bounded(path, [], LIGHT)
    with pytest.raises(UserError, match=r"holds another search: its evaluation of \[0, 0, 0, 0, 0\] has no 'accuracy'"):
        bounded(path, [], ())
    path.write_text(path.read_text().replace('"macs": ', '"macs": 1'))
    with pytest.raises(UserError, match=r"holds another search: macs of \[0, 0, 0, 0, 0\] is 1\d+,.* there, .* here"):
        bounded(path, [], LIGHT)


# -- evaluations that are stopped --------------------------------------------------------------------------------------


def in_parts(
    path: Path, done: list[tuple[Genome, float]], constraints: Sequence[Constraint] = (), stop: int = 10**9
) -> SearchResult:
    """Search by estimates whose best case nears the value from above in four steps, and whose value does from below."""

    def evaluate(genome: Genome) -> Generator[Estimate, None, None]:
        accuracy = toy(genome, CARDINALITIES)["accuracy"]
        for share in (0.25, 0.5, 0.75, 1.0):
            if len(done) == stop:
                raise RuntimeError("out of memory")
            done.append((genome, share))
            yield Estimate({"accuracy": accuracy * share}, {"accuracy": accuracy + 0.2 * (1 - share)}, share)

    return run_search(
        build_algorithm(CARDINALITIES, SearchSettings(num_evals=60, population=10), extremes(CARDINALITIES)),
        evaluate,
        OBJECTIVES,
        EvaluationLog(path, CARDINALITIES, {}),
        60,
        costs=lambda genome: {"macs": toy(genome, CARDINALITIES)["macs"]},
        constraints=constraints,
    )


@pytest.mark.parametrize("constraints", [(), (Constraint("accuracy", 0.63, minimum=True),)])
def test_what_cannot_reach_the_front_is_stopped_and_stays_off_it(
    tmp_path: Path, constraints: Sequence[Constraint]
) -> None:
    """What is stopped is beaten by something that was evaluated before; what is on the front is there by its value."""
    done: list[tuple[Genome, float]] = []
    result = in_parts(tmp_path / "log.jsonl", done, constraints)
    stopped = [each for each in result.candidates if each.stopped is not None]
    whole = [each for each in result.candidates if each.stopped is None]
    assert stopped
    assert len(whole) > 5
    assert all(not each.evaluated for each in stopped)
    assert all(each.evaluated for each in whole)
    assert len(done) == 4 * len({each.genome for each in whole}) + sum(
        4 * each.stopped for each in {each.genome: each for each in stopped}.values()
    )
    first = [each.genome for each in result.candidates]
    for each in stopped:
        real = toy(each.genome, CARDINALITIES)
        assert each.values["accuracy"] == pytest.approx(real["accuracy"] * each.stopped)
        amount = violation(constraints, real)
        assert any(
            other.violation < amount
            or (
                other.violation == amount
                and other.values["macs"] <= real["macs"]
                and other.values["accuracy"] >= real["accuracy"]
            )
            for other in whole
            if first.index(other.genome) < first.index(each.genome)
        )
    # A sure bound changes nothing of the front among what was proposed.
    proposed = list(dict.fromkeys(first))
    real_values = [toy(genome, CARDINALITIES) for genome in proposed]
    amounts = [violation(constraints, values) for values in real_values]
    front = {proposed[index] for index in pareto_front(real_values, OBJECTIVES, amounts)}
    assert {each.genome for each in result.front} == front
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]
    marked = {tuple(line["genome"]): line["stopped"] for line in lines if "stopped" in line}
    assert marked == {each.genome: each.stopped for each in stopped}


@pytest.mark.parametrize("stop", [0, 3, 45, 90])
def test_a_search_that_stops_evaluations_resumes_where_it_failed(tmp_path: Path, stop: int) -> None:
    whole: list[tuple[Genome, float]] = []
    expected = in_parts(tmp_path / "whole.jsonl", whole)
    path = tmp_path / "stopped.jsonl"
    with pytest.raises(RuntimeError, match="out of memory"):
        in_parts(path, [], stop=stop)
    resumed: list[tuple[Genome, float]] = []
    assert in_parts(path, resumed) == expected
    assert whole[-len(resumed) :] == resumed
    assert strip_seconds(path) == strip_seconds(tmp_path / "whole.jsonl")


def strip_seconds(path: Path) -> list[dict[str, object]]:
    """Return a log without what differs from run to run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_the_subnet_of_a_stopped_evaluation_is_let_go_of(tmp_path: Path) -> None:
    """What an evaluation holds while it yields, it holds no longer when the next one begins."""
    held: list[Genome] = []

    def evaluate(genome: Genome) -> Generator[Estimate, None, None]:
        assert not held
        held.append(genome)
        try:
            for share in (0.5, 1.0):
                yield Estimate({"accuracy": 0.5}, {"accuracy": 0.5}, share)
        finally:
            held.remove(genome)

    log = EvaluationLog(tmp_path / "log.jsonl", CARDINALITIES, {})
    algorithm = build_algorithm(CARDINALITIES, SearchSettings("random", num_evals=10, population=10))
    costs = lambda genome: {"macs": toy(genome, CARDINALITIES)["macs"]}  # noqa: E731
    result = run_search(algorithm, evaluate, OBJECTIVES, log, 10, costs=costs)
    assert not held
    assert any(each.stopped == 0.5 for each in result.candidates)


def test_search_refuses_unusable_evaluations(tmp_path: Path) -> None:
    def run(values: dict[str, float], objectives: tuple[Objective, ...] = OBJECTIVES) -> None:
        algorithm = build_algorithm(CARDINALITIES, SearchSettings(population=2))
        log = EvaluationLog(tmp_path / "log.jsonl", CARDINALITIES, {})
        run_search(algorithm, lambda _: values, objectives, log, 1)

    with pytest.raises(ValueError, match=r"has no 'accuracy', only \['macs'\]"):
        run({"macs": 1.0})
    with pytest.raises(ValueError, match="gave accuracy = nan"):
        run({"macs": 1.0, "accuracy": math.nan})
    run({"macs": 1.0, "accuracy": 0.5})
    with pytest.raises(UserError, match=r"holds another search: its evaluation of .* has no 'latency'"):
        run({}, (*OBJECTIVES, Objective("latency")))


# -- Pareto front ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25))
def test_pareto_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    def dominated(macs: int, accuracy: int) -> bool:
        return any(m <= macs and a >= accuracy and (m, a) != (macs, accuracy) for m, a in points)

    values = [{"macs": m, "accuracy": a} for m, a in points]
    assert pareto_front(values, OBJECTIVES) == [i for i, point in enumerate(points) if not dominated(*point)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=25))
def test_front_of_any_number_of_objectives_under_bounds(points: list[tuple[int, int, int, int]]) -> None:
    """Deb's constrained domination, and three objectives."""
    goals = (Objective("macs"), Objective("latency"), Objective("accuracy", maximise=True))

    def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        if a[3] != b[3]:
            return a[3] < b[3]
        return a[:3] != b[:3] and a[0] <= b[0] and a[1] <= b[1] and a[2] >= b[2]

    values = [{"macs": m, "latency": t, "accuracy": a} for m, t, a, _ in points]
    violations = [violated for *_, violated in points]
    expected = [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert pareto_front(values, goals, violations) == expected


@pytest.mark.parametrize(
    ("constraint", "values", "expected"),
    [
        (Constraint("macs", 100), {"macs": 100}, 0.0),
        (Constraint("macs", 100), {"macs": 150}, 0.5),
        (Constraint("macs", 100, minimum=True), {"macs": 75}, 0.25),
        (Constraint("macs", 100, minimum=True), {"macs": 150}, 0.0),
        (Constraint("macs", 0.93 - 0.01, minimum=True), {"macs": 0.92}, 0.0),  # above it in floating point
        (Constraint("macs", 0.0), {"macs": 0.5}, 0.5),
        (Constraint("accuracy", 0.5, minimum=True), {"macs": 1}, 1.0),
    ],
)
def test_violation_is_a_share_of_the_bound(constraint: Constraint, values: dict[str, float], expected: float) -> None:
    assert constraint.violation(values) == pytest.approx(expected)
    assert violation([constraint, constraint], values) == pytest.approx(2 * expected)


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_that_a_thousandth_meets_still_gets_a_full_and_diverse_population() -> None:
    cardinalities = (5,) * 24
    window, rng = window_of(cardinalities, 0.3, 0.302), random.Random(0)
    drawn = [tuple(rng.randrange(5) for _ in cardinalities) for _ in range(4000)]
    assert sum(0.3 <= share_of(genome, cardinalities) <= 0.302 for genome in drawn) <= 4
    found = np.array(window.fill(40, random.Random(1)))
    assert len(np.unique(found, axis=0)) == 40
    assert all(0.3 <= share_of(tuple(genome), cardinalities) <= 0.302 for genome in found.tolist())
    # Each two differ in most genes, every gene varies, and no gene alone pays for the budget.
    apart = (found[:, None] != found[None]).sum(-1)[np.triu_indices(40, 1)]
    assert apart.min() >= 6
    assert apart.mean() > 12
    assert all(len(np.unique(gene)) >= 3 for gene in found.T)
    assert found.mean(axis=0).std() < 0.6


@settings(max_examples=25, deadline=None)
@given(cardinalities=st.lists(st.integers(1, 6), min_size=1, max_size=10), data=st.data())
def test_window_around_a_genome_is_entered(cardinalities: list[int], data: st.DataObject) -> None:
    """Where something lies inside it is found, from anywhere, and what lies inside stays."""
    target = tuple(data.draw(st.integers(0, count - 1)) for count in cardinalities)
    share = share_of(target, cardinalities)
    window = window_of(cardinalities, 0.98 * share, 1.02 * share)
    assert window.enter(target, random.Random(0)) == target
    found = window.fill(5, random.Random(0), [target, (0,) * len(cardinalities)])
    assert found[0] == target
    assert len(set(found)) == len(found) <= 5
    assert all(window.violation(genome) == 0 for genome in found)
    assert not set(window.fill(5, random.Random(1), known=found)) & set(found)


def test_window_that_nothing_reaches_is_told_with_what_comes_nearest() -> None:
    shares = sorted(share_of(genome, (3, 3, 3)) for genome in product(range(3), repeat=3))
    gap = max(range(len(shares) - 1), key=lambda index: shares[index + 1] - shares[index])
    below, above = shares[gap], shares[gap + 1]
    window = window_of((3, 3, 3), below + 1e-3, above - 1e-3)
    with pytest.raises(UserError) as caught:
        window.fill(5, random.Random(0))
    assert str(caught.value) == (
        f"search: no subnet was found with at most {above - 1e-3:,.10g} share and at least {below + 1e-3:,.10g} share; "
        f"the nearest are {above:,.10g} share above and {below:,.10g} share below"
    )
    costs = lambda genome: {"macs": float(sum(genome)), "params": 6.0 - sum(genome)}  # noqa: E731
    both = CostWindow((3, 3, 3), costs, [Constraint("macs", 2), Constraint("params", 3), Constraint("accuracy", 1)])
    with pytest.raises(UserError, match=r"at most 2 macs and at most 3 params; the nearest has \d macs, \d params"):
        both.fill(5, random.Random(0))


def test_hypervolume_of_two_points() -> None:
    values = [{"macs": 1, "accuracy": 0.5}, {"macs": 3, "accuracy": 0.75}, {"macs": 3, "accuracy": 0.6}]
    volume = hypervolume(values, OBJECTIVES, {"macs": 4, "accuracy": 0})
    assert volume == pytest.approx(3 * 0.5 + 1 * 0.25)


# -- selection ---------------------------------------------------------------------------------------------------------

FOUND = [
    candidate(100, 0.930, (0,)),
    candidate(60, 0.925, (1,)),
    candidate(50, 0.920, (2,)),
    candidate(50, 0.915, (3,)),
    candidate(20, 0.700, (4,)),
]


@pytest.mark.parametrize(
    ("reference", "delta", "macs", "accuracy"),
    [
        (None, 1.0, 50, 0.920),  # exactly at the threshold 0.93 - 0.01
        (-1, 1.0, 50, 0.920),
        (0.93, 0.5, 60, 0.925),
        (93.0, 0.5, 60, 0.925),
        (93, 0.0, 100, 0.930),
        (90.0, 1.0, 50, 0.920),  # of equally cheap ones the better
        (0.5, 0.0, 20, 0.700),
    ],
)
def test_select_best(reference: float | None, delta: float, macs: float, accuracy: float) -> None:
    best = select_best(FOUND, OBJECTIVES[1], "macs", reference, delta)
    assert best.values == {"macs": macs, "accuracy": accuracy}


def test_select_best_where_less_of_the_metric_is_better() -> None:
    """A perplexity may exceed the reference by so many percent of it, and is no percentage above 1."""
    goal = Objective("perplexity")
    found = [
        Candidate((gene,), {"macs": macs, "perplexity": perplexity}, 1)
        for gene, (macs, perplexity) in enumerate([(100, 20.0), (60, 20.1), (50, 20.2), (20, 30.0)])
    ]
    assert [select_best(found, goal, "macs", *rule).genome for rule in ((None, 1), (20.0, 0.5), (30, 0))] == [
        (2,),
        (1,),
        (3,),
    ]
    with pytest.raises(
        NothingQualifiesError, match=r"perplexity <= 19\.1900 \(ref_acc 19\.0000 plus acc_delta 1 percent"
    ):
        select_best(found, goal, "macs", 19.0, 1)


def test_select_best_names_the_nearest_when_none_qualifies() -> None:
    with pytest.raises(NothingQualifiesError, match=r"accuracy >= 0\.9450 .*; the best has 0\.9300: lower ref_acc"):
        select_best(FOUND, OBJECTIVES[1], "macs", 95.0, 0.5)


def test_select_best_needs_the_maximum_subnet_for_a_default_reference() -> None:
    with pytest.raises(UserError, match="did not evaluate the maximum subnet: give ref_acc"):
        select_best(FOUND[1:], OBJECTIVES[1], "macs", -1, 1.0)


@pytest.mark.parametrize(("budget", "genome"), [(1e9, (0,)), (99, (1,)), (50, (2,)), (20, (4,))])
def test_select_by_budget(budget: float, genome: Genome) -> None:
    assert select_by_budget(FOUND, OBJECTIVES[1], "macs", budget).genome == genome


def test_select_by_budget_prefers_the_cheaper_of_equals() -> None:
    found = [candidate(9, 0.5, (0,)), candidate(7, 0.5, (1,)), candidate(8, 0.5, (2,))]
    assert select_by_budget(found, OBJECTIVES[1], "macs", 10).genome == (1,)


def test_select_by_budget_takes_the_least_where_less_is_better() -> None:
    found = [Candidate((number,), {"macs": 9 - number, "perplexity": 20.0 + number}, number) for number in range(3)]
    assert select_by_budget(found, Objective("perplexity"), "macs", 8).genome == (1,)


def test_select_by_budget_names_the_nearest_when_none_qualifies() -> None:
    found = [candidate(5_600_000_000, 0.9), candidate(4_400_000_000, 0.8)]
    with pytest.raises(NothingQualifiesError, match="macs <= 1,000,000,000; the smallest has 4,400,000,000"):
        select_by_budget(found, OBJECTIVES[1], "macs", 1e9)


# -- files -------------------------------------------------------------------------------------------------------------


def test_progression_csv_is_nncfs(tmp_path: Path) -> None:
    widths = {0: 64, 1: 32, 2: 128, 3: 128}
    path = tmp_path / "search_progression.csv"
    found = [candidate(7344256, 0.5), candidate(5_000_000, 0.57)]
    write_progression_csv(path, found, lambda _: (widths, None), metric=OBJECTIVES[1])
    assert path.read_bytes() == (
        b"\"OrderedDict([(<ElasticityDim.WIDTH: 'width'>, {0: 64, 1: 32, 2: 128, 3: 128})])\""
        b",MACs,7.344256,top1_acc,-50.0\r\n"
        b"\"OrderedDict([(<ElasticityDim.WIDTH: 'width'>, {0: 64, 1: 32, 2: 128, 3: 128})])\""
        b",MACs,5.0,top1_acc,-57.0\r\n"
    )
    write_progression_csv(path, found[:1], lambda _: ({0: 64}, [1, 3]), metric=OBJECTIVES[1])
    assert path.read_bytes() == (
        b"\"OrderedDict([(<ElasticityDim.WIDTH: 'width'>, {0: 64}), (<ElasticityDim.DEPTH: 'depth'>, [1, 3])])\""
        b",MACs,7.344256,top1_acc,-50.0\r\n"
    )


@pytest.mark.parametrize("count", [1, 60])
def test_progression_png_is_drawn(tmp_path: Path, count: int) -> None:
    result = search(tmp_path / "log.jsonl", [])
    path = tmp_path / "search_progression.png"
    modules = {"matplotlib.pyplot"} & set(sys.modules)
    write_progression_png(
        path, result.candidates[:count], metric=OBJECTIVES[1], chosen={"A": result.front[0]}, title="NSGA2"
    )
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (1600, 1000)
    assert {"matplotlib.pyplot"} & set(sys.modules) == modules


def test_pareto_json(tmp_path: Path) -> None:
    first, second, third = candidate(1, 0.5, (2,)), candidate(2, 0.6, (1,)), candidate(3, 0.6, (0,))
    result = SearchResult(OBJECTIVES, (third, second, first), (first, second))
    path = tmp_path / "pareto.json"
    write_pareto_json(path, result, second, describe=lambda genome: {"ffn[0]": 8 - genome[0]}, extra={"seed": 3})
    entries = [
        {"index": 0, "genome": [2], "values": {"macs": 1, "accuracy": 0.5}, "subnet": {"ffn[0]": 6}},
        {"index": 1, "genome": [1], "values": {"macs": 2, "accuracy": 0.6}, "subnet": {"ffn[0]": 7}},
    ]
    goals = [{"name": "macs", "maximise": False}, {"name": "accuracy", "maximise": True}]
    expected = {"format": 1, "objectives": goals, "constraints": [], "front": entries, "best": entries[1], "seed": 3}
    assert json.loads(path.read_text()) == expected
    write_pareto_json(path, result, third)
    assert json.loads(path.read_text())["best"] == {
        "index": None,
        "genome": [0],
        "values": {"macs": 3, "accuracy": 0.6},
    }
    write_pareto_json(path, result, None)
    assert json.loads(path.read_text())["best"] is None


def test_search_is_free_of_torch() -> None:
    code = "import bootstrapnas.search, sys; sys.exit('torch' in sys.modules)"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
