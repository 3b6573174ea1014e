"""The published EFTNAS configs and recipes: written from one table, and every recipe's commands run on a tiny model.

A recipe runs with a stand-in for ``eftnas`` that notes its arguments; the noted commands then run in this process. The
tiny model has two layers of a sixteenth of the published size (as many heads), its config has the groups of those
layers with widths and blocks of scores divided by 16. Every flag, and every key but the number of evaluations, is the
recipe's own.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import generate
import pytest
from command_line import call
from conftest import FILLERS, VOCABULARY
from published_spaces import CONFIGS, HUB_IDS, SPACES, TASKS, PublishedSpace
from recipe_scripts import calls_of, flags_of, run_here, write_stand_in
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    PreTrainedModel,
)

from bootstrapnas.artefacts import read_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import subnet_from_json
from bootstrapnas.nncf_config import build_space, read_config
from bootstrapnas.pipeline.cli import parse
from bootstrapnas.tasks.known import KNOWN
from eftnas.cli import main as eftnas_main
from eftnas.commands import COMMANDS

ROOT = Path(__file__).parents[1]
SCALE, LAYERS = 16, 2
EXPORTED = ("s1_bert_base/cola", "s1_bert_base/squad", "s2_bert_medium/mnli", "s2_bert_medium/qnli")
EXPECTED = ("ref_acc", "eval_metric_name", "the nearest that a threshold reaches")
EXTRAS: dict[str, dict[str, str]] = {
    "s2_bert_medium/qnli": {"SPACE": "generated", "FINETUNE": "1"},
    "s1_bert_base/squad_v2": {"SPACE": "generated"},
}
BY_NAME = pytest.mark.parametrize("published", SPACES, ids=lambda published: published.name)


# -- the files ---------------------------------------------------------------------------------------------------------


def test_the_files_are_those_of_the_table() -> None:
    """If this fails: python nncf_configs/eftnas/generate.py."""
    written = generate.files()
    for path, text in written.items():
        assert path.read_text(encoding="utf-8") == text, path
    found = {*generate.RECIPE_DIR.iterdir(), *generate.CONFIG_DIR.glob("*/*.json")}
    assert found == written.keys()
    assert len(written) == 18 + 18 + 4


@BY_NAME
def test_a_config_says_what_was_published(published: PublishedSpace) -> None:
    config, blueprint = read_config(generate.config_path(published)), published.blueprint()
    assert build_space(config, blueprint) == published.space(blocks=True).limited(published.width_indicator)
    (stage,) = config.training.stages
    assert (stage.epochs, stage.init_lr, stage.epochs_lr) == (
        published.epochs,
        published.lr,
        published.epochs_lr or published.epochs,
    )
    warmup = config.movement.params
    assert (warmup.warmup_start_epoch, warmup.warmup_end_epoch) == published.warmup
    assert (config.search.num_evals, config.search.population, config.search.ref_acc) == (1000, 40, published.ref_acc)
    assert {reason for _, reason in config.ignored} <= {"the task decides the metric"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "nncf_configs" / "eftnas" / "templates").iterdir()), ids=lambda p: p.stem
)
def test_a_template_has_every_head_and_block(path: Path) -> None:
    model = next(model for model in CONFIGS if path.stem.startswith(model.partition("_")[2]))
    head = next(a for name, a in generate.ARCHITECTURES.items() if path.stem.endswith(name))
    blueprint = Blueprint(CONFIGS[model], head)
    space = build_space(read_config(path), blueprint)
    elastic = {key for key in blueprint.elastic if not blueprint.is_whole_layer(key)}
    assert {key for gene in space.genes for key in gene.keys} == elastic
    assert all(gene.choices[0] == blueprint.full[gene.keys[0]] for gene in space.genes)
    assert all(gene.choices[-1] == 1 for gene in space.genes if gene.keys[0].dim == "head")


# -- the recipes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an ``eftnas`` that notes its arguments."""
    return write_stand_in(tmp_path_factory.mktemp("stand_in"), "eftnas")


@BY_NAME
def test_a_recipe_uses_what_is_published_by_default(published: PublishedSpace, stand_in: Path, tmp_path: Path) -> None:
    calls = calls_of(generate.recipe_path(published), stand_in, tmp_path)
    evaluations = 2 if published.task == "mnli" else 1
    stages = ["importance", "train", "search", "extract", "export", *["evaluate"] * evaluations]
    assert [name for name, *_ in calls] == stages
    flags = {name: flags_of(arguments) for name, *arguments in calls}
    assert flags["importance"]["--model_name_or_path"] == flags["train"]["--model_name_or_path"]
    assert flags["train"]["--model_name_or_path"] == HUB_IDS[published.model]
    assert flags["train"]["--kd_teacher_model"] == TASKS[published.task].teacher
    assert flags["importance"]["--task_name"] == published.task
    assert flags["importance"]["--max_seq_length"] == str(published.length)
    for stage in ("importance", "train"):
        assert ROOT / flags[stage]["--nncf_config"] == generate.config_path(published)
        assert "--dataset_dir" not in flags[stage]


