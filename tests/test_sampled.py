"""The choice among the subnets that training drew."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bootstrapnas.artefacts import read_json, write_json
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.sampled import SAMPLED_FILE, lowest_loss, most_frequent, save_sampled
from bootstrapnas.space import Gene, SearchSpace

SPACE = SearchSpace((Gene((Key("head", 0),), (4, 2)), Gene((Key("ffn", 0), Key("ffn", 1)), (128, 96, 32))))


def save(directory: Path, *draws: tuple[str, tuple[int, int], float]) -> None:
    save_sampled(directory, SPACE, ((name, SPACE.subnet(genome), loss) for name, genome, loss in draws))


def test_most_frequent_goes_gene_by_gene_and_lowest_loss_by_whole_subnets(tmp_path: Path) -> None:
    save(
        tmp_path,
        ("max", (0, 0), 0.1), ("random", (1, 2), 2.0), ("min", (1, 2), 9.0),
        ("max", (0, 0), 0.1), ("random", (0, 1), 1.5), ("min", (1, 2), 9.0),
        ("max", (0, 0), 0.1), ("random", (1, 2), 1.2), ("min", (1, 2), 9.0),
        ("max", (0, 0), 0.1), ("random", (0, 0), 1.7), ("min", (1, 2), 9.0),
    )  # fmt: skip
    assert read_json(tmp_path / SAMPLED_FILE)["subnets"] == [
        {"genome": [1, 2], "times": 2, "loss": pytest.approx(1.6)},
        {"genome": [0, 1], "times": 1, "loss": 1.5},
        {"genome": [0, 0], "times": 1, "loss": 1.7},
    ], "what every step computes says nothing"
    assert most_frequent(tmp_path, SPACE) == (0, 2), "of a tie the larger; no subnet was this one"
    assert lowest_loss(tmp_path, SPACE) == (0, 1)


def test_a_loss_that_is_no_number_is_none(tmp_path: Path) -> None:
    save(tmp_path, ("random", (0, 1), math.nan), ("random", (1, 1), 3.0))
    assert lowest_loss(tmp_path, SPACE) == (1, 1)
    save(tmp_path, ("random", (0, 1), math.inf))
    assert most_frequent(tmp_path, SPACE) == (0, 1)
    with pytest.raises(UserError, match="has no loss that is a number: the training diverged"):
        lowest_loss(tmp_path, SPACE)


def test_subnets_of_earlier_stages_outside_the_space_do_not_count(tmp_path: Path) -> None:
    outside = {**SPACE.subnet((0, 0)), Key("ffn", 0): 16, Key("ffn", 1): 16}
    save_sampled(tmp_path, SPACE, [("random", outside, 0.1), ("random", SPACE.subnet((1, 1)), 2.0)])
    assert lowest_loss(tmp_path, SPACE) == most_frequent(tmp_path, SPACE) == (1, 1)


def test_what_is_not_of_the_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"as it has no sampled.json: choose heuristic, or search it"):
        most_frequent(tmp_path, SPACE)
    save(tmp_path, ("random", (0, 1), 1.0))
    other = SearchSpace(SPACE.genes[:1])
    with pytest.raises(UserError, match=r"sampled.json holds no subnets of the search space beside it; train again"):
        lowest_loss(tmp_path, other)
    write_json(tmp_path / SAMPLED_FILE, {**read_json(tmp_path / SAMPLED_FILE), "subnets": []})
    with pytest.raises(UserError, match="holds no subnets of the search space"):
        lowest_loss(tmp_path, SPACE)
