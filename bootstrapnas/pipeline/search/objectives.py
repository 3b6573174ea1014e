"""What a search improves and which bounds hold: the flags that say so, for `search` and `extract`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from bootstrapnas.costs import COSTS, Cost
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.nncf_config import NNCFConfig
from bootstrapnas.pipeline.arguments import flag
from bootstrapnas.pipeline.stages import preferred
from bootstrapnas.search import Constraint, Objective
from bootstrapnas.tasks import TaskSpec

# ruff: noqa: UP045

METRIC, DIVERGENCE = "metric", "divergence"
"""What ``--objectives`` calls the task's metric, whatever its name, and how far outputs are from a reference's."""
QUALITIES = (METRIC, DIVERGENCE)


def metric_of(config: NNCFConfig, spec: TaskSpec, typed: Mapping[str, Any]) -> str:
    """Return the metric that the flags, the config or the task name."""
    key = "bootstrapNAS.search.eval_metric_name"
    name = preferred(typed, "eval_metric_name", None, key, config.search.eval_metric_name)
    try:
        return spec.metric if name is None else spec.metric_named(name)
    except UserError as error:
        where = "--eval_metric_name" if "eval_metric_name" in typed else f"{config.path}: {key}"
        raise UserError(f"{where}: {error}") from None


def objectives_of(text: str, metric: str, maximise: bool = True) -> tuple[Objective, ...]:
    """Return the objectives that ``--objectives`` lists: the costs in the order given, and metric or divergence last.

    `maximise` says whether more of the metric is better.

    Raises
    ------
    UserError
        If a name is unknown or occurs twice, a cost is missing, or there is not one of metric and divergence.
    """
    names = [name.strip() for name in text.split(",")]
    known = [*QUALITIES, *COSTS]
    for name in names:
        if name not in known:
            raise UserError(
                f"--objectives: there is no objective {name!r}{near_miss(name, known)}; known are {', '.join(known)}"
            )
        if names.count(name) > 1:
            raise UserError(f"--objectives names {name} twice")
    costs = [name for name in names if name not in QUALITIES]
    if len(costs) == len(names) or not costs:
        raise UserError(f"--objectives needs {METRIC} and at least one of {', '.join(COSTS)}, not only {text}")
    if len(costs) < len(names) - 1:
        raise UserError(f"--objectives takes either {' or '.join(QUALITIES)}: both are about the same")
    return (*map(Objective, costs), Objective(metric, maximise) if METRIC in names else Objective(DIVERGENCE))


def check_divergence(spec: TaskSpec, early_stop: float | None) -> None:
    """Raise `UserError` if a search cannot go by the divergence of outputs, as a language model's are too large."""
    if spec.generation is not None or any(output.reduction is not None for output in spec.kind.outputs):
        raise UserError(
            f"--objectives: divergence is of the outputs of a head, and task {spec.task_name} is a language model's: "
            f"search by {METRIC}"
        )
    if early_stop is not None:
        raise UserError("--early_stop bounds a metric that is a mean over rows; a divergence has no bound")


def _bounds() -> Iterator[tuple[str, Cost, bool, bool]]:
    """Yield the flags that bound costs: name, cost, whether at least, whether a share of the full model's."""
    for minimum in (False, True):
        for cost in COSTS.values():
            word = "min" if minimum else "max"
            yield f"{word}_{cost.bound_flag}", cost, minimum, False
            if cost.closed_form:
                yield f"{word}_{cost.name}_ratio", cost, minimum, True


def _bound_flags() -> Iterator[tuple[str, type, Any]]:
    for name, cost, minimum, ratio in _bounds():
        what = f"share of the full model's {cost.title}" if ratio else f"{cost.title}{_unit(cost)}"
        yield name, Optional[float], flag(None, f"{'Least' if minimum else 'Largest'} {what}.")  # type: ignore[misc]
    least = "Least metric, a fraction; above 1 it is a percentage."
    yield "min_metric", Optional[float], flag(None, least)  # type: ignore[misc]
    most = "Largest metric, where less of it is better (perplexity)."
    yield "max_metric", Optional[float], flag(None, most)  # type: ignore[misc]


def _unit(cost: Cost) -> str:
    return ", in units of one" if cost.scale != 1 else f" in {cost.unit}"