@BY_NAME
def test_a_recipe_hands_over_what_it_writes(published: PublishedSpace, stand_in: Path, tmp_path: Path) -> None:
    """Every flag exists, and a path that a stage reads was written by one before it."""
    recipe, changes = generate.recipe_path(published), {"SPACE": "generated", "FINETUNE": "1", "OUTPUT_DIR": "o"}
    calls = calls_of(recipe, stand_in, tmp_path, **changes, TRAINING="--bf16 True")
    assert [name for name, *_ in calls][:7] == [
        "importance", "search-space", "train", "search", "extract", "finetune", "export",
    ]  # fmt: skip
    written: set[str] = set()
    for name, *arguments in calls:
        parse(f"eftnas {name}", "", COMMANDS[name].load().GROUPS, arguments)
        flags = flags_of(arguments)
        assert (flags.get("--bf16") == "True") == (name in ("importance", "train", "finetune"))
        for flag, value in flags.items():
            if value.startswith("o/") and flag not in ("--output_dir", "--target_config"):
                assert value in written, (name, flag)
        written |= {flags[flag] for flag in ("--output_dir", "--target_config") if flag in flags}


def test_a_recipe_refuses_another_space(stand_in: Path, tmp_path: Path) -> None:
    environment = {"PATH": f"{stand_in}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "SPACE": "mine"}
    command = ["bash", str(generate.recipe_path(SPACES[0]))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "s1_cola.sh: SPACE must be published or generated, not mine\n")


# -- tiny everything ---------------------------------------------------------------------------------------------------


def tiny_config(model: str, **changes: Any) -> BertConfig:
    """Return the config of a model with `LAYERS` layers of a sixteenth of a published model's."""
    config = CONFIGS[model]
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=config.hidden_size // SCALE,
        num_hidden_layers=LAYERS,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size // SCALE,
        max_position_embeddings=384,
        pad_token_id=VOCABULARY.index("[PAD]"),
        **changes,
    )


