"""The loop between an algorithm and the evaluation of its proposals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from bootstrapnas.errors import UserError
from bootstrapnas.search.base import Algorithm, Candidate, Objective, SearchResult, Values
from bootstrapnas.search.log import EvaluationLog
from bootstrapnas.search.pareto import pareto_front
from bootstrapnas.space import Genome


def run_search(
    algorithm: Algorithm,
    evaluate: Callable[[Genome], Mapping[str, float]],
    objectives: Sequence[Objective],
    log: EvaluationLog,
    budget: int,
    progress: Callable[[int, Candidate], None] | None = None,
    canonical: Callable[[Genome], Genome] = lambda genome: genome,
    generation_done: Callable[[Sequence[Candidate]], None] = lambda candidates: None,
) -> SearchResult:
    """Let an algorithm propose genomes until the budget is spent or it has nothing left to propose.

    A genome in the log is not evaluated again. To resume a search, run it again from the start with the same log: the
    algorithm meets the same objectives, so it makes the same proposals, and evaluation sets in where the log ends.

    Parameters
    ----------
    algorithm
        A fresh algorithm.
    evaluate
        Measures a genome; the result has all objectives and may have more.
    objectives
        What to improve, at least one.
    log
        Memo of the evaluations, extended as the search goes.
    budget
        Proposals to make in all, repeats included.
    progress
        Called after each proposal with the number made so far and the candidate.
    canonical
        Maps genomes that describe one network (a skipped block has no width) to one of them, which is what is
        evaluated, logged and listed.
    generation_done
        Called after each generation with all candidates so far.

    Raises
    ------
    UserError
        If the log lacks an objective: it was made by a search for others.
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
            values = _values(genome, evaluate, objectives, log)
            candidates.append(Candidate(genome, values, generation))
            if progress is not None:
                progress(len(candidates), candidates[-1])
        if len(proposed) == len(batch):
            told = [
                [goal.minimised(candidate.values) for goal in objectives] for candidate in candidates[-len(batch) :]
            ]
            algorithm.tell(batch, told)
        generation_done(candidates)
    return SearchResult(tuple(objectives), tuple(candidates), _front(candidates, objectives))


def _values(
    genome: Genome,
    evaluate: Callable[[Genome], Mapping[str, float]],
    objectives: Sequence[Objective],
    log: EvaluationLog,
) -> Values:
    if genome in log:
        values = log[genome]
        for goal in objectives:
            if goal.name not in values:
                raise UserError(f"{log.path} holds another search: its evaluations have no {goal.name!r}")
        return values
    start = time.perf_counter()
    measured = evaluate(genome)
    seconds = time.perf_counter() - start
    for goal in objectives:
        if goal.name not in measured:
            raise ValueError(f"the evaluation of {list(genome)} has no {goal.name!r}, only {sorted(measured)}")
    for name, value in measured.items():
        if not math.isfinite(value):
            raise ValueError(f"the evaluation of {list(genome)} gave {name} = {value}")
    return log.record(genome, measured, seconds)


def _front(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> tuple[Candidate, ...]:
    distinct = list({candidate.genome: candidate for candidate in reversed(candidates)}.values())[::-1]
    cost = next((goal for goal in objectives if not goal.maximise), objectives[0])
    front = [distinct[index] for index in pareto_front([candidate.values for candidate in distinct], objectives)]
    return tuple(sorted(front, key=lambda candidate: cost.minimised(candidate.values)))
