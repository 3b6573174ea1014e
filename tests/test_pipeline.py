"""EFTNAS as a user meets it: one run of every command on a tiny BERT, and what is on disk afterwards."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from command_line import LENGTH, eftnas, metrics_of, succeed, write_config
from conftest import FILLERS, SIGNALS, TaskFiles
from transformers import AutoModelForSequenceClassification

from bootstrapnas.artefacts import digest, read_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.cli import main as bootstrapnas
from bootstrapnas.costs import count_costs, count_macs
from bootstrapnas.dims import Subnet, subnet_from_json
from bootstrapnas.errors import UserError
from bootstrapnas.export import load_ir
from bootstrapnas.extraction import load_model
from bootstrapnas.importance import load_importance
from bootstrapnas.nncf_config import build_space, read_config
from bootstrapnas.pipeline.arguments import StageTrainingArguments
from bootstrapnas.pipeline.calibration import calibration_batches
from bootstrapnas.pipeline.cli import to_arguments
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.export_data import file_texts
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer
from bootstrapnas.pipeline.search.command import SearchArguments, settings_of
from bootstrapnas.pipeline.supernet_training import schedule_of
from bootstrapnas.search import Objective, pareto_front
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec, build_task_spec
from bootstrapnas.training import StageTrainer
from eftnas.importance import ImportanceArguments, one_shot_scores

SUBNETS = {
    "best": {"subnet": "best"},
    "max": {"subnet": "max"},
    "min": {"subnet": "min"},
    "heuristic": {"subnet": "heuristic"},
    "first": {"subnet": "0"},
    "half": {"max_macs_ratio": 0.5},
    "by_hand": {},  # its file is written by the fixture
}
BY_HAND = {"head": [2, 4], "ffn": [48, 128], "mha_block": [1, 0]}
ROUNDED = 5.1e-7  # evaluate prints six decimals


class Run(NamedTuple):
    """Where the run below lies, and what its commands said."""

    root: Path
    said: dict[str, str]


def write_hard_task(directory: Path) -> TaskFiles:
    """Write a task that subnets solve differently well: the first of two signals decides."""
    generator = random.Random(0)

    def write(name: str, rows: int) -> Path:
        lines = []
        for _ in range(rows):
            first, second = generator.sample(list(SIGNALS), 2)
            fillers = [generator.choices(FILLERS, k=generator.randint(0, 3)) for _ in range(3)]
            text = " ".join([*fillers[0], first, *fillers[1], second, *fillers[2]])
            lines.append(json.dumps({"text": text, "label": SIGNALS[first]}))
        path = directory / f"{name}.jsonl"
        path.write_text("\n".join(lines))
        return path

    return TaskFiles(write("train", 192), write("validation", 96), write("test", 48))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path) -> Run:
    """All stages. The task's flags are given to the first one alone. Read-only."""
    root = tmp_path_factory.mktemp("run")
    task = write_hard_task(root)
    said = {}
    config = write_config(root / "config.json", lambda config: config.update(log_dir="elsewhere"))
    said["finetune"] = succeed(
        "finetune",
        model_name_or_path=tiny_bert_dir,
        train_file=task.train,
        validation_file=task.validation,
        test_file=task.test,
        max_seq_length=LENGTH,
        output_dir=root / "teacher",
        num_train_epochs=16,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=40,  # without, rounding decides whether the second signal is told from the first
    ).err
    start = {"model_name_or_path": root / "teacher", "kd_teacher_model": root / "teacher"}
    said["importance"] = succeed(
        "importance",
        **start,
        nncf_config=config,
        output_dir=root / "importance",
        per_device_train_batch_size=8,
        learning_rate=1e-3,
    ).err
    said["search-space"] = succeed(
        "search-space",
        source_config=config,
        model_name_or_path=root / "teacher",
        importance_weight_dir=root / "importance",
        target_config=root / "space.json",
        num_subnets=4,
        lowest_macs_ratio=0.3,
    ).err
    said["train"] = succeed(
        "train",
        **start,
        nncf_config=root / "space.json",
        importance_weight_dir=root / "importance",
        output_dir=root / "supernet",
        num_train_epochs=1,
        learning_rate=1e-4,
        per_device_train_batch_size=16,
    ).err
    said["search"] = succeed(
        "search", supernet_dir=root / "supernet", output_dir=root / "search", precision="float32"
    ).err
    (root / "by_hand.json").write_text(json.dumps(BY_HAND))
    for name, choice in SUBNETS.items():
        said[f"extract {name}"] = succeed(
            "extract",
            supernet_dir=root / "supernet",
            search_dir=root / "search",
            output_dir=root / "subnets" / name,
            **(choice or {"subnet": root / "by_hand.json"}),
        ).err
    said["export"] = succeed("export", model_dir=root / "subnets" / "half", output_dir=root / "ir").err
    return Run(root, said)


def blueprint_of(directory: Path) -> Blueprint:
    return Blueprint.of(load_model(str(directory), AutoModelForSequenceClassification))


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def evaluations(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


# -- what there is -----------------------------------------------------------------------------------------------------

MODEL = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "task.json", "stage.json"}


