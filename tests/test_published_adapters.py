"""The configs and recipes of LoNAS: written by their script, and worth what was published."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from causal_models import build_causal, build_tokenizer
from conftest import FILLERS
from published_adapters import MODELS, RUNS, PublishedRun
from recipe_scripts import calls_of, flags_of, write_stand_in
from transformers import AutoTokenizer, BertModel

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs, count_params
from bootstrapnas.families import family_of
from bootstrapnas.families.adapted import Adapters, adapted_family
from bootstrapnas.nncf_config import build_space, read_config
from bootstrapnas.pipeline.cli import parse
from bootstrapnas.tasks.known import KNOWN
from lonas.cli import main
from lonas.commands import COMMANDS

ROOT = Path(__file__).parents[1]
BY_NAME = pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.model}-{run.task}")


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


@BY_NAME
def test_files_are_what_the_script_writes(generated: ModuleType, run: PublishedRun) -> None:
    recipe = generated.recipe_path(run)
    assert recipe.read_text() == generated.recipe(run)
    assert subprocess.run(["bash", "-n", str(recipe)], capture_output=True).returncode == 0
    space = build_space(read_config(generated.config_path(run)), blueprint_of(run.model))
    assert space.genes


@pytest.mark.parametrize("run", [RUNS[0], next(run for run in RUNS if run.is_glue)], ids=lambda run: run.model)
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


# -- the recipes -------------------------------------------------------------------------------------------------------

STAGES = ["train", "eval", "search", "extract", "extract", "export"]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a ``lonas`` that notes its arguments."""
    return write_stand_in(tmp_path_factory.mktemp("stand_in"), "lonas")


@BY_NAME
def test_a_recipe_hands_over_what_it_writes(
    generated: ModuleType, run: PublishedRun, stand_in: Path, tmp_path: Path
) -> None:
    """Every flag exists, the model is the table's, and a path that a stage reads was written by one before it."""
    calls = calls_of(generated.recipe_path(run), stand_in, tmp_path, OUTPUT_DIR="o", TRAINING="--reorder wanda")
    assert [name for name, *_ in calls] == STAGES
    model, written = MODELS[run.model], set[str]()
    for name, *arguments in calls:
        parse(f"lonas {name}", "", COMMANDS[name].load().GROUPS, arguments)
        flags = flags_of(arguments)
        if name == "train":
            assert flags["--model_name_or_path"] == model.hub_id
            assert flags["--target_modules"].split(",") == list(model.targets)
            assert (flags["--lora_r"], flags["--reorder"]) == (str(model.rank), "wanda")
            assert ROOT / flags["--nncf_config"] == generated.config_path(run)
            assert flags.get("--metric", KNOWN[run.task].metrics[0]) == run.metric
            config = read_config(generated.config_path(run))
            assert config.search.eval_metric_name == (f"eval_{run.metric}" if run.is_glue else None)
        for flag, value in flags.items():
            if value.startswith("o/") and flag != "--output_dir":
                assert value in written, (name, flag)
        written.add(flags.get("--output_dir", ""))


@pytest.mark.parametrize("name", ["bert_base-rte", "llama_7b-math"])
def test_a_recipe_runs_on_a_tiny_model(
    generated: ModuleType, name: str, stand_in: Path, tmp_path: Path, tiny_bert_dir: Path
) -> None:
    run = next(run for run in RUNS if f"{run.model}-{run.task}" == name)
    if run.is_glue:
        base, keys = tmp_path / "base", ("sentence1", "sentence2", "label")
        BertModel.from_pretrained(tiny_bert_dir).save_pretrained(base)
        AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(base)
        rows = [dict(zip(keys, (FILLERS[i], FILLERS[i + 1], i % 2), strict=True)) for i in range(16)]
    else:
        base = tmp_path / "base"
        build_causal("llama").save_pretrained(base)
        build_tokenizer().save_pretrained(base)
        rows = [
            {"instruction": f"{i} + 1 = ?", "input": "", "output": f"It is {i + 1}.", "answer": str(i + 1)}
            for i in range(16)
        ]
    data = tmp_path / "data" / run.task
    data.mkdir(parents=True)
    for split, count in (("train", 16), ("validation", 4), ("test", 4)):
        (data / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:count]))
    model, length = MODELS[run.model], "32" if run.is_glue else "120"
    space = ["search-space", "--model_name_or_path", base, "--target_config", tmp_path / "space.json"]
    space += ["--lora_r", model.rank, "--target_modules", ",".join(model.targets), "--max_seq_length", length]
    assert main(list(map(str, space))) == 0
    raw = json.loads((tmp_path / "space.json").read_text())
    raw["bootstrapNAS"]["search"] |= {"num_evals": 3, "population": 2}
    (tmp_path / "space.json").write_text(json.dumps(raw))
    training = f"--max_seq_length {length} --num_train_epochs 1 --save_strategy no"
    variables: dict[str, str | Path] = {
        "MODEL": base, "DATASET_DIR": tmp_path / "data", "OUTPUT_DIR": tmp_path / "o",
        "NNCF_CONFIG": tmp_path / "space.json", "TRAINING": training,
    }  # fmt: skip
    if not run.is_glue:
        variables["TRAINING"] = f"{training} --max_new_tokens 4"
    for arguments in calls_of(generated.recipe_path(run), stand_in, tmp_path, **variables):
        assert main(arguments) == 0, arguments
    assert (tmp_path / "o" / "ir" / "openvino_model.xml").is_file()
    assert (tmp_path / "o" / "subnet" / "adapter" / "adapter_model.safetensors").is_file()
