"""How a search went: NNCF's search_progression.csv, and a picture."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence

from bootstrapnas.artefacts import replacing
from bootstrapnas.costs import COSTS, Cost
from bootstrapnas.search.base import Candidate, Objective
from bootstrapnas.search.pareto import pareto_front
from bootstrapnas.space import Genome


def write_progression_csv(
    path: str | os.PathLike[str],
    candidates: Sequence[Candidate],
    describe: Callable[[Genome], tuple[Mapping[int, int], Sequence[int] | None]],
    *,
    metric: Objective,
    cost: Cost = COSTS["macs"],
) -> None:
    """Write one row per evaluated candidate, in order of proposal, as NNCF's ``search_progression_to_csv`` does.

    The columns, without a header: the subnet's config as NNCF prints it, ``MACs`` (or what the cost is called), its
    value in millions (or the cost's unit), ``top1_acc``, and the metric in percent with a minus sign, or as it is where
    less of it is better.

    Parameters
    ----------
    path
        The file.
    candidates
        What the search proposed; metrics are fractions, costs are in units of one.
    describe
        Turns a genome into the width of each group by NNCF's group number, and the skipped blocks; `None` if the
        space has no elastic depth.
    metric, cost
        The values to write.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for candidate in (each for each in candidates if each.evaluated):
            config = _nncf_config(*describe(candidate.genome))
            value = candidate.values[cost.name] / cost.scale
            writer.writerow([config, cost.title, value, "top1_acc", metric.sign * _shown(metric, candidate)])


def write_progression_png(
    path: str | os.PathLike[str],
    candidates: Sequence[Candidate],
    *,
    metric: Objective,
    cost: Cost = COSTS["macs"],
    chosen: Mapping[str, Candidate] | None = None,
    title: str = "Search progression",
) -> None:
    """Draw a cost against the metric, one dot per distinct evaluated candidate, coloured by generation.

    The line is the Pareto front of these two among what keeps the search's bounds (smaller: what does not), the square
    the maximum subnet (all genes 0) if it was evaluated.

    Parameters
    ----------
    path
        The file, a PNG of 1600 x 1000 pixels.
    candidates
        What the search proposed, at least one of it evaluated; metrics are fractions, costs in units of one.
    metric, cost
        The values on the axes.
    chosen
        Candidates to mark, by label.
    title
        Heading of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def point(candidate: Candidate) -> tuple[float, float]:
        return candidate.values[cost.name] / cost.scale, _shown(metric, candidate)

    evaluated = [each for each in candidates if each.evaluated]
    distinct = list({candidate.genome: candidate for candidate in reversed(evaluated)}.values())[::-1]
    violations = [each.violation for each in distinct]
    front = pareto_front([each.values for each in distinct], [Objective(cost.name), metric], violations)

    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    x, y = zip(*sorted(point(distinct[index]) for index in front), strict=True)
    axes.step(x, y, where="post", color="0.35", linewidth=1.2, label="Pareto front", zorder=2)
    x, y = zip(*map(point, distinct), strict=True)
    dots = axes.scatter(
        x,
        y,
        c=[each.generation for each in distinct],
        cmap="viridis",
        vmin=1,
        vmax=max(each.generation for each in candidates),
        s=[26 if each == min(violations) else 8 for each in violations],
        alpha=0.85,
        edgecolors="white",
        linewidths=0.4,
        zorder=3,
    )
    for candidate in distinct:
        if not any(candidate.genome):
            axes.plot(*point(candidate), "s", color="tab:blue", markersize=9, label="Maximum subnet", zorder=4)
    for label, candidate in (chosen or {}).items():
        axes.plot(*point(candidate), "*", color="tab:orange", markeredgecolor="black", markersize=15, zorder=5)
        axes.annotate(
            label,
            point(candidate),
            xytext=(-9, 6),  # above the front, where no dot can be
            textcoords="offset points",
            horizontalalignment="right",
            fontsize=9,
            fontweight="bold",
            zorder=6,
        )
    axes.margins(x=0.08, y=0.08)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_title(title)
    axes.set_xlabel(f"{cost.title} ({cost.unit})")
    axes.set_ylabel(f"{metric.name} (%)" if metric.maximise else metric.name)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right" if metric.maximise else "upper right", frameon=False)
    figure.colorbar(dots, label="Generation", ticks=MaxNLocator(integer=True))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _shown(metric: Objective, candidate: Candidate) -> float:
    """Return a metric as people read it; rounded because 100 * 0.57 is 56.99999999999999."""
    return round((100 if metric.maximise else 1) * candidate.values[metric.name], 10)


def _nncf_config(widths: Mapping[int, int], skipped: Sequence[int] | None) -> str:
    """Return the text that Python 3.11 gives NNCF's OrderedDict of ElasticityDim; later versions print it otherwise."""
    entries = f"(<ElasticityDim.WIDTH: 'width'>, {dict(widths)})"
    if skipped is not None:
        entries += f", (<ElasticityDim.DEPTH: 'depth'>, {list(skipped)})"
    return f"OrderedDict([{entries}])"
