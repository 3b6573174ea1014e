"""Which subnets a training drew at random, and with what losses: a choice among them that costs no evaluation.

The rules are those of Shears and SQFT (J. P. Muñoz et al. 2024, https://arxiv.org/abs/2404.10934 and 2410.03750), as
NNCF's example of quantisation-aware training with NLS has them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bootstrapnas.artefacts import FORMAT, check_format, read_json, write_json
from bootstrapnas.dims import Subnet
from bootstrapnas.errors import UserError
from bootstrapnas.sampling import LARGEST, SMALLEST
from bootstrapnas.space import Genome, SearchSpace

SAMPLED_FILE = "sampled.json"


def save_sampled(directory: Path, space: SearchSpace, draws: Iterable[tuple[str, Subnet, float]]) -> None:
    """Write how often each subnet was drawn, and the mean of its training losses.

    Parameters
    ----------
    directory
        Of the stage that trained.
    space
        All that is elastic.
    draws
        A subnet's name in its step, the subnet, its training loss. Those outside the space are left out: an earlier
        stage may have had more widths than the last one, whose subnets are searched.
    """
    losses: dict[Genome, list[float]] = {}
    for name, subnet, loss in draws:
        if name not in (LARGEST, SMALLEST) and subnet in space:  # those are computed in every step
            losses.setdefault(space.genome(subnet), []).append(loss)
    entries = [
        {"genome": list(genome), "times": len(found), "loss": mean if math.isfinite(mean) else None}
        for genome, found in losses.items()
        for mean in [math.fsum(found) / len(found)]
    ]
    content = {"format": FORMAT, "cardinalities": list(space.cardinalities), "subnets": entries}
    write_json(directory / SAMPLED_FILE, content)


def most_frequent(directory: str | Path, space: SearchSpace) -> Genome:
    """Return the genome of the choices that were drawn most often, gene by gene; of equals the larger size."""
    counts: list[Counter[int]] = [Counter() for _ in space.genes]
    for entry in _read(directory, space):
        for count, index in zip(counts, entry["genome"], strict=True):
            count[index] += entry["times"]
    return tuple(min(count, key=lambda index: (-count[index], index)) for count in counts)


def lowest_loss(directory: str | Path, space: SearchSpace) -> Genome:
    """Return the genome that was drawn with the lowest mean of its training losses; of equals the first drawn."""
    known = [entry for entry in _read(directory, space) if entry["loss"] is not None]
    if not known:
        raise UserError(f"{Path(directory) / SAMPLED_FILE} has no loss that is a number: the training diverged")
    return tuple(min(known, key=lambda entry: entry["loss"])["genome"])


def _read(directory: str | Path, space: SearchSpace) -> list[dict[str, Any]]:
    path = Path(directory) / SAMPLED_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} does not say which subnets its training drew, as it has no {SAMPLED_FILE}: choose heuristic, "
            "or search it"
        )
    found = read_json(path)
    check_format(path, found)
    if found["cardinalities"] != list(space.cardinalities) or not found["subnets"]:
        raise UserError(f"{path} holds no subnets of the search space beside it; train again")
    return list(found["subnets"])


RULES: Mapping[str, Callable[[str | Path, SearchSpace], Genome]] = {
    "frequent": most_frequent,
    "lowest_loss": lowest_loss,
}
"""The rules by the names that ``--subnet`` gives them."""