def save(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=384).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pre-trained students by the name of the published model, and teachers by their head. Read-only."""
    root = tmp_path_factory.mktemp("tiny_published")
    found = {model: save(BertModel(tiny_config(model)), root / model) for model in CONFIGS}
    for labels in (2, 3):
        teacher = BertForSequenceClassification(tiny_config("s2_bert_medium", num_labels=labels))
        found[f"{labels} labels"] = save(teacher, root / str(labels))
    found["answers"] = save(BertForQuestionAnswering(tiny_config("s2_bert_medium")), root / "answers")
    return found


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --dataset_dir with every published task, 16 rows to train on, 8 to validate on. Read-only."""
    directory, generator = tmp_path_factory.mktemp("tiny_data"), random.Random(0)

    def row_of(task: str, row: int) -> dict[str, Any]:
        texts = {column: " ".join(generator.choices(FILLERS, k=6)) for column in KNOWN[task].text_columns}
        if not task.startswith("squad"):
            return {**texts, "label": row % len(KNOWN[task].label_names)}
        answer = texts["context"].split()[2]
        found = {"text": [answer], "answer_start": [texts["context"].index(answer)]}
        none = task == "squad_v2" and row % 2 == 0
        return {**texts, "id": str(row), "answers": {"text": [], "answer_start": []} if none else found}

    for task in TASKS:
        (directory / task).mkdir(parents=True)
        validation = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
        for split in ("train", *validation):
            lines = [json.dumps(row_of(task, row)) for row in range(16 if split == "train" else 8)]
            (directory / task / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return directory


def scaled_config(published: PublishedSpace, path: Path) -> Path:
    """Write a recipe's config for the tiny model, with a search of four subnets."""
    raw = json.loads(json.dumps(read_config(generate.config_path(published)).raw))
    for entry in raw["compression"]["sparse_structure_by_scopes"]:
        if "sparse_factors" in entry:
            entry["sparse_factors"] = [size // SCALE for size in entry["sparse_factors"]]
    elasticity = raw["bootstrapNAS"]["training"]["elasticity"]
    width = elasticity["width"]
    kept = [
        (nodes, [math.ceil(channels / SCALE) for channels in widths])
        for nodes, widths in zip(width["overwrite_groups"], width["overwrite_groups_widths"], strict=True)
        if layer_of(nodes[0]) < LAYERS
    ]
    width["overwrite_groups"], width["overwrite_groups_widths"] = map(list, zip(*kept, strict=True))
    width["add_dynamic_inputs"] = [node for node in width["add_dynamic_inputs"] if layer_of(node) < LAYERS]
    for block in elasticity.get("depth", {}).get("skipped_blocks", []):
        shift = layer_of(block[1]) - (LAYERS - 1)
        block[:] = [node.replace(f"[{layer_of(node)}]", f"[{layer_of(node) - shift}]") for node in block]
    raw["bootstrapNAS"]["search"] |= {"num_evals": 4, "population": 2}
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def layer_of(node: str) -> int:
    match = re.search(r"BertLayer\[(\d+)\]", node)
    assert match is not None
    return int(match[1])


def variables_of(
    published: PublishedSpace, tiny: dict[str, Path], tiny_data: Path, directory: Path
) -> dict[str, str | Path]:
    """Return the variables that make a recipe run on the tiny model and data, in `directory`."""
    return {
        "MODEL": tiny[published.model],
        "TEACHER": tiny["answers" if published.is_squad else f"{len(KNOWN[published.task].label_names)} labels"],
        "DATASET_DIR": tiny_data,
        "OUTPUT_DIR": directory,
        "NNCF_CONFIG": scaled_config(published, directory / "config.json"),
        "TRAINING": "--save_strategy no",
        **EXTRAS.get(published.name, {}),
    }


@BY_NAME
def test_a_recipe_runs(
    published: PublishedSpace, stand_in: Path, tiny: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    """Export and evaluation are the same commands in all recipes: they run where the head or the splits are others."""
    metrics = []
    variables = variables_of(published, tiny, tiny_data, tmp_path)
    for arguments in calls_of(generate.recipe_path(published), stand_in, tmp_path, **variables):
        if arguments[0] in ("export", "evaluate") and published.name not in EXPORTED:
            continue
        outcome = call(arguments)
        assert outcome.status == 0, outcome.err
        warnings = [line for line in outcome.err.splitlines() if line.startswith("warning")]
        assert all(any(word in line for word in EXPECTED) for line in warnings), warnings
        if arguments[0] == "evaluate":
            metrics.append(json.loads(outcome.out))
    # What the config says came about: the space was searched, and the subnet is one of it.
    blueprint = Blueprint(tiny_config(published.model), published.architecture)
    generated = tmp_path / "space.json"
    space = build_space(read_config(generated if generated.exists() else tmp_path / "config.json"), blueprint)
    best = read_json(tmp_path / "search" / "pareto.json")["best"]
    sizes = subnet_from_json(read_json(tmp_path / "subnet" / "subnet.json")["sizes"])
    assert sizes == blueprint.complete(space.subnet(best["genome"]))
    if published.name in EXPORTED:
        assert len(metrics) == (2 if published.task == "mnli" else 1)
        assert all(KNOWN[published.task].metrics[0] in found for found in metrics)


@pytest.mark.parametrize(
    ("files", "evaluated"),
    [
        (["mnli/validation_matched.jsonl"], False),
        (["mnli/validation_mismatched.jsonl.gz"], True),
        (["validation_mismatched.csv"], True),
        (None, True),
    ],
    ids=["none", "below", "beside", "hub"],
)
def test_mismatched_rows_that_are_not_there_are_left_out(
    stand_in: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], files: list[str] | None, evaluated: bool
) -> None:
    published = next(space for space in SPACES if space.task == "mnli")
    data = tmp_path / "my data"
    for name in files or ():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    variables = {} if files is None else {"DATASET_DIR": data}
    calls = calls_of(generate.recipe_path(published), stand_in, tmp_path, **variables)
    splits = [call[-1] for call in calls if call[0] == "evaluate"]
    assert splits == ["validation", *(["validation_mismatched"] if evaluated else [])]
    warning = f"warning: not evaluated on the mismatched rows: {data} holds no validation_mismatched.jsonl\n"
    assert capfd.readouterr().err == ("" if evaluated else warning)


@pytest.mark.timeout(600)  # three times an interpreter with all libraries
def test_a_recipe_runs_as_a_program(tiny: dict[str, Path], tiny_data: Path, tmp_path: Path) -> None:
    """What trains, exports and prints are processes of their own; the other stages do not start the libraries again."""
    published = next(space for space in SPACES if space.name == "s2_bert_medium/sst2")
    started = []

    def eftnas(arguments: list[str], given: str) -> int:
        if arguments[0] not in ("train", "export", "evaluate"):
            return eftnas_main(arguments)
        started.append(arguments[0])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "eftnas", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        print(done.stdout, end="")
        print(done.stderr, end="", file=sys.stderr)
        return done.returncode

    variables = variables_of(published, tiny, tiny_data, tmp_path)
    outcome = run_here(generate.recipe_path(published), [], {"eftnas": eftnas}, **variables)
    assert outcome.returncode == 0, outcome.stderr
    assert started == ["train", "export", "evaluate"]
    assert json.loads(outcome.stdout.splitlines()[-1]).keys() >= {"accuracy"}
    assert (tmp_path / "ir" / "openvino_model.xml").is_file()
