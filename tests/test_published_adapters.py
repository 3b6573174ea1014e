"""The configs and recipes of LoNAS: written by their script, and worth what was published."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from causal_models import build_tokenizer
from command_line import call
from conftest import FILLERS, VOCABULARY
from published_adapters import MODELS, RUNS, PublishedRun
from recipe_scripts import calls_of, flags_of, write_stand_in
from transformers import BertTokenizerFast

from bootstrapnas.artefacts import read_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs, count_params
from bootstrapnas.families import family_of
from bootstrapnas.families.adapted import Adapters, adapted_family
from bootstrapnas.nncf_config import build_space, read_config
from bootstrapnas.pipeline.cli import parse
from bootstrapnas.tasks.answers import RULES
from bootstrapnas.tasks.known import KNOWN
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

STAGES = ["train", "eval", "search", "eval", "extract", "extract", "export"]
BASELINE = ["train", "eval"]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a ``lonas`` that notes its arguments."""
    return write_stand_in(tmp_path_factory.mktemp("stand_in"), "lonas")


@BY_NAME
def test_a_recipe_hands_over_what_it_writes(
    generated: ModuleType, run: PublishedRun, stand_in: Path, tmp_path: Path
) -> None:
    """Every flag exists, the model is the table's, and a path that a stage reads was written by one before it."""
    variables = {
        "OUTPUT_DIR": "o",
        "TRAINING": "--reorder wanda",
        **({} if run.is_glue else {"TRAIN_FILE": "rows.json"}),
    }
    assert [name for name, *_ in calls_of(generated.recipe_path(run), stand_in, tmp_path, **variables)] == STAGES
    calls = calls_of(generated.recipe_path(run), stand_in, tmp_path, **variables, BASELINE="1")
    assert [name for name, *_ in calls] == [*STAGES, *BASELINE]
    model, written = MODELS[run.model], set[str]()
    trainings = []
    for name, *arguments in calls:
        parse(f"lonas {name}", "", COMMANDS[name].load().GROUPS, arguments)
        flags = flags_of(arguments)
        if name == "train":
            trainings.append(flags)
        for flag, value in flags.items():
            if value.startswith("o/") and flag != "--output_dir":
                assert value in written, (name, flag)
        written.add(flags.get("--output_dir", ""))
    for flags in trainings:
        assert flags["--model_name_or_path"] == model.hub_id
        assert flags["--target_modules"].split(",") == list(model.targets)
        assert (flags["--lora_r"], flags["--reorder"]) == (str(model.rank), "wanda")
        assert flags.get("--metric", KNOWN[run.task].metrics[0]) == run.metric
        assert flags.get("--train_file") == variables.get("TRAIN_FILE")
    config = read_config(generated.config_path(run))
    assert ROOT / trainings[0]["--nncf_config"] == generated.config_path(run)
    assert "--nncf_config" not in trainings[1]
    assert [(stage.epochs, stage.init_lr) for stage in config.training.stages] == [
        (int(trainings[1]["--num_train_epochs"]), float(trainings[1]["--learning_rate"]))
    ]
    assert config.search.eval_metric_name == (f"eval_{run.metric}" if run.is_glue else None)


@pytest.mark.parametrize("run", [run for run in RUNS if not run.is_glue], ids=lambda run: f"{run.model}-{run.task}")
def test_a_recipe_says_that_rows_are_files(generated: ModuleType, run: PublishedRun, stand_in: Path) -> None:
    recipe = generated.recipe_path(run)
    environment = {"PATH": f"{stand_in}:{os.environ['PATH']}", "CALLS": os.devnull}
    result = subprocess.run(["bash", str(recipe)], env=environment, capture_output=True, text=True)
    told = f"{recipe.name}: TRAIN_FILE and DATASET_DIR must say where LLM-Adapters' files are\n"
    assert (result.returncode, result.stderr) == (2, told)


# -- on tiny models ----------------------------------------------------------------------------------------------------

LAYERS, HEAD_DIM = 2, 4
WHOLE = ("bert_base_rte", "bert_base_stsb", "llama_7b_math", "bloomz_7b1_math", "qwen3_0.6b_math")


