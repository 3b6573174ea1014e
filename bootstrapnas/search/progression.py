"""How a search went: NNCF's search_progression.csv, and a picture."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence

from bootstrapnas.artefacts import replacing
from bootstrapnas.search.base import Candidate, Objective
from bootstrapnas.search.pareto import pareto_front
from bootstrapnas.space import Genome


def write_progression_csv(
    path: str | os.PathLike[str],
    candidates: Sequence[Candidate],
    describe: Callable[[Genome], tuple[Mapping[int, int], Sequence[int] | None]],
    *,
    metric: str,
    cost: str = "macs",
) -> None:
    """Write one row per candidate, in order of proposal, as NNCF's ``search_progression_to_csv`` does.

    The columns, without a header: the subnet's config as NNCF prints it, ``MACs``, its value in millions,
    ``top1_acc``, and the metric in percent with a minus sign.

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
        Names of the values to write.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for candidate in candidates:
            config = _nncf_config(*describe(candidate.genome))
            macs = candidate.values[cost] / 1e6
            # Rounded because 100 * 0.57 is 56.99999999999999.
            negated = -round(100 * candidate.values[metric], 10)
            writer.writerow([config, "MACs", macs, "top1_acc", negated])


def write_progression_png(
    path: str | os.PathLike[str],
    candidates: Sequence[Candidate],
    *,
    metric: str,
    cost: str = "macs",
    chosen: Mapping[str, Candidate] | None = None,
    title: str = "Search progression",
) -> None:
    """Draw cost in millions against the metric in percent, one dot per distinct candidate, coloured by generation.

    The line is the Pareto front, the square the maximum subnet (all genes 0) if it was evaluated.

    Parameters
    ----------
    path
        The file, a PNG of 1600 x 1000 pixels.
    candidates
        What the search proposed, at least one; metrics are fractions, costs are in units of one.
    metric, cost
        Names of the values on the axes: a larger metric and a smaller cost are better.
    chosen
        Candidates to mark, by label.
    title
        Heading of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def point(candidate: Candidate) -> tuple[float, float]:
        return candidate.values[cost] / 1e6, 100 * candidate.values[metric]

    distinct = list({candidate.genome: candidate for candidate in reversed(candidates)}.values())[::-1]
    front = pareto_front([each.values for each in distinct], [Objective(cost), Objective(metric, maximise=True)])

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
        s=26,
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
    axes.set_xlabel("MACs (M)" if cost == "macs" else f"{cost} (M)")
    axes.set_ylabel(f"{metric} (%)")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.colorbar(dots, label="Generation", ticks=MaxNLocator(integer=True))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _nncf_config(widths: Mapping[int, int], skipped: Sequence[int] | None) -> str:
    """Return the text that Python 3.11 gives NNCF's OrderedDict of ElasticityDim; later versions print it otherwise."""
    entries = f"(<ElasticityDim.WIDTH: 'width'>, {dict(widths)})"
    if skipped is not None:
        entries += f", (<ElasticityDim.DEPTH: 'depth'>, {list(skipped)})"
    return f"OrderedDict([{entries}])"