if TYPE_CHECKING:
    ConstraintArguments = Any
else:
    ConstraintArguments = dataclasses.make_dataclass(
        "ConstraintArguments",
        list(_bound_flags()),
        namespace={
            "__doc__": "Bounds on costs and metric.",
            "_argument_group_name": "bounds that a subnet has to keep",
        },
    )
    ConstraintArguments.__module__ = __name__


def constraints_of(
    arguments: ConstraintArguments, full: Mapping[str, float], metric: Objective
) -> tuple[Constraint, ...]:
    """Return the bounds that were given.

    Parameters
    ----------
    arguments
        The flags.
    full
        The full model's costs, by name, of which ratios are shares.
    metric
        The metric.

    Raises
    ------
    UserError
        If a bound is out of its range, or a least value exceeds the largest.
    """
    check_bounds(arguments, metric)
    found: list[Constraint] = []
    for name, cost, minimum, ratio in _bounds():
        value = getattr(arguments, name)
        if value is not None:
            found.append(Constraint(cost.name, value * full[cost.name] if ratio else value, minimum))
    for each in found:
        if not each.minimum and any(
            other.minimum and other.name == each.name and other.bound > each.bound for other in found
        ):
            raise UserError(f"the least {COSTS[each.name].title} asked for exceed the largest: no subnet can have both")
    found += _metric_bounds(arguments, metric)
    return tuple(found)


def check_bounds(arguments: ConstraintArguments, metric: Objective) -> None:
    """Raise `UserError` if a bound is out of its range, which is known without the model's costs."""
    for name, cost, _, ratio in _bounds():
        value = getattr(arguments, name)
        if value is None:
            continue
        if ratio and not 0 < value <= 1:
            raise UserError(f"--{name} must lie above 0 and at most 1, not {value:g}")
        if not 0 < value < math.inf:
            raise UserError(f"--{name} must be a number above 0, not {value:g}")
        if not ratio and cost.scale != 1 and value <= 1:
            word = name.partition("_")[0]
            raise UserError(
                f"--{name} is in units of one, not {value:g}; a share of the full model's is --{word}_{cost.name}_ratio"
            )
    wrong, right = ("max_metric", "min_metric") if metric.maximise else ("min_metric", "max_metric")
    if getattr(arguments, wrong) is not None:
        better = "more" if metric.maximise else "less"
        raise UserError(f"--{wrong}: {better} of {metric.name} is better; its bound is --{right}")
    if arguments.min_metric is not None and not 0 <= arguments.min_metric <= 100:
        raise UserError(f"--min_metric must be a fraction or a percentage, not {arguments.min_metric:g}")
    if arguments.max_metric is not None and not math.isfinite(arguments.max_metric):
        raise UserError(f"--max_metric must be a number, not {arguments.max_metric:g}")


def metric_bounded(arguments: ConstraintArguments) -> bool:
    """Return whether the metric has a bound."""
    return arguments.min_metric is not None or arguments.max_metric is not None


def _metric_bounds(arguments: ConstraintArguments, metric: Objective) -> Iterator[Constraint]:
    if arguments.max_metric is not None:
        yield Constraint(metric.name, arguments.max_metric)
    if arguments.min_metric is not None:
        bound = arguments.min_metric / 100 if arguments.min_metric > 1 else arguments.min_metric
        yield Constraint(metric.name, bound, minimum=True)


def bounded_costs(arguments: ConstraintArguments) -> tuple[str, ...]:
    """Return the names of the costs that have a bound."""
    return tuple(dict.fromkeys(cost.name for name, cost, *_ in _bounds() if getattr(arguments, name) is not None))


def described(constraints: Sequence[Constraint], full: Mapping[str, float]) -> str:
    """Return bounds in words."""
    return " and ".join(
        f"{'at least' if each.minimum else 'at most'} {describe(each.name, each.bound, full)}" for each in constraints
    )


def describe(name: str, value: float, full: Mapping[str, float]) -> str:
    """Return a value in words, a cost also as a share of the full model's where that is known."""
    if name not in COSTS:
        return f"{value:.4f} {name}"
    share = f" ({value / full[name]:.4f} of the full model's)" if name in full else ""
    return COSTS[name].shown(value) + share
