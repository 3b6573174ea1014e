"""What a search knows before it evaluates anything: costs, bounds, which genomes are one network, where to begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from bootstrapnas.costs import COSTS, FULL, Conditions, Cost, count_macs
from bootstrapnas.errors import UserError
from bootstrapnas.pipeline.arguments import shares
from bootstrapnas.pipeline.search.objectives import ConstraintArguments, bounded_costs, constraints_of, describe
from bootstrapnas.progress import warn
from bootstrapnas.search import Constraint, CostWindow, Genome, Objective
from bootstrapnas.supernet import Supernet

ALWAYS = ("macs", "params")
"""Costs that every log has."""


@dataclass(frozen=True)
class Problem:
    """What a search improves, what it knows of a subnet without evaluating it, and the bounds that hold.

    Attributes
    ----------
    objectives
        The costs that it has less of, and last the metric or what stands for it.
    metric
        What the best subnet is held against.
    cost
        The first of the objectives: what pictures show and the best subnet has least of.
    costs
        The costs of a genome, by name.
    full
        Those of the full model that are known in closed form.
    constraints
        The bounds.
    window
        Where the bounds on costs leave proposals; `None` if there are none.
    """

    objectives: tuple[Objective, ...]
    metric: Objective
    cost: Cost
    costs: Callable[[Genome], dict[str, float]]
    full: dict[str, float]
    constraints: tuple[Constraint, ...]
    window: CostWindow | None


def build_problem(
    supernet: Supernet,
    objectives: tuple[Objective, ...],
    metric: Objective,
    bounds: ConstraintArguments,
    conditions: Conditions,
) -> Problem:
    """Return what the objectives and the bounds, which may be on the metric, need to know of a subnet.

    Raises
    ------
    UserError
        If a bound is out of its range, nothing keeps those on costs, or nothing predicts a latency that is asked for.
    """
    space, blueprint = supernet.space, supernet.blueprint
    aims = objectives[:-1]
    counted = [COSTS[name] for name in dict.fromkeys([*ALWAYS, *(goal.name for goal in aims), *bounded_costs(bounds)])]
    if conditions.latency is None and COSTS["latency"] in counted:
        raise UserError("a latency as objective or bound needs --latency_table: what the parts of a layer take here")
    full = {cost.name: cost.count(blueprint, FULL, conditions) for cost in counted if cost.closed_form}

    def costs(genome: Genome) -> dict[str, float]:
        subnet = space.subnet(genome)
        return {cost.name: cost.count(blueprint, subnet, conditions) for cost in counted}

    constraints = constraints_of(bounds, full, metric)
    window = None
    if bounded_costs(bounds):
        described_cost = partial(describe, full=full)
        window = CostWindow(space.cardinalities, costs, constraints, described_cost, canonical_of(supernet))
        window.fill(1, Random(0))  # where nothing is inside, this says so before anything is written
    return Problem(objectives, metric, COSTS[aims[0].name], costs, full, constraints, window)


def canonical_of(supernet: Supernet) -> Callable[[Genome], Genome]:
    """Return what maps a genome to the one that stands for its network: widths inside a skipped block at index 0."""
    space, blueprint = supernet.space, supernet.blueprint
    blocks = {key: blueprint.inside(key) for gene in space.genes for key in gene.keys if blueprint.is_block(key)}

    def canonical(genome: Genome) -> Genome:
        subnet = space.subnet(genome)
        idle = {key for block, inside in blocks.items() if subnet[block] == 0 for key in inside}
        return tuple(
            0 if idle.issuperset(gene.keys) else index for gene, index in zip(space.genes, genome, strict=True)
        )

    return canonical


def first_genomes(ratios: str | None, supernet: Supernet, length: int) -> list[Genome]:
    """Return the genomes to propose first: the largest subnet, what `ratios` ask for, the heuristic one, the smallest.

    For each share of the full model's MACs it is a genome of about that, not above it; a warning says where the space
    has none.
    """
    space, blueprint = supernet.space, supernet.blueprint
    full, found = count_macs(blueprint, length=length), []
    for ratio in [] if ratios is None else shares("macs_ratios", ratios):
        genome = space.within(lambda g: count_macs(blueprint, space.subnet(g), length=length), ratio * full)
        if genome is None:
            warn(f"--macs_ratios: no subnet of the space has at most {ratio:g} of the full model's MACs")
        else:
            found.append(genome)
    return list(dict.fromkeys([space.max_genome, *found, space.heuristic_genome, space.min_genome]))
