"""Stages and learning rates, against values written out from the formulas of NNCF's BootstrapNAS."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config import check_config
from bootstrapnas.schedule import GlobalLR, Stage, StageSchedule, build_schedule, global_lr, stage_lr


def test_stage_rate_is_a_cosine_without_warm_up() -> None:
    rates = [stage_lr(step, init_lr=1.0, epochs_lr=2, steps_per_epoch=2) for step in range(6)]
    assert rates == pytest.approx([1.0, 0.8535533906, 0.5, 0.1464466094, 0.0, 0.0], abs=1e-10)


def test_stage_rate_of_nncf_lags_one_step_per_finished_epoch() -> None:
    # n = 4 steps an epoch, E = 2 epochs; k - e + e*n = 1 2 3 4 | 4 5 6 7 | 7 8 9 10: the cosine turns after its end.
    rates = [stage_lr(step, init_lr=0.8, epochs_lr=2, steps_per_epoch=4, parity=True) for step in range(12)]
    by_hand = [0.4 * (1 + math.cos(math.pi * done / 8)) for done in (1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10)]
    assert rates == pytest.approx(by_hand, rel=1e-12)
    assert rates[:4] == pytest.approx([0.7695518130, 0.6828427125, 0.5530733729, 0.4], abs=1e-9)
    assert rates[9] < rates[10] < rates[11]


def test_global_rate_warms_up_and_reaches_zero() -> None:
    schedule = GlobalLR(base_lr=1.0, num_epochs=3, warmup_epochs=1, warmup_lr=0.2)
    rates = [global_lr(step, schedule, steps_per_epoch=2) for step in range(8)]
    assert rates == pytest.approx([0.6, 1.0, 1.0, 0.8535533906, 0.5, 0.1464466094, 0.0, 0.0], abs=1e-10)


def test_global_rate_of_nncf() -> None:
    # n = 2, W = 1, E = 3. s = k - 1 - e; warm-up: (e*n + s + 1) / (W*n) = 1/2, 2/2; then ((e-W)*n + s) / (E*n).
    schedule = GlobalLR(base_lr=1.0, num_epochs=3, warmup_epochs=1, warmup_lr=0.2)
    rates = [global_lr(step, schedule, steps_per_epoch=2, parity=True) for step in range(6)]
    cosines = [0.5 * (1 + math.cos(math.pi * done / 6)) for done in (-1, 0, 0, 1)]
    assert rates == pytest.approx([0.6, 1.0, *cosines], rel=1e-12)
    assert rates[-1] == pytest.approx(0.9330127019)  # nowhere near zero at the end


def test_global_rate_without_warm_up_is_the_stage_rate() -> None:
    schedule = GlobalLR(base_lr=0.3, num_epochs=2)
    for step in range(8):
        expected = stage_lr(step, init_lr=0.3, epochs_lr=2, steps_per_epoch=3)
        assert global_lr(step, schedule, steps_per_epoch=3) == pytest.approx(expected, abs=1e-15)


@given(st.integers(1, 50), st.integers(1, 6), st.floats(1e-6, 1.0))
def test_stage_rate_falls_from_its_beginning_to_zero(steps_per_epoch: int, epochs: int, init_lr: float) -> None:
    total = steps_per_epoch * epochs
    rates = [
        stage_lr(step, init_lr=init_lr, epochs_lr=epochs, steps_per_epoch=steps_per_epoch) for step in range(total + 2)
    ]
    assert rates[0] == init_lr
    assert rates[total] == rates[total + 1] == 0
    assert rates == sorted(rates, reverse=True)


def test_stages_follow_each_other_with_rates_of_their_own() -> None:
    first = Stage(("width",), epochs=1, width_indicator=2, init_lr=1.0, epochs_lr=1)
    second = Stage(("width", "depth"), epochs=1.5, width_indicator=-1, init_lr=0.5, epochs_lr=3)
    schedule = StageSchedule((first, second), steps_per_epoch=4)
    assert schedule.ends == (4, 10)
    assert schedule.total_steps == 10
    assert [schedule.index(step) for step in (0, 3, 4, 9, 10, 99)] == [0, 0, 1, 1, 1, 1]
    assert schedule.stage(3) is first
    assert schedule.stage(4) is second
    assert [schedule.lr(step) for step in (0, 2, 4, 7)] == pytest.approx([1.0, 0.5, 0.5, 0.4267766953])


@pytest.mark.parametrize(
    ("stages", "steps"),
    [
        ([{"reorg_weights": False}, {}], ()),
        ([{"reorg_weights": True}, {}], (0,)),
        ([{}, {"reorg_weights": True}], (4,)),
        ([{"epochs": 1.5}, {"reorg_weights": True}], (6,)),
        ([{"epochs": 3, "reorg_interval": 1}], (0, 4, 8)),
        (
            [{"epochs": 3, "reorg_interval": 2}, {"epochs": 2, "reorg_interval": 1, "reorg_weights": True}],
            (0, 8, 12, 16),
        ),
        ([{"reorg_interval": 5}], (0,)),
    ],
)
def test_steps_before_which_units_are_put_in_order(stages: list[dict[str, Any]], steps: tuple[int, ...]) -> None:
    schedule = StageSchedule(tuple(Stage(("width",), **values) for values in stages), steps_per_epoch=4)
    assert schedule.reorder_steps == steps


def test_subnets_are_drawn_when_a_stage_begins_and_every_sample_rate_steps() -> None:
    stages = (Stage(("width",), epochs=1.25, sample_rate=3), Stage(("width",), epochs=1, sample_rate=2))
    schedule = StageSchedule(stages, steps_per_epoch=4)
    assert [schedule.draw(step) for step in range(9)] == [0, 0, 0, 3, 3, 5, 5, 7, 7]


def test_one_rate_for_all_stages() -> None:
    stages = (Stage(("width",), init_lr=9.0), Stage(("width",), init_lr=9.0))
    schedule = StageSchedule(stages, steps_per_epoch=4, overall=GlobalLR(base_lr=1.0, num_epochs=2))
    assert [schedule.lr(step) for step in (0, 4, 8)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-15)


def build(training: dict[str, Any], **options: Any) -> StageSchedule:
    config = check_config({"bootstrapNAS": {"training": training}})
    return build_schedule(config.training, **{"steps_per_epoch": 10, "epochs": 3.0, "learning_rate": 1e-4, **options})


def stage(**values: Any) -> dict[str, Any]:
    return {"train_dims": ["width"], **values}


def test_stages_of_a_config() -> None:
    description = {
        "train_dims": ["width", "depth"],
        "epochs": 4,
        "depth_indicator": 9,
        "width_indicator": 5,
        "reorg_weights": True,
        "init_lr": 3e-5,
        "epochs_lr": 6,
        "sample_rate": 2,
        "reorg_interval": 1,
    }
    schedule = build(
        {
            "progressivity_of_elasticity": ["width", "depth"],
            "elasticity": {"available_elasticity_dims": ["width", "depth"]},
            "schedule": {"list_stage_descriptions": [description]},
        }
    )
    assert schedule.stages == (
        Stage(("width", "depth"), 4, 9, 5, True, init_lr=3e-5, epochs_lr=6, sample_rate=2, reorg_interval=1),
    )
    assert schedule.total_steps == 40
    assert schedule.overall is None


@pytest.mark.parametrize(
    "left", [{"epochs": -1}, {"epochs": -1, "init_lr": -1}, {"epochs": -1, "init_lr": -1, "epochs_lr": -1}]
)
def test_minus_one_leaves_it_to_the_command_line(left: dict[str, Any]) -> None:
    elasticity = {"available_elasticity_dims": ["width"]}
    (found,) = build({"elasticity": elasticity, "schedule": {"list_stage_descriptions": [stage(**left)]}}).stages
    assert (found.epochs, found.epochs_lr, found.init_lr) == (3.0, 3.0, 1e-4)


def test_the_fall_of_the_rate_alone_may_be_left_to_the_command_line() -> None:
    elasticity, description = {"available_elasticity_dims": ["width"]}, stage(epochs=2, epochs_lr=-1)
    (found,) = build({"elasticity": elasticity, "schedule": {"list_stage_descriptions": [description]}}).stages
    assert (found.epochs, found.epochs_lr) == (2, 3.0)


def test_stages_of_nncf_when_the_config_names_none() -> None:
    found = build({}).stages
    assert [(s.train_dims, s.depth_indicator, s.width_indicator) for s in found] == [
        (("depth",), 1, 1),
        (("depth",), 2, 1),
        (("depth", "width"), 1, 1),
        (("depth", "width"), 1, 2),
    ]
    widths = build({"elasticity": {"available_elasticity_dims": ["width"]}}).stages
    assert [(s.train_dims, s.width_indicator) for s in widths] == [(("width",), 1), (("width",), 2)]


def test_global_rate_of_a_config() -> None:
    training = {
        "elasticity": {"available_elasticity_dims": ["width"]},
        "schedule": {"list_stage_descriptions": [stage(epochs=2), stage(epochs=3)]},
    }
    overall = build({**training, "lr_schedule": {"params": {"base_lr": 2e-4}}}).overall
    assert overall == GlobalLR(base_lr=2e-4, num_epochs=5, warmup_epochs=0, warmup_lr=3.4e-4)
    params = {"base_lr": 2e-4, "num_epochs": 4, "warmup_epochs": 1, "warmup_lr": 1e-6}
    assert build({**training, "lr_schedule": {"params": params}}).overall == GlobalLR(2e-4, 4, 1, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": (), "steps_per_epoch": 1}, "the schedule has no stage that trains width or depth"),
        (
            {"stages": (Stage(("width",)),), "steps_per_epoch": 0},
            "an epoch has no optimiser step: there are fewer rows than a batch holds",
        ),
        (
            {"stages": (Stage(("width",)),), "steps_per_epoch": 1, "overall": GlobalLR(1.0, 2, warmup_epochs=2)},
            "lr_schedule: warmup_epochs 2 must be below num_epochs 2",
        ),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        StageSchedule(**arguments)