@pytest.mark.parametrize(
    ("directory", "files"),
    [
        ("teacher", MODEL | {"eval_results.json"}),
        ("importance", {"importance.safetensors", "structured_sparsity.csv", "task.json", "stage.json"}),
        ("supernet", MODEL | {"eval_results.json", "nncf_config.json", "sampled.json"}),
        (
            "search",
            {
                "evaluations.jsonl",
                "pareto.json",
                "search_progression.csv",
                "search_progression.png",
                "task.json",
                "stage.json",
            },
        ),
        ("subnets/half", MODEL | {"subnet.json", "modeling_subnet.py"}),
        ("ir", {"openvino_model.xml", "openvino_model.bin", "tokenizer.json", "task.json", "stage.json"}),
    ],
)
def test_every_stage_leaves_its_files_and_nothing_half_done(run: Run, directory: str, files: set[str]) -> None:
    found = {path.name for path in (run.root / directory).iterdir()}
    assert files <= found
    assert not [name for name in found if name.startswith((".", "checkpoint-"))]
    assert read_json(run.root / directory / "stage.json")["status"] == "complete"


def test_every_input_is_traced_by_its_content(run: Run) -> None:
    model, supernet = digest(run.root / "teacher"), digest(run.root / "supernet")
    for directory, expected in {
        "importance": {"model": model, "teacher": model, "nncf_config": digest(run.root / "config.json")},
        "supernet": {
            "model": model,
            "teacher": model,
            "importance": digest(run.root / "importance" / "importance.safetensors"),
            "nncf_config": digest(run.root / "space.json"),
        },
        "search": {"supernet": supernet},
        "subnets/half": {"supernet": supernet, "search": digest(run.root / "search")},
        "ir": {"model": digest(run.root / "subnets" / "half")},
    }.items():
        inputs = read_json(run.root / directory / "stage.json")["inputs"]
        found = {role: entry["digest"] for role, entry in inputs.items()}
        data = {role: found.pop(role) for role in list(found) if role.endswith("_data")}
        assert found == expected, directory
        if directory not in ("supernet", "search", "importance"):
            assert set(data) <= {"train_data", "validation_data", "test_data"}
        else:
            assert {"train_data", "validation_data"} <= set(data)


def test_task_labels_and_metric_are_inherited_from_the_first_stage(run: Run) -> None:
    task = TaskSpec.load(run.root / "teacher" / "task.json")
    assert (task.label_names, task.metric, task.max_seq_length) == (("go", "stop", "wait"), "accuracy", LENGTH)
    for directory in ("importance", "supernet", "search", "subnets/best", "ir"):
        assert TaskSpec.load(run.root / directory / "task.json") == task, directory
    for directory in ("teacher", "supernet", "subnets/best", "ir"):
        assert read_json(run.root / directory / "config.json")["id2label"] == {"0": "go", "1": "stop", "2": "wait"}


def test_what_a_config_says_in_vain_is_told(run: Run) -> None:
    warning = "log_dir has no effect: every stage writes to its output_dir"
    for command in ("importance", "search-space", "train"):
        assert warning in run.said[command], command


# -- importance and space ----------------------------------------------------------------------------------------------


def test_scores_cover_every_block_and_differ(run: Run) -> None:
    scores, metadata = load_importance(
        run.root / "importance" / "importance.safetensors", blueprint_of(run.root / "teacher")
    )
    assert metadata["criterion"] == "movement"
    assert scores["bert.encoder.layer.1.attention.self.query.weight"].shape == (4, 4)
    assert scores["bert.encoder.layer.1.intermediate.dense.weight"].shape == (128, 1)
    assert scores["bert.encoder.layer.1.output.dense.weight"].shape == (1, 128)
    assert not any("pooler" in name or "classifier" in name for name in scores)
    weights = [tensor for tensor in scores.values() if tensor.dim() == 2]  # attention does not feel the bias of keys
    assert all(tensor.unique().numel() > 1 for tensor in weights)
    rows = read_csv(run.root / "importance" / "structured_sparsity.csv")
    assert len(rows) > 12  # a row per scored layer: six of them in each of two layers, and a header


def test_generated_space_meets_its_lowest_target(run: Run) -> None:
    blueprint = blueprint_of(run.root / "teacher")
    space = build_space(read_config(run.root / "space.json"), blueprint)
    full = count_macs(blueprint, length=LENGTH)
    assert count_macs(blueprint, space.subnet(space.max_genome), length=LENGTH) == full
    reached = [float(share) for share in re.findall(r"MACs \(([\d.]+)%\)", run.said["search-space"])]
    assert len(reached) == 4
    assert reached[0] == pytest.approx(30, abs=3)
    assert reached[-1] == 100
    assert reached == sorted(reached)
    # The smallest of the space may combine the smallest widths of several targets, so it may only be below.
    assert count_macs(blueprint, space.subnet(space.min_genome), length=LENGTH) <= 0.33 * full
    assert space.num_subnets > 16


