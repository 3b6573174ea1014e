"""Write one subnet of a supernet as an ordinary, really smaller Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from bootstrapnas.artefacts import FORMAT, Stage, digest, read_json, read_stage, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import COSTS, FULL, Conditions, Costs, count_costs
from bootstrapnas.dims import Key, Subnet, subnet_from_json, subnet_to_json
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.extraction import SUBNET_FILE
from bootstrapnas.nncf_config import sequence_length
from bootstrapnas.pipeline.arguments import OutputArguments, flag, required
from bootstrapnas.pipeline.card import write_searched_card
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.pipeline.models import load_tokenizer, save_artefact
from bootstrapnas.pipeline.sampled import RULES
from bootstrapnas.pipeline.search.command import PARETO
from bootstrapnas.pipeline.search.objectives import (
    ConstraintArguments,
    bounded_costs,
    constraints_of,
    describe,
    described,
    metric_bounded,
)
from bootstrapnas.pipeline.stages import begin
from bootstrapnas.pipeline.supernets import load_supernet, read_trained
from bootstrapnas.progress import notice, warn
from bootstrapnas.search import Candidate, Objective, violation
from bootstrapnas.supernet import Supernet

# ruff: noqa: UP045

NAMED = ("best", "max", "min", "heuristic", *RULES)


@dataclass
class ExtractArguments:
    """Which subnet of which supernet."""

    _argument_group_name = "subnet"

    supernet_dir: str = required("Output of train.")
    search_dir: Optional[str] = flag(None, "Output of search; needed for best, an index or bounds.")
    subnet: Optional[str] = flag(
        None,
        "best, max, min, heuristic, frequent or lowest_loss (of what training drew), an index on the search's front, "
        "or a JSON file of sizes per layer. Instead, bounds: the subnet on the front with the best metric that keeps "
        "them; with min_metric the cheapest.",
    )


GROUPS = (ExtractArguments, ConstraintArguments, OutputArguments)


def run(
    arguments: ExtractArguments, bounds: ConstraintArguments, output: OutputArguments, *, typed: Mapping[str, Any]
) -> Path:
    """Extract; return the output directory."""
    chosen_by = words_of(arguments.subnet, bounds)
    stage = begin_extraction(arguments, output, typed)
    if stage.finished:
        return stage.directory
    spec = inherited_task(arguments.supernet_dir)
    supernet, config = load_supernet(arguments.supernet_dir, spec)
    length = sequence_length(config)
    subnet, values = choose(arguments, bounds, supernet, length)
    costs = count_costs(supernet.blueprint, subnet, length=length)
    full = count_costs(supernet.blueprint, FULL, length=length)
    model = supernet.extract(subnet)
    save_artefact(stage.directory, model, load_tokenizer(arguments.supernet_dir), spec)
    write_subnet(stage, supernet.blueprint, subnet, costs, full, values, chosen_by)
    write_searched_card(stage.directory, values, arguments.search_dir)
    notice(
        f"extract: {costs.macs / full.macs:.1%} of the MACs, {costs.params / full.params:.1%} of the parameters "
        f"({costs.params_without_embeddings / full.params_without_embeddings:.1%} without embeddings)"
    )
    stage.complete(macs=costs.macs, params=costs.params)
    return stage.directory


def begin_extraction(arguments: ExtractArguments, output: OutputArguments, typed: Mapping[str, Any]) -> Stage:
    """Open the stage that writes a subnet of a supernet."""
    read_trained(arguments.supernet_dir)
    subnet_file = arguments.subnet if arguments.subnet and Path(arguments.subnet).is_file() else None
    return begin(
        "extract",
        output.output_dir,
        typed,
        {"supernet": arguments.supernet_dir, "search": arguments.search_dir, "subnet": subnet_file},
        overwrite=output.overwrite_output_dir,
    )


def write_subnet(
    stage: Stage,
    blueprint: Blueprint,
    subnet: Subnet,
    costs: Costs,
    full: Costs,
    values: Mapping[str, float] | None,
    chosen_by: str,
    **more: Any,
) -> None:
    """Write ``subnet.json``: what was cut out, what it and the full model cost, what a search measured, `more`."""
    write_json(
        stage.directory / SUBNET_FILE,
        {
            "format": FORMAT,
            "sizes": subnet_to_json(blueprint.complete(subnet)),
            "costs": asdict(costs),
            "full_costs": asdict(full),
            "search_values": values,
            "chosen_by": chosen_by,
            "supernet": stage.inputs["supernet"],
            "search": stage.inputs.get("search"),
            **more,
        },
    )


def words_of(subnet: str | None, bounds: ConstraintArguments) -> str:
    """Return how flags choose a subnet; `UserError` unless they do it in exactly one way."""
    given = [f"{name} {value}" for name, value in vars(bounds).items() if value is not None]
    if (subnet is None) == (not given):
        raise UserError("pass either --subnet or a bound such as --max_macs_ratio")
    return subnet or ", ".join(given)


def choose(
    arguments: ExtractArguments, bounds: ConstraintArguments, supernet: Supernet, length: int
) -> tuple[dict[Key, int], dict[str, float] | None]:
    """Return the subnet that the flags name, and what the search measured of it."""
    space, name = supernet.space, arguments.subnet
    if name is None:
        chosen = _within(bounds, _search(arguments), supernet, Conditions(length), str(arguments.search_dir))
        return space.subnet(chosen.genome), dict(chosen.values)
    if name == "best":
        entry = _search(arguments)["best"]
        return space.subnet(entry["genome"]), entry["values"]
    if name.isdecimal():
        front = _search(arguments)["front"]
        if int(name) >= len(front):
            raise UserError(f"--subnet {name}: the front of {arguments.search_dir} has indices 0 to {len(front) - 1}")
        return space.subnet(front[int(name)]["genome"]), front[int(name)]["values"]
    if name in ("max", "min", "heuristic"):
        subnet = space.subnet(getattr(space, f"{name}_genome"))
    elif name in RULES:
        subnet = space.subnet(RULES[name](arguments.supernet_dir, space))
    elif Path(name).is_file():
        subnet = _read_subnet(name, supernet)
    else:
        raise UserError(
            f"--subnet {name!r} is neither {', '.join(NAMED)}, nor an index, nor a file{near_miss(name, NAMED)}"
        )
    if arguments.search_dir is not None:
        warn(f"--search_dir has no effect: --subnet {name} is no choice from a search")
    return subnet, None


def _within(
    bounds: ConstraintArguments, found: Mapping[str, Any], supernet: Supernet, conditions: Conditions, where: str
) -> Candidate:
    """Return the best candidate on a front within bounds, by what was searched; if the metric has one, the cheapest."""
    blueprint, front = supernet.blueprint, found["front"]
    quality = Objective(**found["objectives"][-1])  # the metric, or what the search went by instead
    metric = Objective(found["metric"], found.get("maximise", quality.maximise))
    full: dict[str, float] = dict(found.get("full", {}))
    for name in bounded_costs(bounds):
        if any(name not in entry["values"] for entry in front):
            if not COSTS[name].closed_form:
                raise UserError(f"{where} did not search by {name}: its subnets have no {name} to bound")
            for entry in front:  # what the search did not count is counted here
                entry["values"][name] = COSTS[name].count(blueprint, supernet.space.subnet(entry["genome"]), conditions)
        if COSTS[name].closed_form:
            full.setdefault(name, COSTS[name].count(blueprint, FULL, conditions))
    constraints = constraints_of(bounds, full, metric)
    candidates = [
        Candidate(tuple(entry["genome"]), entry["values"], 0, violation(constraints, entry["values"]))
        for entry in front
    ]
    kept = [each for each in candidates if not each.violation]
    if not kept:
        nearest = min(candidates, key=lambda each: each.violation).values
        reached = ", ".join(describe(name, nearest[name], full) for name in dict.fromkeys(c.name for c in constraints))
        raise UserError(
            f"no subnet on the front of {where} has {described(constraints, full)}; the nearest has {reached}"
        )

    def order(candidate: Candidate) -> tuple[float, float]:
        cost, loss = candidate.values[found["cost"]], quality.minimised(candidate.values)
        return (cost, loss) if metric_bounded(bounds) else (loss, cost)

    return min(kept, key=order)


def _read_subnet(path: str, supernet: Supernet) -> dict[Key, int]:
    found = read_json(path)
    sizes = found.get("sizes", found) if isinstance(found, dict) else found
    if not isinstance(sizes, dict):
        raise UserError(f"--subnet {path} holds no object of sizes by dimension, as subnet.json has them")
    try:
        subnet = subnet_from_json(sizes)
        supernet.blueprint.check(subnet)
    except UserError as error:
        raise UserError(f"--subnet {path}: {error}") from None
    return subnet


def _search(arguments: ExtractArguments) -> dict[str, Any]:
    if arguments.search_dir is None:
        raise UserError("choosing from a search needs --search_dir")
    manifest = read_stage(arguments.search_dir, "search")
    searched = manifest["inputs"]["supernet"].get("digest")
    if searched != digest(arguments.supernet_dir):
        raise UserError(f"{arguments.search_dir} searched another supernet than {arguments.supernet_dir}")
    return dict(read_json(Path(arguments.search_dir) / PARETO))
