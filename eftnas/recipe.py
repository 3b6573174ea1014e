"""Run all stages of EFTNAS from one recipe; finished stages are found again, interrupted ones resume."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bootstrapnas.artefacts import STAGE_FILE, OtherRunError, empty_directory, holding, read_json, stage_of
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.evaluation import fast_bfloat16
from bootstrapnas.nncf_config import read_config
from bootstrapnas.pipeline.arguments import flag, required
from bootstrapnas.pipeline.cli import execute, to_arguments
from bootstrapnas.pipeline.search.objectives import DIVERGENCE
from bootstrapnas.pipeline.stages import METRICS_FILE
from bootstrapnas.progress import notice
from bootstrapnas.tasks import BUILTINS, TASK_FILE, TaskSpec, export_builtin
from eftnas.commands import COMMANDS
from eftnas.importance import MOVEMENT, OF_TRAINING

# ruff: noqa: UP045

Flags = dict[str, Any]
FULL = "full"
"""What the teacher is called among the models of a run."""
TEACHER_OUTPUTS, SPACE, DATA = "teacher_outputs", "space.json", "data"
WRITTEN = {
    "teacher": {"finetune"}, "importance": {"importance"}, "supernet": {"train"}, "search": {"search"},
    "extracted/*": {"extract"}, "subnets/*": {"extract", "finetune"}, "ir/*": {"export"}, "report": {"report"},
}  # fmt: skip
"""Where below its output directory a run has its stages, and which those are."""
PACKAGE = "package:"
"""Prefix of a model that lies in an installed Python package: ``package:<name>/<directory>``."""


class Stages(BaseModel):
    """Flags per stage, by the stage's command; those that say where files lie are set by the run itself.

    ``finetune-subnet`` is `finetune` again, of every extracted subnet, with the teacher; left out, none is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    finetune: Flags = {}
    importance: Flags = {}
    search_space: Flags = Field(default={}, alias="search-space")
    train: Flags = {}
    search: Flags = {}
    finetune_subnet: Flags | None = Field(default=None, alias="finetune-subnet")
    export: Flags = {}


class ReportSettings(BaseModel):
    """What the closing table measures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["validation", "validation_mismatched", "test"] = "validation"
    batch: int = Field(default=1, ge=1)
    length: int | None = Field(default=None, ge=1)
    repeats: int = Field(default=50, ge=1)


class Recipe(BaseModel):
    """A whole run.

    ``student`` is what the supernet starts from: the fine-tuned ``teacher``, or the ``pretrained`` model as published.
    Without ``nncf_config`` the labels of the model decide what is scored and what is elastic. ``quantise`` has, by
    subnet or ``full``, the flags of a second export, which the report shows as ``<name> int8``. ``variants`` are
    changes to ``output_dir``, ``task``, ``stages`` and so on that a name chosen on the command line makes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_dir: str
    model_name_or_path: str
    nncf_config: str | None = None
    task: Flags
    training: Flags = {}
    student: str = Field(default="teacher", pattern="^(teacher|pretrained)$")
    stages: Stages = Field(default_factory=Stages)
    subnets: dict[str, Flags] = Field(min_length=1)
    quantise: dict[str, Flags] = {}
    report: ReportSettings = Field(default_factory=ReportSettings)
    variants: dict[str, dict[str, Any]] = {}


@dataclass
class RecipeArguments:
    """The recipe and what to change in it."""

    _argument_group_name = "recipe"

    config: str = required("Recipe, a YAML file.")
    output_dir: Optional[str] = flag(None, "Instead of the recipe's.")
    variant: Optional[str] = flag(None, "One of the recipe's variants, for example long.")
    fresh: bool = flag(False, "Delete what a run wrote into the output directory and start over.")


GROUPS = (RecipeArguments,)


def run(arguments: RecipeArguments, *, typed: Mapping[str, Any]) -> Path:
    """Run every stage; return the output directory."""
    recipe = read_recipe(arguments.config, arguments.variant)
    root = Path(arguments.output_dir or recipe.output_dir)
    with holding(root):
        if arguments.fresh and any(root.iterdir()):
            check_run(root, recipe)
            empty_directory(root)
        return Run(recipe, root).all()