# -- supernet ----------------------------------------------------------------------------------------------------------


def test_supernet_loads_as_an_ordinary_model_of_full_size(run: Run) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(run.root / "supernet")
    teacher = AutoModelForSequenceClassification.from_pretrained(run.root / "teacher")
    shapes = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in teacher.state_dict().items()}
    results = read_json(run.root / "supernet" / "eval_results.json")
    assert metrics_of(model_dir=run.root / "supernet")["accuracy"] == pytest.approx(
        results["accuracy_max"], abs=ROUNDED
    )


# -- search ------------------------------------------------------------------------------------------------------------


def test_front_is_what_nothing_in_the_log_dominates(run: Run) -> None:
    found = read_json(run.root / "search" / "pareto.json")
    logged = evaluations(run.root / "search" / "evaluations.jsonl")
    assert len(logged) == read_json(run.root / "search" / "stage.json")["result"]["evaluations"] > 5
    assert len({entry["values"]["accuracy"] for entry in logged}) > 1  # else this test would say little
    objectives = [Objective(entry["name"], entry["maximise"]) for entry in found["objectives"]]
    assert objectives == [Objective("macs"), Objective("accuracy", maximise=True)]
    wanted = [logged[index] for index in pareto_front([entry["values"] for entry in logged], objectives)]
    by_genome = {tuple(entry["genome"]): entry["values"] for entry in wanted}
    assert {tuple(entry["genome"]): entry["values"] for entry in found["front"]} == by_genome
    assert [entry["index"] for entry in found["front"]] == list(range(len(found["front"])))
    costs = [entry["values"]["macs"] for entry in found["front"]]
    assert costs == sorted(costs)
    # The best one: the cheapest within a point of the largest subnet, by NNCF's rule.
    reference = next(entry["values"]["accuracy"] for entry in logged if not any(entry["genome"]))
    qualified = [entry for entry in logged if entry["values"]["accuracy"] >= reference - 0.01]
    assert found["best"]["values"]["macs"] == min(entry["values"]["macs"] for entry in qualified)


def test_the_log_counts_what_the_blueprint_counts(run: Run) -> None:
    blueprint = blueprint_of(run.root / "supernet")
    space = build_space(read_config(run.root / "supernet" / "nncf_config.json"), blueprint)
    for entry in evaluations(run.root / "search" / "evaluations.jsonl"):
        costs = count_costs(blueprint, space.subnet(entry["genome"]), length=LENGTH)
        assert (entry["values"]["macs"], entry["values"]["params"]) == (costs.macs, costs.params)


def test_progression_reads_as_nncfs(run: Run) -> None:
    config = read_json(run.root / "space.json")["bootstrapNAS"]["training"]["elasticity"]
    choices = config["width"]["overwrite_groups_widths"]
    rows = read_csv(run.root / "search" / "search_progression.csv")
    assert len(rows) == 20
    logged = {
        (entry["values"]["macs"], round(entry["values"]["accuracy"], 9))
        for entry in evaluations(run.root / "search" / "evaluations.jsonl")
    }
    for text, macs_name, macs, metric_name, negated in rows:
        assert (macs_name, metric_name) == ("MACs", "top1_acc")
        pairs = re.findall(r"<ElasticityDim\.\w+: '(\w+)'>, (\{.*?\}|\[.*?\])", text)
        subnet = {dim: json.loads(re.sub(r"(\d+):", r'"\1":', value)) for dim, value in pairs}
        assert [int(group) for group in subnet["width"]] == list(range(len(choices)))
        assert all(width in choices[int(group)] for group, width in subnet["width"].items())
        assert set(subnet.get("depth", [])) <= set(range(len(config["depth"]["skipped_blocks"])))
        assert (round(float(macs) * 1e6), round(-float(negated) / 100, 9)) in logged


# -- extraction and export ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best", "first", "half"])
def test_extracted_model_scores_what_the_search_recorded(run: Run, name: str) -> None:
    recorded = read_json(run.root / "subnets" / name / "subnet.json")["search_values"]
    assert metrics_of(model_dir=run.root / "subnets" / name)["accuracy"] == pytest.approx(
        recorded["accuracy"], abs=ROUNDED
    )


@pytest.mark.parametrize("name", SUBNETS)
def test_extracted_model_has_the_parameters_that_were_counted(run: Run, name: str) -> None:
    directory = run.root / "subnets" / name
    model = load_model(str(directory), AutoModelForSequenceClassification)
    noted = read_json(directory / "subnet.json")
    assert sum(parameter.numel() for parameter in model.parameters()) == noted["costs"]["params"]
    assert noted["costs"]["macs"] <= noted["full_costs"]["macs"]


