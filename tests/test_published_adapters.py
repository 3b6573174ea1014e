"""The configs and recipes of LoNAS: written by their script, and worth what was published."""

from __future__ import annotations

import importlib.util
import math
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from published_adapters import MODELS, RUNS, PublishedRun

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs, count_params
from bootstrapnas.families import FAMILIES, family_of
from bootstrapnas.families.adapted import Adapters, adapted_family
from bootstrapnas.nncf_config import build_space, read_config

ROOT = Path(__file__).parents[1]
KNOWN = [run for run in RUNS if MODELS[run.model].config["model_type"] in FAMILIES]


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """The script, under a name of its own."""
    spec = importlib.util.spec_from_file_location("generate_lonas", ROOT / "nncf_configs" / "lonas" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blueprint_of(name: str) -> Blueprint:
    """Return the blueprint of a model with adapters, from its config alone."""
    model = MODELS[name]
    config = transformers.AutoConfig.for_model(**model.config)
    adapters = Adapters(model.targets, model.rank, model.alpha)
    return Blueprint(config, model.architecture, adapted_family(family_of(config), adapters))


@pytest.mark.parametrize("run", KNOWN, ids=lambda run: f"{run.model}-{run.task}")
def test_files_are_what_the_script_writes(generated: ModuleType, run: PublishedRun) -> None:
    recipe = generated.recipe_path(run)
    assert recipe.read_text() == generated.recipe(run)
    assert subprocess.run(["bash", "-n", str(recipe)], capture_output=True).returncode == 0
    space = build_space(read_config(generated.config_path(run)), blueprint_of(run.model))
    assert space.genes


@pytest.mark.parametrize("run", [KNOWN[0], next(run for run in KNOWN if run.is_glue)], ids=lambda run: run.model)
def test_configs_are_what_the_script_writes(generated: ModuleType, run: PublishedRun) -> None:
    assert generated.config_path(run).read_text() == generated.config(run)


@pytest.mark.parametrize(
    ("name", "task", "length", "full", "heuristic"),
    [
        ("llama_7b", "commonsense", 256, {"macs": 1.7e12}, {"macs": 1.4e12}),
        ("bloomz_7b1", "math", 256, {}, {"macs": 1.5e12, "params": 6.1e9}),
        ("bert_base", "rte", 128, {"macs": 1.1e10}, {}),
    ],
)
def test_costs_are_those_published(
    name: str, task: str, length: int, full: dict[str, float], heuristic: dict[str, float]
) -> None:
    blueprint = blueprint_of(name)
    space = build_space(read_config(ROOT / "nncf_configs" / "lonas" / name / f"{task}.json"), blueprint)
    for genome, published in ((space.max_genome, full), (space.heuristic_genome, heuristic)):
        subnet = space.subnet(genome)
        found = {"macs": count_macs(blueprint, subnet, length=length), "params": count_params(blueprint, subnet)}
        for cost, value in published.items():  # with two digits, rounded or cut off
            half = 10 ** math.floor(math.log10(value)) / 20
            assert f"{value:.1e}" in (f"{found[cost]:.1e}", f"{found[cost] - half:.1e}"), cost