def check_run(root: Path, recipe: Recipe) -> None:
    """Raise `UserError` if a directory holds anything that no run of a recipe writes, or no stage of one."""
    stages = {path for pattern, names in WRITTEN.items() for path in root.glob(pattern) if stage_of(path) in names}
    groups = [root / pattern.removesuffix("/*") for pattern in WRITTEN if pattern.endswith("/*")]
    made = makes_data(recipe) or made_data(root)
    beside = {*groups, root / TEACHER_OUTPUTS, root / SPACE, *([root / DATA] if made else [])}
    left = (f".{SPACE}.", f".{DATA}.")  # by a run that was killed
    for directory in (root, *filter(Path.is_dir, groups)):
        for path in sorted(directory.iterdir()):
            if path not in stages | beside and not path.name.startswith(left):
                where = path.relative_to(root)
                raise UserError(f"--fresh deletes runs only: output_dir {root} holds {where}, which no run wrote")
    if not stages:
        raise UserError(f"--fresh deletes runs only: output_dir {root} holds no stage of one; delete it yourself")


def makes_data(recipe: Recipe) -> bool:
    """Return whether a run writes the rows of its task itself."""
    return recipe.task.get("task_name") in BUILTINS and "dataset_dir" not in recipe.task


def made_data(root: Path) -> bool:
    """Return whether the run that made a directory, of whatever recipe, has written the rows of its task there."""
    try:
        teacher = read_json(root / "teacher" / STAGE_FILE)
        task, rows = teacher["settings"]["task"]["task_name"], teacher["inputs"]["train_data"]["path"]
    except (UserError, KeyError, TypeError):  # none, or an unfinished one of another version
        return False
    return task in BUILTINS and Path(rows).resolve().is_relative_to((root / DATA).resolve())