def test_choices_of_subnets_mean_what_they_say(run: Run) -> None:
    def noted(name: str) -> dict[str, Any]:
        return dict(read_json(run.root / "subnets" / name / "subnet.json"))

    def subnet(name: str) -> Subnet:
        return subnet_from_json(noted(name)["sizes"])

    found = read_json(run.root / "search" / "pareto.json")
    blueprint = blueprint_of(run.root / "supernet")
    space = build_space(read_config(run.root / "supernet" / "nncf_config.json"), blueprint)
    assert subnet("max") == blueprint.complete({})
    assert subnet("min") == blueprint.complete(space.subnet(space.min_genome))
    assert subnet("heuristic") == blueprint.complete(space.subnet(space.heuristic_genome))
    assert subnet("best") == subnet_from_json(found["best"]["subnet"])
    assert subnet("first") == subnet_from_json(found["front"][0]["subnet"])
    assert subnet("by_hand") == blueprint.complete(subnet_from_json(BY_HAND))
    allowed = [
        entry for entry in found["front"] if entry["values"]["macs"] <= 0.5 * noted("half")["full_costs"]["macs"]
    ]
    best = max(allowed, key=lambda entry: entry["values"]["accuracy"])
    assert noted("half")["search_values"]["accuracy"] == best["values"]["accuracy"]
    assert noted("half")["costs"]["macs"] <= 0.5 * noted("half")["full_costs"]["macs"]


@pytest.mark.parametrize("name", ["min", "by_hand"])
def test_extracted_model_loads_without_this_project(run: Run, name: str) -> None:
    directory = run.root / "subnets" / name
    remote = AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=True).eval()
    own = load_model(str(directory), AutoModelForSequenceClassification).eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        assert torch.equal(remote(ids).logits, own(ids).logits)


def test_largest_subnet_is_an_ordinary_checkpoint(run: Run) -> None:
    assert not (run.root / "subnets" / "max" / "modeling_subnet.py").exists()
    model = AutoModelForSequenceClassification.from_pretrained(run.root / "subnets" / "max")
    supernet = AutoModelForSequenceClassification.from_pretrained(run.root / "supernet")
    expected = supernet.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_ir_scores_and_predicts_what_torch_does(run: Run, tmp_path: Path) -> None:
    torch_file, ir_file = tmp_path / "torch.jsonl", tmp_path / "ir.jsonl"
    for split in ("validation", "test"):
        by_torch = metrics_of(model_dir=run.root / "subnets" / "half", split=split, predict=torch_file)
        assert metrics_of(ir_dir=run.root / "ir", split=split, predict=ir_file) == by_torch
        assert torch_file.read_text() == ir_file.read_text()
    rows = [json.loads(line) for line in ir_file.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(48))
    assert {row["prediction"] for row in rows} <= {"go", "stop", "wait"}


def test_fine_tuned_subnet_keeps_its_shapes_and_loads(run: Run, tmp_path: Path) -> None:
    source = run.root / "subnets" / "half"
    tuned = tmp_path / "tuned"
    succeed(
        "finetune",
        model_name_or_path=source,
        kd_teacher_model=run.root / "teacher",
        output_dir=tuned,
        num_train_epochs=2,
        learning_rate=1e-3,
        per_device_train_batch_size=16,
        eval_strategy="epoch",
    )
    before = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tuned, trust_remote_code=True).state_dict()
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    results = read_json(tuned / "eval_results.json")
    assert metrics_of(model_dir=tuned)["accuracy"] == pytest.approx(results["accuracy"], abs=ROUNDED)
    noted = read_json(tuned / "subnet.json")
    assert {**noted, "finetuned": None} == {**read_json(source / "subnet.json"), "finetuned": None}
    assert Path(noted["finetuned"]["model"]["path"]) == source
    card = (tuned / "README.md").read_text()
    assert f"It was fine-tuned on the task, distilled from `{run.root / 'teacher'}`." in card
    assert "nothing was trained" not in card
    assert f"{results['accuracy']:.2%}".rstrip("%") in card
    succeed("export", model_dir=tuned, output_dir=tmp_path / "ir")
    assert metrics_of(ir_dir=tmp_path / "ir") == metrics_of(model_dir=tuned)


def test_export_quantises_and_records_the_metric_beside_that_of_torch(run: Run, tmp_path: Path) -> None:
    half = run.root / "subnets" / "half"
    flags = {"model_dir": half, "quant_mode": "int8", "calibration_samples": 20, "output_dir": tmp_path / "ir"}
    assert bootstrapnas(["export", *to_arguments(flags)]) == 0
    found = read_json(tmp_path / "ir" / "export.json")
    assert (found["quant_mode"], found["quantisation"]["calibration_rows"]) == ("int8", 20)
    measured = found["metric"]
    assert (measured["name"], measured["split"], measured["rows"]) == ("accuracy", "validation", 96)
    assert measured["torch"] == pytest.approx(metrics_of(model_dir=half)["accuracy"], abs=ROUNDED)
    assert measured["ir"] == pytest.approx(metrics_of(ir_dir=tmp_path / "ir")["accuracy"], abs=ROUNDED)
    assert read_json(run.root / "ir" / "export.json")["metric"]["ir"] == pytest.approx(measured["torch"])