def scale_of(name: str) -> int:
    """Return by what a published model's widths are divided: its heads become `HEAD_DIM` channels wide."""
    config = transformers.AutoConfig.for_model(**MODELS[name].config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size // HEAD_DIM)


def write_base(name: str, directory: Path) -> None:
    """Write a model of `LAYERS` narrow layers, with as many heads as a published one, and a tokenizer."""
    model, scale = MODELS[name], scale_of(name)
    full = transformers.AutoConfig.for_model(**model.config)
    tokenizer = bert_tokenizer() if name == "bert_base" else build_tokenizer()
    changes = {
        "vocab_size": len(tokenizer), "hidden_size": full.hidden_size // scale, "max_position_embeddings": 256,
        "n_layer" if "n_layer" in model.config else "num_hidden_layers": LAYERS,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if hasattr(full, "intermediate_size"):
        changes["intermediate_size"] = full.intermediate_size // scale
    if "head_dim" in model.config:
        changes["head_dim"] = HEAD_DIM
    config = transformers.AutoConfig.for_model(**{**model.config, **changes})
    torch.manual_seed(0)
    auto = transformers.AutoModel if name == "bert_base" else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def bert_tokenizer() -> BertTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=256)


def write_config(generated: ModuleType, run: PublishedRun, path: Path) -> None:
    """Write a recipe's config for the tiny model: its groups in the layers that are there; a search of 3 subnets."""
    raw = json.loads(json.dumps(read_config(generated.config_path(run)).raw))
    width, scale = raw["bootstrapNAS"]["training"]["elasticity"]["width"], scale_of(run.model)
    kept = [
        (nodes, widths if "lora_A" in nodes[0] else [math.ceil(channels / scale) for channels in widths])
        for nodes, widths in zip(width["overwrite_groups"], width["overwrite_groups_widths"], strict=True)
        if layer_of(nodes[0]) < LAYERS
    ]
    width["overwrite_groups"], width["overwrite_groups_widths"] = map(list, zip(*kept, strict=True))
    width["add_dynamic_inputs"] = [node for node in width["add_dynamic_inputs"] if layer_of(node) < LAYERS]
    raw["bootstrapNAS"]["search"] |= {"num_evals": 3, "population": 2}
    path.write_text(json.dumps(raw))


def layer_of(node: str) -> int:
    match = re.search(r"(?:Layer|Block)\[(\d+)\]", node)
    assert match is not None
    return int(match[1])


def write_rows(run: PublishedRun, directory: Path) -> dict[str, str | Path]:
    """Write rows of a task where a recipe looks for them; return the variables that say where."""
    known = KNOWN[run.task]
    if run.is_glue:
        (directory / run.task).mkdir(parents=True)
        splits = ("validation_matched", "validation_mismatched") if run.task == "mnli" else ("validation",)
        for split in ("train", *splits):
            rows = [
                {
                    **dict.fromkeys(known.text_columns, f"{FILLERS[i]} {FILLERS[i + 1]}"),
                    "label": i % len(known.label_names) if known.label_names else i / 3,
                }
                for i in range(16 if split == "train" else 6)
            ]
            (directory / run.task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return {"DATASET_DIR": directory}
    rows = []
    for part in known.parts:
        rule = RULES[part]
        answers = rule.choices("")[:2] or ("3", "14")
        rows = [
            {"instruction": f"{i}?", "input": "", "output": f"the correct answer is {answer}", "answer": answer}
            for i, answer in enumerate(answers)
        ]
        (directory / part).mkdir(parents=True)
        (directory / part / "test.json").write_text(json.dumps(rows))
    (directory / "rows.json").write_text(json.dumps(rows * 8))
    return {"TRAIN_FILE": directory / "rows.json", "DATASET_DIR": directory}


@BY_NAME
def test_a_recipe_runs_on_a_tiny_model(
    generated: ModuleType, run: PublishedRun, stand_in: Path, tmp_path: Path
) -> None:
    """What a LoRA and an export take is the same in all recipes: of a family and a head, one runs these as well."""
    recipe, data = generated.recipe_path(run), tmp_path / "data"
    write_base(run.model, tmp_path / "base")
    write_config(generated, run, tmp_path / "config.json")
    training = "--num_train_epochs 1 --save_strategy no"
    variables: dict[str, str | Path] = {
        "MODEL": tmp_path / "base", "OUTPUT_DIR": tmp_path / "o", "NNCF_CONFIG": tmp_path / "config.json",
        "TRAINING": training if run.is_glue else f"{training} --max_new_tokens 4",
        "BASELINE": "1" if recipe.stem in WHOLE else "", **write_rows(run, data),
    }  # fmt: skip
    measured = []
    for arguments in calls_of(recipe, stand_in, tmp_path, **variables):
        if arguments[0] == "export" and recipe.stem not in WHOLE:
            continue
        outcome = call(arguments, "lonas")
        assert outcome.status == 0, outcome.err
        if arguments[0] == "eval":
            measured.append(json.loads(outcome.out))
    parts = () if run.is_glue else KNOWN[run.task].parts
    wanted = {run.metric, *(f"accuracy_{part}" for part in parts)}
    assert all(found.keys() >= wanted for found in measured)
    assert len(measured) == (3 if recipe.stem in WHOLE else 2)
    found = [each["costs"]["macs"] for each in measured]
    assert recipe.stem not in WHOLE or found[0] < found[2] >= found[1]
    assert read_json(tmp_path / "o" / "search" / "pareto.json")["metric"] == run.metric
    assert (tmp_path / "o" / "subnet" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "o" / "ir" / "openvino_model.xml").is_file() == (recipe.stem in WHOLE)