def read_recipe(path: str, variant: str | None = None) -> Recipe:
    """Read and check a recipe, changed by one of its variants.

    Raises
    ------
    UserError
        If the file is missing, not YAML, has an unknown or ill-typed key, or lacks the variant.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read recipe {path}: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"recipe {path} must be a mapping")
    if variant is not None:
        variants = raw.get("variants") or {}
        if variant not in variants:
            raise UserError(f"recipe {path} has no variant {variant!r} (it has: {listed(variants)})")
        raw = merged(raw, variants[variant])
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Stages.model_fields if first["loc"][0] == "stages" else Recipe.model_fields
            names = [field.alias or name for name, field in known.items()]
            raise UserError(f"recipe {path}: unknown key {where!r}{near_miss(str(first['loc'][-1]), names)}") from None
        raise UserError(f"recipe {path}: {where}: {first['msg']}") from None
    for name in recipe.quantise:
        subnets = (FULL, *recipe.subnets)
        if name not in subnets:
            raise UserError(f"recipe {path}: quantise: there is no subnet {name!r}{near_miss(name, subnets)}")
    return recipe


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, mapping by mapping."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def resolve_model(name: str) -> str:
    """Return a hub id or path; ``package:<name>/<directory>`` is a directory of an installed Python package."""
    if not name.startswith(PACKAGE):
        return name
    package, _, directory = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model {name!r}: the Python package {package!r} is not installed")
    return str(Path(spec.submodule_search_locations[0]) / directory)


def with_effect(command: str, wired: Flags, chosen: Flags) -> Flags:
    """Return the flags that the run wires, without those that would do nothing beside the chosen ones."""
    flags = {**wired, **chosen}
    config = flags.get("nncf_config")
    in_config = None if config is None else read_config(config).document.kd_mode
    idle: set[str] = set()
    if (flags.get("kd_mode") or in_config or "original") != "original":
        idle.add("kd_cache_dir")
    if command == "importance" and flags.get("criterion", MOVEMENT) != MOVEMENT:
        idle |= {"kd_cache_dir", *OF_TRAINING}
    if command == "search" and DIVERGENCE not in str(flags.get("objectives", "")):
        idle.add("kd_teacher_model")
    return {name: value for name, value in wired.items() if name not in idle}


class Run:
    """One run of a recipe below a directory."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe, self.root = recipe, root
        self.pretrained = resolve_model(recipe.model_name_or_path)

    def all(self) -> Path:
        """Run every stage in order."""
        recipe, root = self.recipe, self.root
        task = self.task()
        training = dict(recipe.training)
        if training.get("bf16") == "auto":
            training["bf16"] = fast_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            if not training["bf16"]:
                notice(
                    "bf16 auto: float32, as this processor computes bfloat16 no faster; expect several times as long"
                )
        teacher, importance, space = root / "teacher", root / "importance", root / SPACE
        supernet, search = root / "supernet", root / "search"
        self.stage(
            "finetune", {"model_name_or_path": self.pretrained, "output_dir": teacher, **task, **training},
            recipe.stages.finetune,
        )  # fmt: skip
        student = teacher if recipe.student == "teacher" else self.pretrained
        start = {
            "model_name_or_path": student,
            "kd_teacher_model": teacher,
            "kd_cache_dir": root / TEACHER_OUTPUTS,
            **training,
        }
        if recipe.student == "pretrained":
            start |= task
        config = {"nncf_config": recipe.nncf_config}
        self.stage("importance", {**start, **config, "output_dir": importance}, recipe.stages.importance)
        self.stage(
            "search-space",
            {
                "source_config": recipe.nncf_config,
                "model_name_or_path": student,
                "importance_weight_dir": importance,
                "target_config": space,
            },
            recipe.stages.search_space,
        )
        self.stage(
            "train",
            {**start, "nncf_config": space, "importance_weight_dir": importance, "output_dir": supernet},
            recipe.stages.train,
        )
        # The chosen subnet is held against the teacher, unless the recipe names another reference.
        spec, in_config = TaskSpec.load(teacher / TASK_FILE), read_config(space).search.eval_metric_name
        metric = spec.metric_named(recipe.stages.search.get("eval_metric_name") or in_config or spec.metric)
        floor = {"ref_acc": read_json(teacher / METRICS_FILE)[metric]}
        ratios = [str(choice["max_macs_ratio"]) for choice in recipe.subnets.values() if "max_macs_ratio" in choice]
        wanted = {"macs_ratios": ",".join(ratios) or None}
        searched = {"supernet_dir": supernet, "kd_teacher_model": teacher, "output_dir": search, **floor, **wanted}
        self.stage("search", searched, recipe.stages.search)
        self.stage("export", {"model_dir": teacher, "output_dir": root / "ir" / FULL}, recipe.stages.export)
        for name, choice in recipe.subnets.items():
            subnet, tuning = root / "subnets" / name, recipe.stages.finetune_subnet
            extracted = subnet if tuning is None else root / "extracted" / name
            self.stage("extract", {"supernet_dir": supernet, "search_dir": search, "output_dir": extracted}, choice)
            if tuning is not None:
                self.stage("finetune", {**start, "model_name_or_path": extracted, "output_dir": subnet}, tuning)
            self.stage("export", {"model_dir": subnet, "output_dir": root / "ir" / name}, recipe.stages.export)
        for name, flags in recipe.quantise.items():
            wired = {"model_dir": self.model(name), "output_dir": root / "ir" / f"{name}-int8"}
            self.stage("export", wired, {**recipe.stages.export, **flags})
        self.report()
        return root

    def task(self) -> Flags:
        """Return the flags of the task; the built-in data set is written once, for all stages."""
        task = dict(self.recipe.task)
        if makes_data(self.recipe):
            directory = self.root / DATA
            if not directory.is_dir():
                notice(f"data: making the rows of {task['task_name']}")
                export_builtin(directory, str(task["task_name"]))
            task["dataset_dir"] = str(directory)
        return task

    def stage(self, command: str, wired: Flags, chosen: Flags) -> None:
        """Run one command with the flags that the run wires and those that the recipe chooses."""
        for name in chosen:
            if name in wired and name in ("output_dir", "model_dir", "supernet_dir", "search_dir", "nncf_config"):
                raise UserError(f"recipe: {command} cannot set {name}: the run decides where files lie")
        try:
            execute("eftnas", COMMANDS, command, to_arguments({**with_effect(command, wired, chosen), **chosen}))
        except OtherRunError as error:
            advice = "the recipe or its inputs have changed: start over with --fresh, or choose another --output_dir"
            raise OtherRunError(error.directory, error.difference, advice) from None

    def model(self, name: str) -> Path:
        """Return the directory of a subnet, or of the full model."""
        return self.root / "teacher" if name == FULL else self.root / "subnets" / name

    def report(self) -> None:
        """Measure the full model and the subnets side by side and print the table."""
        from bootstrapnas.pipeline.report import Entry, write_run_report

        entries = [Entry(name, self.model(name), self.root / "ir" / name) for name in (FULL, *self.recipe.subnets)]
        entries += [
            Entry(f"{name} int8", self.model(name), self.root / "ir" / f"{name}-int8", quantised=True)
            for name in self.recipe.quantise
        ]
        settings = self.recipe.report
        write_run_report(
            entries,
            self.root / "report",
            search_dir=self.root / "search",
            split=settings.split,
            batch=settings.batch,
            length=settings.length,
            repeats=settings.repeats,
        )