def test_a_model_without_a_task_is_exported_on_texts(tiny_bert_dir: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the red lamp turns.\n\nsome quiet old dog stays near the green bridge again.\n")
    flags = {"model_dir": tiny_bert_dir, "weight_format": "int8", "calibration_file": texts}
    said = succeed("export", **flags, output_dir=tmp_path / "ir").err
    assert f"no metric is measured: {tiny_bert_dir} has no task.json; --task_name names a task" in said
    found = read_json(tmp_path / "ir" / "export.json")
    assert (found["weight_format"], found["metric"]) == ("int8", None)
    assert not (tmp_path / "ir" / "task.json").exists()
    assert load_ir(tmp_path / "ir").outputs == ("logits",)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
def test_blank_texts_are_left_out(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(texts: list[str]) -> str:
        path = tmp_path / f"texts{suffix}"
        rows = [{"text": text} for text in texts]
        kinds = {
            ".txt": "\n".join(texts),
            ".jsonl": "\n".join(map(json.dumps, rows)),
            ".json": json.dumps(rows),
            ".csv": "text\n" + "\n".join(f'"{text}"' for text in texts),
        }
        path.write_text(kinds[suffix])
        return str(path)

    path = write(["the red lamp", "", "  \t", "some dog"])
    assert file_texts(path) == ["the red lamp", "some dog"]
    told = f"2 of the 4 texts of {path} are blank, and left out"
    assert (told in " ".join(capsys.readouterr().err.split())) == (suffix != ".txt")  # whose lines may part texts
    with pytest.raises(UserError, match=r"texts\.\w+ holds no text$"):
        file_texts(write([" ", ""]))


@pytest.mark.parametrize("stage", ["finetune", "train"])
def test_the_best_epoch_is_what_is_kept(run: Run, tmp_path: Path, stage: str) -> None:
    """A learning rate that ruins the model: the best epoch is the first, and what is saved is what it measured."""
    flags = {"model_name_or_path": run.root / "teacher", "per_device_train_batch_size": 48, "learning_rate": 3e-3}
    flags |= {"eval_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 4, "seed": 1}
    metric, name = "macro_f1", "macro_f1"
    if stage == "train":
        flags |= {"nncf_config": run.root / "space.json", "importance_weight_dir": run.root / "importance"}
        metric, name = None, "accuracy_min"
    trained = {}
    evaluate = StageTrainer.evaluate

    def noted(self: StageTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = evaluate(self, *args, **kwargs)
        trained[self.state.global_step] = metrics[f"eval_{name}"]
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "evaluate", noted)
        succeed(stage, **flags, metric_for_best_model=metric, output_dir=tmp_path / "best")
    assert len(trained) == 4
    assert len(set(trained.values())) > 1
    assert read_json(tmp_path / "best" / "eval_results.json")[name] == pytest.approx(max(trained.values()), abs=ROUNDED)


# -- other ways through it ---------------------------------------------------------------------------------------------


def tiny_roberta(directory: Path, texts: list[str]) -> Path:
    """Write a random RoBERTa of the tiny BERT's size with a byte-level tokenizer of the texts' words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    trained = ByteLevelBPETokenizer(lowercase=True)
    trained.train_from_iterator(
        texts, 420, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = RobertaTokenizerFast(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=64
    )
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=66,
        type_vocab_size=1,
        num_labels=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        RobertaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_modernbert(directory: Path, texts: list[str]) -> Path:
    """Write a random ModernBERT of the tiny BERT's size, with global and local attention and a byte-level tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import ModernBertConfig, ModernBertForSequenceClassification, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer(lowercase=True)
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    trained.train_from_iterator(texts, 420, special_tokens=specials, show_progress=False)
    ids = {token: trained.token_to_id(token) for token in specials}
    trained._tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
        **{f"{token.strip('[]').lower()}_token": token for token in specials},
    )
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        local_attention=8,
        num_labels=3,
        pad_token_id=ids["[PAD]"],
        **{f"{name}_token_id": ids["[CLS]"] for name in ("bos", "cls")},
        **{f"{name}_token_id": ids["[SEP]"] for name in ("eos", "sep")},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ModernBertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("build", "class_name"), [(tiny_roberta, "Roberta"), (tiny_modernbert, "ModernBert")], ids=["roberta", "modernbert"]
)
def test_other_families_go_through_the_same_commands(
    tmp_path: Path, tiny_task_files: TaskFiles, build: Callable[[Path, list[str]], Path], class_name: str
) -> None:
    texts = [json.loads(line)["text"] for line in tiny_task_files.train.read_text().splitlines()]
    model = build(tmp_path / "model", texts)
    config = write_config(tmp_path / "config.json")
    brief = {"per_device_train_batch_size": 16, "learning_rate": 1e-3}
    teacher, space, supernet = tmp_path / "teacher", tmp_path / "space.json", tmp_path / "supernet"
    files = {"train_file": tiny_task_files.train, "validation_file": tiny_task_files.validation}
    succeed("finetune", model_name_or_path=model, **files, output_dir=teacher, num_train_epochs=4, **brief)
    start = {"model_name_or_path": teacher, "kd_teacher_model": teacher}
    succeed("importance", **start, nncf_config=config, output_dir=tmp_path / "importance", **brief)
    ranked = {"importance_weight_dir": tmp_path / "importance"}
    succeed("search-space", source_config=config, model_name_or_path=teacher, target_config=space, **ranked)
    assert f"{class_name}ForSequenceClassification/" in space.read_text()
    succeed(
        "train", **start, **ranked, nncf_config=space, output_dir=supernet, num_train_epochs=1, do_search=True, **brief
    )
    search, half = supernet / "search", tmp_path / "half"
    succeed("extract", supernet_dir=supernet, search_dir=search, max_macs_ratio=0.5, output_dir=half)
    succeed("export", model_dir=half, output_dir=tmp_path / "ir")
    assert metrics_of(ir_dir=tmp_path / "ir") == metrics_of(model_dir=half)
    noted = read_json(half / "subnet.json")
    small = AutoModelForSequenceClassification.from_pretrained(half, trust_remote_code=True)
    assert type(small).__mro__[1].__name__ == f"{class_name}ForSequenceClassification"
    assert sum(parameter.numel() for parameter in small.parameters()) == noted["costs"]["params"]
    assert noted["costs"]["macs"] <= 0.5 * noted["full_costs"]["macs"]


@pytest.mark.parametrize("stage", ["importance", "train", "finetune"])
def test_the_config_and_a_flag_name_what_the_teacher_is_compared_by(run: Run, tmp_path: Path, stage: str) -> None:
    """A few steps each; the loss is another one, so the result is."""
    mode = "self_attention_distillation"
    config = write_config(tmp_path / "config.json", lambda config: config.update(kd_mode=mode))
    flags = {
        "model_name_or_path": run.root / "teacher",
        "kd_teacher_model": run.root / "teacher",
        "num_train_epochs": 6,
    }
    if stage != "finetune":
        flags |= {"nncf_config": config}
    if stage != "importance":
        flags |= {"num_train_epochs": 1}
    chosen = {"finetune": {"kd_mode": mode}}.get(stage, {})
    brief = {"per_device_train_batch_size": 32, "learning_rate": 1e-3}
    said = succeed(stage, **flags, **brief, **chosen, output_dir=tmp_path / "inner").err
    assert "warning: --kd_mode" not in said
    said = succeed(stage, **flags, **brief, kd_mode="original", output_dir=tmp_path / "outer").err
    assert (f"--kd_mode original wins over the config's kd_mode = {mode}" in said) == (stage != "finetune")
    name = "importance.safetensors" if stage == "importance" else "model.safetensors"
    found = {kind: digest(tmp_path / kind / name) for kind in ("inner", "outer")}
    assert found["inner"] != found["outer"]


@pytest.mark.parametrize("criterion", ["taylor", "l1"])
def test_criteria_without_training_take_the_place_of_movement(run: Run, tmp_path: Path, criterion: str) -> None:
    succeed(
        "importance",
        model_name_or_path=run.root / "teacher",
        nncf_config=run.root / "config.json",
        criterion=criterion,
        criterion_batches=2,
        output_dir=tmp_path / "importance",
    )
    path = tmp_path / "importance" / "importance.safetensors"
    scores, metadata = load_importance(path, blueprint_of(run.root / "teacher"))
    assert metadata["criterion"] == criterion
    assert all((tensor >= 0).all() for tensor in scores.values())
    outcome = succeed(
        "search-space",
        source_config=run.root / "config.json",
        model_name_or_path=run.root / "teacher",
        importance_weight_dir=path,
        target_config=tmp_path / "space.json",
        macs_ratios="0.4,1",
    )
    assert "MACs (100.0%)" in outcome.err
    space = build_space(read_config(tmp_path / "space.json"), blueprint_of(run.root / "teacher"))
    assert space.num_subnets > 1


def test_criteria_without_training_compute_on_the_training_device(
    tiny_bert: Any, tiny_bert_dir: Path, tiny_task_files: TaskFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_task_spec(train_file=tiny_task_files.train, validation_file=tiny_task_files.validation)
    rows, training = Rows(spec, load_tokenizer(str(tiny_bert_dir))), StageTrainingArguments(output_dir="unused")
    monkeypatch.setattr(StageTrainingArguments, "device", torch.device("meta"))
    assert all(tensor.is_meta for batch in calibration_batches(rows, 2, training) for tensor in batch.values())
    scores = one_shot_scores(tiny_bert, ImportanceArguments(criterion="l1", criterion_batches=1), training, rows)
    assert all(tensor.is_meta for tensor in scores.values())


def test_regression_is_distilled_and_searched_by_correlation(tmp_path: Path, tiny_bert_dir: Path) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    values = dict(zip(SIGNALS, (0.0, 0.5, 1.25), strict=True))
    generator = np.random.default_rng(0)
    for name, rows in (("train", 60), ("validation", 24)):
        lines = []
        for row in range(rows):
            signal = list(SIGNALS)[row % 3]
            words = [*generator.choice(FILLERS, 4), signal]
            lines.append(json.dumps({"text": " ".join(words), "label": values[signal]}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    model = tmp_path / "model"
    BertForSequenceClassification.from_pretrained(
        tiny_bert_dir, num_labels=1, ignore_mismatched_sizes=True
    ).save_pretrained(model)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(model)
    brief = {"per_device_train_batch_size": 10, "learning_rate": 2e-3}
    teacher, supernet, small = tmp_path / "teacher", tmp_path / "supernet", tmp_path / "small"
    files = {"train_file": tmp_path / "train.jsonl", "validation_file": tmp_path / "validation.jsonl"}
    succeed("finetune", model_name_or_path=model, **files, output_dir=teacher, num_train_epochs=8, **brief)
    spec = TaskSpec.load(teacher / "task.json")
    assert (spec.problem_type, spec.metric, spec.label_names) == ("regression", "pearson", ())
    assert metrics_of(model_dir=teacher)["pearson"] > 0.8
    config = write_config(tmp_path / "config.json")
    said = succeed(
        "train",
        model_name_or_path=teacher,
        kd_teacher_model=teacher,
        nncf_config=config,
        output_dir=supernet,
        num_train_epochs=2,
        **brief,
    ).err
    assert "units keep the order of the checkpoint" in said
    succeed("search", supernet_dir=supernet, output_dir=tmp_path / "search", precision="float32", num_evals=10)
    found = read_json(tmp_path / "search" / "pareto.json")
    assert found["metric"] == "pearson"
    succeed("extract", supernet_dir=supernet, search_dir=tmp_path / "search", subnet="best", output_dir=small)
    rows = tmp_path / "predictions.jsonl"
    assert metrics_of(model_dir=small, predict=rows)["pearson"] == pytest.approx(
        found["best"]["values"]["pearson"], abs=1e-5
    )
    assert all(isinstance(json.loads(line)["prediction"], float) for line in rows.read_text().splitlines())


def test_one_of_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = eftnas("finetune", output_dir=tmp_path / "out")
    assert (outcome.status, outcome.out) == (2, "")
    assert "error: finetune was started as 2 processes (torchrun, accelerate launch), which would" in outcome.err


# -- config against flags ----------------------------------------------------------------------------------------------


def set_stage(config: dict[str, Any], **values: Any) -> None:
    config["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0].update(values)


def schedule_from(
    tmp_path: Path, typed: dict[str, Any], overall: dict[str, Any] | None = None, **stage: Any
) -> tuple[float, int, float]:
    """Return (first learning rate, steps, last learning rate) of a run with these flags, this stage and lr_schedule."""

    def change(config: dict[str, Any]) -> None:
        set_stage(config, **stage)
        if overall is not None:
            config["bootstrapNAS"]["training"]["lr_schedule"] = {"params": overall}

    config = read_config(write_config(tmp_path / "config.json", change))
    training = StageTrainingArguments(output_dir=str(tmp_path / "out"), **typed)
    schedule = schedule_of(config, training, typed, steps_per_epoch=10, parity=False)
    return schedule.lr(0), schedule.total_steps, schedule.lr(schedule.total_steps)


def test_a_flags_default_never_overrides_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule_from(tmp_path, {}, epochs=4, init_lr=0.25) == (0.25, 40, 0.0)
    assert "wins" not in capsys.readouterr().err


def test_a_typed_flag_wins_over_the_config_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = {"learning_rate": 0.5, "num_train_epochs": 2.0}
    assert schedule_from(tmp_path, typed, epochs=4, init_lr=0.25) == (0.5, 20, 0.0)
    where = "bootstrapNAS.training.schedule.list_stage_descriptions[0]"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: --num_train_epochs 2 wins over the config's {where}.epochs = 4",
        f"warning: --learning_rate 0.5 wins over the config's {where}.init_lr = 0.25",
    ]


@pytest.mark.parametrize("params", [{}, {"num_epochs": 2}])
def test_one_rate_over_all_stages_ends_with_the_epochs_that_were_typed(tmp_path: Path, params: dict[str, Any]) -> None:
    overall, typed = {"base_lr": 0.5, **params}, {"num_train_epochs": 2.0}
    assert schedule_from(tmp_path, typed, overall, epochs=4) == (0.5, 20, 0.0)
    assert schedule_from(tmp_path, typed, overall, epochs=1) == (0.5, 20, 0.0)


def test_epochs_that_contradict_one_rate_over_all_stages_are_refused(tmp_path: Path) -> None:
    overall, typed = {"base_lr": 0.5, "num_epochs": 4}, {"num_train_epochs": 6.0}
    with pytest.raises(UserError, match=r"--num_train_epochs 6 contradicts lr_schedule\.params\.num_epochs = 4 of "):
        schedule_from(tmp_path, typed, overall, epochs=4)


def test_a_config_may_leave_it_to_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = {"learning_rate": 0.5, "num_train_epochs": 2.0}
    assert schedule_from(tmp_path, typed, epochs=-1, init_lr=-1) == (0.5, 20, 0.0)
    assert schedule_from(tmp_path, {}, epochs=-1, init_lr=-1)[:2] == (5e-5, 30)  # the flags' defaults
    assert "wins" not in capsys.readouterr().err


def test_a_flag_that_contradicts_several_stages_is_refused(tmp_path: Path) -> None:
    def two(config: dict[str, Any]) -> None:
        stages = config["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"]
        stages[:] = [{"train_dims": ["width"], "epochs": 1}, {"train_dims": ["width", "depth"], "epochs": 2}]

    config = read_config(write_config(tmp_path / "config.json", two))
    training = StageTrainingArguments(output_dir=str(tmp_path / "out"), num_train_epochs=5)
    with pytest.raises(UserError, match=r"--num_train_epochs 5 contradicts the 2 stages of .* 3 epochs together"):
        schedule_of(config, training, {"num_train_epochs": 5}, steps_per_epoch=10, parity=False)


@pytest.mark.parametrize("flags", [{"ref_acc": 150.0}, {}])
def test_a_reference_above_a_hundred_is_one_of_a_perplexity(tmp_path: Path, flags: dict[str, float]) -> None:
    def change(config: dict[str, Any]) -> None:
        config["bootstrapNAS"]["search"]["ref_acc"] = 150

    config = read_config(write_config(tmp_path / "config.json", change))
    arguments = SearchArguments("supernet", **flags)
    assert settings_of(arguments, config, flags, maximise=False).ref_acc == 150
    with pytest.raises(UserError, match="ref_acc must be a fraction, or a percentage up to 100, not 150"):
        settings_of(arguments, config, flags, maximise=True)


def test_search_settings_come_from_the_config_unless_typed(run: Run, tmp_path: Path) -> None:
    said = succeed("search", supernet_dir=run.root / "supernet", output_dir=tmp_path / "search", num_evals=10).err
    assert "warning: --num_evals 10 wins over the config's bootstrapNAS.search.num_evals = 20" in said
    rows = (tmp_path / "search" / "search_progression.csv").read_text().splitlines()
    assert len(rows) == 10
    header = json.loads((tmp_path / "search" / "evaluations.jsonl").read_text().splitlines()[0])
    assert (header["settings"]["population"], header["settings"]["num_evals"]) == (5, 10)


@pytest.mark.parametrize(
    ("sandwich", "typed", "before", "passes"),
    [
        (False, {}, [], 1),
        (True, {}, [], 3),
        (False, {"sampling": "sandwich"}, [], 3),
        # Nothing is elastic yet: what comes up three times is computed once. This seed draws neither extreme later.
        (True, {"seed": 1}, [{"train_dims": ["width"], "width_indicator": 1}], 3),
    ],
)
def test_sandwich_rule_of_the_config_decides_the_subnets_of_a_step(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sandwich: bool,
    typed: dict[str, Any],
    before: list[dict[str, Any]],
    passes: int,
) -> None:
    active: list[Subnet] = []
    activate = Supernet.activate

    @contextmanager
    def recorded(self: Supernet, subnet: Subnet) -> Iterator[Any]:
        active.append(dict(subnet))
        with activate(self, subnet) as model:
            yield model

    monkeypatch.setattr(Supernet, "activate", recorded)
    space = json.loads((run.root / "space.json").read_text())
    space["bootstrapNAS"]["training"]["sandwich_rule"] = sandwich
    stages = space["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"]
    stages[:] = [*before, stages[0] | {"epochs": -1}]
    (tmp_path / "space.json").write_text(json.dumps(space))
    said = succeed(
        "train",
        model_name_or_path=run.root / "teacher",
        nncf_config=tmp_path / "space.json",
        output_dir=tmp_path / "supernet",
        num_train_epochs=1,
        per_device_train_batch_size=32,
        **typed,
    ).err
    steps = 6  # an epoch of 192 rows
    assert len(active) == steps * (len(before) + passes) + 2  # the largest and the smallest are measured at the end
    alone = [active.pop(0) for _ in range(steps * len(before))]
    assert all(subnet.items() <= active[-2].items() for subnet in alone)
    if passes == 3:
        largest, drawn, smallest = ([active[3 * step + place] for step in range(steps)] for place in range(3))
        assert all(subnet == active[-2] for subnet in largest)
        assert all(subnet == active[-1] for subnet in smallest)
        assert len({tuple(subnet.items()) for subnet in drawn}) > 1
    assert ("--sampling sandwich wins" in said) == ("sampling" in typed)


def test_labels_of_a_checkpoint_come_in_the_order_of_the_task(run: Run, tmp_path: Path) -> None:
    spec = TaskSpec.load(run.root / "teacher" / "task.json")
    model = load_for_task(str(run.root / "teacher"), spec)
    shuffled = ["wait", "go", "stop"]
    order = [spec.label_names.index(name) for name in shuffled]
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        expected = model(ids).logits
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    model.config.id2label = dict(enumerate(shuffled))
    model.config.label2id = {name: index for index, name in enumerate(shuffled)}
    model.save_pretrained(tmp_path)
    again = load_for_task(str(tmp_path), spec)
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, expected)
    assert again.config.id2label == {0: "go", 1: "stop", 2: "wait"}
