"""The loop between an algorithm and the evaluation of its proposals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial

from bootstrapnas.errors import UserError
from bootstrapnas.search.base import (
    Algorithm,
    Candidate,
    Constraint,
    Estimate,
    Evaluation,
    Objective,
    SearchResult,
    Values,
    admitted,
    violation,
)
from bootstrapnas.search.log import EvaluationLog
from bootstrapnas.search.pareto import pareto_front
from bootstrapnas.space import Genome


def run_search(
    algorithm: Algorithm,
    evaluate: Evaluation,
    objectives: Sequence[Objective],
    log: EvaluationLog,
    budget: int,
    progress: Callable[[int, Candidate], None] | None = None,
    canonical: Callable[[Genome], Genome] = lambda genome: genome,
    generation_done: Callable[[Sequence[Candidate]], None] = lambda candidates: None,
    costs: Callable[[Genome], Values] = lambda genome: {},
    constraints: Sequence[Constraint] = (),
) -> SearchResult:
    """Let an algorithm propose genomes until the budget is spent or it has nothing left to propose.

    A genome in the log is not evaluated again. To resume a search, run it again from the start with the same log: the
    algorithm meets the same objectives, so it makes the same proposals, and evaluation sets in where the log ends.

    Nor is a genome evaluated whose `costs` alone break a constraint. It is logged with its costs, and the algorithm is
    told its violation and nought for what was not measured. It counts as a proposal like any other.

    An evaluation by estimates is stopped as soon as the best that it may still come to is dominated by a candidate that
    was evaluated to the end (Deb's constrained domination). It is logged as stopped, never joins the front, and the
    algorithm is told its last estimate.

    Parameters
    ----------
    algorithm
        A fresh algorithm.
    evaluate
        Measures a genome, at once or by estimates; the result has all objectives and may have more.
    objectives
        What to improve, at least one.
    log
        Memo of the evaluations, extended as the search goes.
    budget
        Proposals to make in all, included repeats and those that are not evaluated.
    progress
        Called after each proposal with the number made so far and the candidate.
    canonical
        Maps genomes that describe one network (a skipped block has no width) to one of them, which is what is
        evaluated, logged and listed.
    generation_done
        Called after each generation with all candidates so far.
    costs
        What is known of a genome without an evaluation; the same each time. `evaluate` need not repeat it.
    constraints
        Bounds on costs and on what an evaluation measures.

    Raises
    ------
    UserError
        If the log lacks an objective or has other costs: it was made by another search.
    ValueError
        If an evaluation lacks an objective or returns one that is not a finite number.
    """
    candidates: list[Candidate] = []
    generation = 0
    while len(candidates) < budget:
        batch = algorithm.ask()
        if not batch:
            break
        generation += 1
        proposed = batch[: budget - len(candidates)]
        for genome in map(canonical, proposed):
            known = costs(genome)
            excluded = any(each.name in known and each.violation(known) for each in constraints)
            needed = [*known, *(goal.name for goal in objectives if not excluded)]
            if genome in log:
                values = _logged(genome, known, needed, log)
            else:
                hopeless = partial(_dominated, candidates=candidates, objectives=objectives, constraints=constraints)
                values = _measured(genome, known, None if excluded else evaluate, needed, log, hopeless)
            stopped = log.stopped(genome)
            whole = not excluded and stopped is None
            candidates.append(Candidate(genome, values, generation, violation(constraints, values), whole, stopped))
            if progress is not None:
                progress(len(candidates), candidates[-1])
        if len(proposed) == len(batch):
            told = candidates[-len(batch) :]
            algorithm.tell(batch, [_minimised(each, objectives) for each in told], [each.violation for each in told])
        generation_done(candidates)
    return SearchResult(tuple(objectives), tuple(candidates), _front(candidates, objectives), tuple(constraints))


def _logged(genome: Genome, known: Values, needed: Sequence[str], log: EvaluationLog) -> Values:
    """Return what the log has of a genome; `UserError` if it cannot be of this search."""
    values = log[genome]
    for name in needed:
        if name not in values:
            raise UserError(f"{log.path} holds another search: its evaluation of {list(genome)} has no {name!r}")
    for name, value in known.items():
        if values[name] != value:
            raise UserError(
                f"{log.path} holds another search: {name} of {list(genome)} is {values[name]:,.10g} there, "
                f"{value:,.10g} here"
            )
    return values


def _measured(
    genome: Genome,
    known: Values,
    evaluate: Evaluation | None,
    needed: Sequence[str],
    log: EvaluationLog,
    hopeless: Callable[[Values], bool],
) -> Values:
    """Return what is known of a genome and what its evaluation, if there is one, gives; logged."""
    start = time.perf_counter()
    found, stopped = ({}, None) if evaluate is None else _evaluated(evaluate(genome), known, hopeless)
    values = {**known, **found}
    seconds = time.perf_counter() - start
    for name in needed:
        if name not in values:
            raise ValueError(f"the evaluation of {list(genome)} has no {name!r}, only {sorted(values)}")
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"the evaluation of {list(genome)} gave {name} = {value}")
    return log.record(genome, values, seconds, stopped)


def _evaluated(
    found: Values | Generator[Estimate, None, None], known: Values, hopeless: Callable[[Values], bool]
) -> tuple[Values, float | None]:
    """Return what an evaluation gives, and the share after which it was stopped, if it was."""
    if isinstance(found, Mapping):
        return found, None
    values: Values = {}
    with closing(found):  # it may hold a subnet active
        for estimate in found:
            values = estimate.values
            if estimate.share < 1 and hopeless({**known, **estimate.at_best}):
                return values, estimate.share
    return values, None


def _dominated(
    values: Values, candidates: Sequence[Candidate], objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> bool:
    """Return whether a candidate that was evaluated to the end is better than `values`."""
    amount = violation(constraints, values)

    def better(candidate: Candidate) -> bool:
        if candidate.violation != amount:
            return candidate.violation < amount
        pairs = [(goal.minimised(candidate.values), goal.minimised(values)) for goal in objectives]
        return all(one <= other for one, other in pairs) and any(one < other for one, other in pairs)

    return any(better(candidate) for candidate in candidates if candidate.evaluated)


def _minimised(candidate: Candidate, objectives: Sequence[Objective]) -> list[float]:
    """Return what an algorithm is told; nought stands for what was not measured."""
    return [goal.minimised(candidate.values) if goal.name in candidate.values else 0.0 for goal in objectives]


def _front(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> tuple[Candidate, ...]:
    distinct = list({candidate.genome: candidate for candidate in reversed(admitted(candidates))}.values())[::-1]
    cost = next((goal for goal in objectives if not goal.maximise), objectives[0])
    front = [distinct[index] for index in pareto_front([candidate.values for candidate in distinct], objectives)]
    return tuple(sorted(front, key=lambda candidate: cost.minimised(candidate.values)))
