"""Mistakes that users make: one line that says what is wrong, where, and what would be right; nothing is lost."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import LENGTH, call, eftnas, metrics_of, refused, succeed, write_config
from conftest import TaskFiles

from bootstrapnas.artefacts import digest, write_json
from bootstrapnas.errors import listed
from bootstrapnas.families import FAMILIES
from bootstrapnas.pipeline.arguments import StageTrainingArguments
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer
from bootstrapnas.pipeline.teacher import with_teacher_outputs
from bootstrapnas.tasks import TaskSpec, build_task_spec

ROOT = Path(__file__).parents[1]
FILES = "--train_file train.jsonl --validation_file validation.jsonl"
FINETUNE = f"finetune --model_name_or_path pretrained {FILES} --output_dir new"
IMPORTANCE = "importance --model_name_or_path teacher --nncf_config config.json --output_dir new"
SPACE = "search-space --source_config config.json --model_name_or_path teacher --target_config new"
TRAIN = "train --model_name_or_path teacher --nncf_config space.json --output_dir new"
SEARCH = "search --supernet_dir supernet --output_dir new"
EXPORT = "export --model_dir teacher --output_dir new"
EXTRACT = "extract --supernet_dir supernet --output_dir new"
ELASTICITY = "bootstrapNAS.training.elasticity"
OFFLINE = "there is no such directory, and as a hub id: We couldn't connect to 'https://huggingface.co' …"
DAMAGED = "its weights are damaged (…); copy or make them again"


# -- a world to make mistakes in ---------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without_stage(source: str, name: str) -> Path:
    """Copy an artefact as if another program had made it."""
    shutil.copytree(source, name)
    Path(name, "stage.json").unlink()
    return Path(name)


def unfinished(source: str, name: str) -> Path:
    """Copy an artefact as if its stage had been killed."""
    shutil.copytree(source, name)
    header = json.loads(Path(name, "stage.json").read_text())
    Path(name, "stage.json").write_text(json.dumps({**header, "status": "running", "files": {}}))
    return Path(name)


def width_config(name: str, widths: list[int], node: str = "self/NNCFLinear[query]") -> None:
    """Write a config whose one group is the heads of the first layer."""
    layer = "BertForSequenceClassification/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[0]"
    attention = f"{layer}/BertAttention[attention]/BertSelfAttention[self]"

    def change(config: dict[str, Any]) -> None:
        config["bootstrapNAS"]["training"]["elasticity"]["width"] = {
            "overwrite_groups": [[f"{attention}/NNCFLinear[{node}]/linear_0"]],
            "overwrite_groups_widths": [widths],
        }

    write_config(Path(name), change)


def write_configs() -> None:
    Path("other_task.jsonl").write_text('{"sentence": "a dog", "label": "go"}\n')
    write_config(Path("config.json"))
    width_config("wide.json", [256, 64], "query")
    width_config("ragged.json", [64, 40], "query")
    width_config("node.json", [64, 32], "querry")

    def misspelt(config: dict[str, Any]) -> None:
        config["bootstrapNAS"]["training"]["elasticity"]["width"] = {"overwrite_group": []}

    def single(config: dict[str, Any]) -> None:
        config["bootstrapNAS"]["training"]["elasticity"] |= {
            "width": {"max_num_widths": 1},
            "depth": {"skipped_blocks": []},
        }

    write_config(Path("single.json"), single)

    def without(*keys: str) -> Any:
        return lambda config: [config.pop(key) for key in keys]

    write_config(Path("misspelt.json"), misspelt)
    for name, wrong in (("nsga3.json", {"algorithm": "NSGA3"}), ("f2.json", {"eval_metric_name": "eval_f2"})):
        write_config(Path(name), lambda config, wrong=wrong: config["bootstrapNAS"]["search"].update(wrong))
    write_config(Path("unscored.json"), without("compression"))
    write_config(Path("inelastic.json"), without("bootstrapNAS"))
    write_config(Path("lengthless.json"), without("input_info"))
    write_config(Path("early.json"), lambda config: config["compression"]["params"].update(warmup_start_epoch=0))
    Path("broken.json").write_text('{"input_info": [}')


def write_models(teacher: Path) -> None:
    from transformers import BertForSequenceClassification, MPNetConfig, MPNetForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    unknown = MPNetConfig(**sizes, vocab_size=120, max_position_embeddings=64, num_labels=3)
    MPNetForSequenceClassification(unknown).save_pretrained("mpnet")
    model = BertForSequenceClassification.from_pretrained(teacher)
    for name, labels in (("other_labels", ["no", "yes", "wait"]), ("fourth_label", ["go", "stop", "wait", "turn"])):
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
        model.classifier = torch.nn.Linear(64, len(labels))
        model.save_pretrained(name)
    model.base_model.save_pretrained("no_head")
    for name in ("mpnet", "other_labels", "fourth_label"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(teacher / file, name)
    path = without_stage("teacher", "other_words") / "tokenizer.json"
    path.write_text(path.read_text().replace('"street"', '"road"'))


def damage() -> None:
    """Make the damaged artefacts, each from a good one."""
    shutil.copytree("supernet", "cut_supernet")
    cut(Path("cut_supernet/model.safetensors"))
    cut(without_stage("teacher", "cut_model") / "model.safetensors")
    path = without_stage("teacher", "garbled_model") / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    (without_stage("teacher", "broken_model") / "config.json").write_text("{")
    shutil.copytree("supernet", "broken_task")
    path = Path("broken_task/task.json")
    path.write_text("[" + path.read_text()[1:])  # as long as before
    shutil.copytree("supernet", "broken_stage")
    cut(Path("broken_stage/stage.json"))
    cut(without_stage("importance", "cut_scores") / "importance.safetensors")
    shutil.copytree("search", "no_front")
    Path("no_front/pareto.json").unlink()
    path = without_stage("teacher", "bereft") / "task.json"
    path.write_text(path.read_text().replace("/train.jsonl", "/gone.jsonl"))
    unfinished("teacher", "unfinished_teacher")
    unfinished("supernet", "unfinished_supernet")
    Path("unfinished_importance").mkdir()
    shutil.copy("unfinished_teacher/stage.json", "unfinished_importance")
    header = Path("unfinished_importance/stage.json")
    header.write_text(header.read_text().replace('"finetune"', '"importance"'))
    lines = (unfinished("search", "corrupt_log") / "evaluations.jsonl").read_text().splitlines(keepends=True)
    lines[2] = lines[2][:30] + "\n"
    Path("corrupt_log/evaluations.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> Iterator[Path]:
    """A directory of good and bad artefacts, also the working directory, so that messages are exact. Read-only."""
    root = tmp_path_factory.mktemp("world")
    with chdir(root):
        shutil.copytree(tiny_bert_dir, "pretrained")
        shutil.copy(tiny_task_files.train, "train.jsonl")
        shutil.copy(tiny_task_files.validation, "validation.jsonl")
        Path("unanswered.jsonl").write_text('{"question": "q", "context": "c", "answers": {"text": []}}\n')
        Path("no_label.jsonl").write_text('{"text": "go", "lable": "go"}\n')
        Path("new_label.jsonl").write_text('{"text": "go", "label": "stopp"}\n')
        write_configs()
        brief = {"num_train_epochs": 1, "learning_rate": 1e-3}
        files = {"train_file": "train.jsonl", "validation_file": "validation.jsonl", "max_seq_length": LENGTH}
        succeed("finetune", model_name_or_path="pretrained", **files, output_dir="teacher", **brief)
        model = {"model_name_or_path": "teacher"}
        scored = {"criterion": "l1", "criterion_batches": 1}
        succeed("importance", **model, **scored, output_dir="importance")
        ranked = {"importance_weight_dir": "importance"}
        succeed("search-space", **model, **ranked, source_config="config.json", target_config="space.json")
        for seed, name in enumerate(["supernet", "other_supernet"]):
            succeed("train", **model, **ranked, nncf_config="space.json", output_dir=name, seed=seed, **brief)
        succeed("search", supernet_dir="supernet", output_dir="search", num_evals=5)
        write_models(Path("teacher"))
        damage()
        for name, file in (("ir", "openvino_model.xml"), ("onnx", "model.onnx")):
            ignored = shutil.ignore_patterns("*.safetensors")
            shutil.copytree("pretrained", name, ignore=ignored)
            Path(name, file).touch()
        Path("foreign").mkdir()
        Path("foreign/thesis.tex").write_text("ten years of work")
        Path("genes.json").write_text('{"head": [9, 4]}')
        Path("genome.json").write_text("[0, 1]")
        yield root


# -- the mistakes ------------------------------------------------------------------------------------------------------

# An ellipsis stands for other libraries' words.
MISTAKES: list[tuple[str, str]] = [
    # commands and flags
    ("evalate", "unknown command 'evalate'; did you mean 'evaluate'?; see eftnas --help"),
    (
        "evaluate --modeldir teacher",
        "unknown flag --modeldir; did you mean '--model_dir'?; see eftnas evaluate --help",
    ),
    ("evaluate teacher", "unexpected argument 'teacher'; see eftnas evaluate --help"),
    (
        f"finetune --model_name_or_path pretrained {FILES}",
        "the following arguments are required: --output_dir/--output-dir; see eftnas finetune --help",
    ),
    (
        f"{FINETUNE} --learning_rate fast",
        "argument --learning_rate/--learning-rate: invalid float value: 'fast'; see eftnas finetune --help",
    ),
    (f"{FINETUNE} --num_train_epochs 0", "--num_train_epochs must be above 0, not 0"),
    (f"{FINETUNE} --seed -1", "--seed must be at least 0 and below 2^32, not -1"),
    (f"{FINETUNE} --per_device_train_batch_size 0", "--per_device_train_batch_size must be at least 1, not 0"),
    (
        f"{FINETUNE} --save_strategy sometimes",
        "sometimes is not a valid SaveStrategy, please select one of ['no', 'steps', 'epoch', 'best']",
    ),
    ("evaluate --model_dir teacher --ir_dir teacher", "pass either --model_dir or --ir_dir"),
    (
        "evaluate --model_dir teacher --precision float16",
        "precision must be one of auto, float32, bfloat16, not 'float16'",
    ),
    (
        "evaluate --model_dir teacher --split dev",
        "--split must be one of validation, validation_mismatched, test, train, not 'dev'",
    ),
    ("evaluate --model_dir teacher --split test", "task files has no labelled split 'test'"),
    (f"{SEARCH} --precision int8", "precision must be one of auto, float32, bfloat16, not 'int8'"),
    # tasks and data
    (
        "finetune --model_name_or_path pretrained --output_dir new",
        "no task: pass --task_name or --train_file (there is none to inherit: pretrained has no task.json)",
    ),
    (
        "finetune --model_name_or_path pretrianed --output_dir new",
        "pretrianed is no directory, so no task can be inherited from it; if it is a hub id, pass --task_name or "
        "--train_file",
    ),
    (
        "export --model_dir subnte --output_dir new",
        "subnte is no directory, so no task can be inherited from it; if it is a hub id, pass --task_name or "
        "--train_file",
    ),
    (
        "train --model_name_or_path teacher --nncf_config space.json --output_dir new --train_file unanswered.jsonl "
        "--validation_file unanswered.jsonl --version_2_with_negative True",
        "…unanswered.jsonl, column 'answers': no row has an answer",
    ),
    (
        "finetune --model_name_or_path pretrained --output_dir new --task_name sst",
        "unknown task 'sst'; did you mean 'sst2'?; known: builtin-arithmetic, builtin-lm, …, stsb, text, …",
    ),
    (
        FINETUNE.replace("train.jsonl", "no_label.jsonl"),
        "no_label.jsonl has no column 'label' (line 1); did you mean 'lable'?; found: text, lable",
    ),
    (
        FINETUNE.replace("validation.jsonl", "new_label.jsonl"),
        "{root}/new_label.jsonl, column 'label': row 0 has the label 'stopp', which is none of the classes "
        "go, stop, wait; did you mean 'stop'?",
    ),
    (FINETUNE.replace("train.jsonl", "trian.jsonl"), "trian.jsonl does not exist"),
    ("finetune --model_name_or_path bereft --output_dir new", "{root}/gone.jsonl does not exist"),
    # models
    (FINETUNE.replace("pretrained", "pretraned"), f"cannot load a model from 'pretraned': {OFFLINE}"),
    (
        FINETUNE.replace("pretrained", "config.json"),
        "cannot load a model from 'config.json': it is a file, not a directory",
    ),
    (f"{FINETUNE} --kd_teacher_model techer", f"cannot load a model from 'techer': {OFFLINE}"),
    (
        f"{FINETUNE} --kd_teacher_model teacher --kd_mode hidden_state",
        "unknown --kd_mode 'hidden_state' (known: attention_relations, hidden_states, original, "
        "self_attention_distillation); did you mean 'hidden_states'?",
    ),
    (
        f"{FINETUNE} --load_best_model_at_end True --eval_strategy epoch --metric_for_best_model accurracy",
        "--metric_for_best_model accurracy: evaluations measure …; did you mean 'accuracy'?",
    ),
    (f"{FINETUNE} --report_to tensorbord", "unknown --report_to 'tensorbord' (known: …); did you mean 'tensorboard'?"),
    (
        f"{FINETUNE} --report_to swanlab",
        "--report_to swanlab: it is not installed here; pip install it, or take one that is (…)",
    ),
    (
        f"{TRAIN} --load_best_model_at_end True --eval_strategy epoch --metric_for_best_model loss",
        "--metric_for_best_model loss: evaluations measure accuracy_max, accuracy_min",
    ),
    (
        f"{FINETUNE} --load_best_model_at_end True",
        "--load_best_model_at_end requires the save and eval strategy to match, …",
    ),
    (
        f"{IMPORTANCE} --load_best_model_at_end True --eval_strategy epoch",
        "importance has no best epoch: masks are resolved at the end of the warm-up",
    ),
    (
        f"{TRAIN} --kd_teacher_model mpnet --kd_mode hidden_states",
        "hidden states of size 64 (model) and 32 (teacher) cannot be compared; use --kd_mode original or "
        "attention_relations",
    ),
    (
        f"{TRAIN} --kd_teacher_model other_words --kd_mode attention_relations",
        "--kd_mode attention_relations compares token by token, but the tokenizer of the teacher other_words is not "
        "the model's; use --kd_mode original",
    ),
    (
        f"{FINETUNE} --kd_teacher_model no_head",
        "the teacher no_head has no head for the task files (BertModel); fine-tune it first (eftnas finetune)",
    ),
    (
        f"{FINETUNE} --kd_teacher_model other_labels",
        "the teacher other_labels has other labels (no, yes, wait) than the task (go, stop, wait)",
    ),
    (
        f"{FINETUNE} --kd_teacher_model fourth_label",
        "the teacher fourth_label has 4 labels (go, stop, wait, turn), the task 3 (go, stop, wait)",
    ),
    (
        f"evaluate --model_dir fourth_label {FILES}",
        "fourth_label has 4 labels (go, stop, wait, turn), the task 3 (go, stop, wait)",
    ),
    (
        f"{IMPORTANCE.replace('teacher', 'mpnet')} {FILES}",
        f"no axis labels for model type 'mpnet' (known: {listed(FAMILIES)}); "
        "a family is one file of data in bootstrapnas/families, see CONTRIBUTING.md",
    ),
    # configs
    (IMPORTANCE.replace("config.json", "confg.json"), "nncf_config confg.json does not exist"),
    (
        IMPORTANCE.replace("config.json", "unscored.json"),
        "unscored.json: compression is missing; it needs an entry of algorithm 'movement_sparsity'",
    ),
    (
        IMPORTANCE.replace("config.json", "early.json"),
        "early.json: compression.params.warmup_start_epoch 0 begins the warm-up at step 0 (… a whole epoch) with "
        "untrained scores, all 0, which would mask every weight; begin later or set init_importance_threshold",
    ),
    (
        f"{IMPORTANCE} --num_train_epochs 5",
        "training ends after epoch 5, before the warm-up does (warmup_end_epoch 6); raise --num_train_epochs",
    ),
    (
        f"{IMPORTANCE} --criterion tailor",
        "unknown --criterion 'tailor' (known: external, gate, geometric_median, l1, l2, movement, taylor, wanda); "
        "did you mean 'taylor'?",
    ),
    (
        f"{IMPORTANCE.replace('--nncf_config config.json ', '')} --num_train_epochs 0.5",
        "default for 0.5 epochs: compression.params.warmup_start_epoch 0.166667 begins the warm-up at step 0 "
        "(… a whole epoch) with untrained scores, all 0, which would mask every weight; begin later or set "
        "init_importance_threshold",
    ),
    (f"{IMPORTANCE} --criterion external", "--criterion external needs --external_importance_path"),
    (
        f"{IMPORTANCE} --criterion l1 --external_importance_path importance/importance.safetensors",
        "--external_importance_path belongs to --criterion external, not to l1",
    ),
    (
        f"{IMPORTANCE} --criterion external --external_importance_path scores.pth",
        "external_importance_path scores.pth does not exist",
    ),
    (TRAIN.replace("space.json", "broken.json"), "broken.json is not JSON at line 1: Expected a value, found '}'"),
    (
        TRAIN.replace("space.json", "misspelt.json"),
        f"misspelt.json: unknown key {ELASTICITY}.width.overwrite_group; did you mean 'overwrite_groups'?",
    ),
    (
        TRAIN.replace("space.json", "inelastic.json"),
        "inelastic.json: bootstrapNAS.training is missing; it says what is elastic",
    ),
    (
        TRAIN.replace("space.json", "single.json"),
        "single.json: its search space holds one subnet only, so there is nothing to train or to search; it needs a "
        "group with several widths, or a block that may be skipped",
    ),
    (
        TRAIN.replace("space.json", "wide.json"),
        f"wide.json does not fit teacher: attention.self.query of layer 0 ({ELASTICITY}.width.overwrite_groups[0]) has "
        "256 channels in the config, 64 in the model; the config is for BertForSequenceClassification: 1 layer, "
        "hidden 256, the model is bert: 2 layers, hidden 64, 4 heads, FFN 128",
    ),
    (
        TRAIN.replace("space.json", "ragged.json"),
        f"ragged.json: {ELASTICITY}.width.overwrite_groups_widths[0]: width 40 of head[0] is not a multiple of 16, "
        "the channels of one unit",
    ),
    (
        TRAIN.replace("space.json", "node.json"),
        f"node.json: {ELASTICITY}.width.overwrite_groups[0]: the model has no labelled module "
        "'bert.encoder.layer.0.attention.self.querry'; did you mean 'bert.encoder.layer.0.attention.self.query'?",
    ),
    (
        f"{TRAIN} --sampling sandwitch",
        "unknown sampling 'sandwitch' (known: random, sandwich); did you mean 'sandwich'?",
    ),
    (
        f"{SPACE.replace('config.json', 'lengthless.json')} --importance_weight_dir importance",
        "lengthless.json: input_info is missing; it gives the one sequence length that costs are for",
    ),
    (
        f"{SPACE} --importance_weight_dir importance --max_seq_length 16",
        "pass either --source_config, whose input_info gives the length, or --max_seq_length",
    ),
    (
        f"{SPACE.replace('--source_config config.json ', '')} --importance_weight_dir importance --max_seq_length 0",
        "--max_seq_length must be at least 1, not 0",
    ),
    (f"{SPACE} --importance_weight_dir importance --tolerance -1", "--tolerance must not be negative, got -1"),
    (
        f"{SPACE} --importance_weight_dir importance --macs_ratios 0.5,2",
        "--macs_ratios must lie above 0 and at most 1, not 0.5,2",
    ),
    (
        f"{SPACE} --importance_weight_dir importance --macs_targets 4400,11174",
        "the lowest of --macs_targets, 4,400 M, is not below the full model's … M MACs: the space would hold "
        "the full model only",
    ),
    (
        f"{SPACE} --importance_weight_dir importance --macs_ratios half",
        "--macs_ratios must be numbers separated by commas, not 'half'",
    ),
    (
        f"{SEARCH} --num_evals 4",
        "search: population (5) must not exceed num_evals (4): not one generation would be evaluated",
    ),
    (
        f"{SEARCH} --population 1",
        "search: population must be at least 2, not 1: NSGA2 crosses the subnets of a generation; 20 is a usual one",
    ),
    (f"{SEARCH} --early_stop 99", "--early_stop is a confidence from 0.5 to 1, not 99; 0.99 is a usual one"),
    (f"{SEARCH} --merge_adapters True", "supernet holds no super-adapter: it has no super_adapter.json"),
    (
        f"{SEARCH} --algorithm NSGA3",
        "search: there is no algorithm 'NSGA3'; did you mean 'NSGA2'?; known are NSGA2, RNSGA2, random",
    ),
    (
        TRAIN.replace("space.json", "nsga3.json"),
        "nsga3.json: bootstrapNAS.search: there is no algorithm 'NSGA3'; did you mean 'NSGA2'?; known are NSGA2, "
        "RNSGA2, random",
    ),
    (
        TRAIN.replace("space.json", "f2.json"),
        "f2.json: bootstrapNAS.search.eval_metric_name: task files has no metric 'eval_f2'; it has: accuracy, "
        "macro_f1, matthews_correlation",
    ),
    # subnets
    (EXTRACT, "pass either --subnet or a bound such as --max_macs_ratio"),
    (f"{EXTRACT} --subnet best", "choosing from a search needs --search_dir"),
    (
        f"{EXTRACT} --subnet bset --search_dir search",
        "--subnet 'bset' is neither best, max, min, heuristic, frequent, lowest_loss, nor an index, nor a file; did "
        "you mean 'best'?",
    ),
    (f"{EXTRACT} --subnet 99 --search_dir search", "--subnet 99: the front of search has indices 0 to {last}"),
    (f"{EXTRACT} --subnet genes.json", "--subnet genes.json: size 9 of head[0] is not an integer between 1 and 4"),
    (
        f"{EXTRACT} --subnet genome.json",
        "--subnet genome.json holds no object of sizes by dimension, as subnet.json has them",
    ),
    (
        f"{EXTRACT} --max_macs_ratio 0.01 --search_dir search",
        "no subnet on the front of search has at most … M MACs (0.0100 of the full model's); the nearest has … M MACs "
        "({least} of the full model's)",
    ),
    (f"{EXTRACT} --max_macs_ratio 50 --search_dir search", "--max_macs_ratio must lie above 0 and at most 1, not 50"),
    (
        f"{EXTRACT.replace(' supernet', ' other_supernet')} --subnet best --search_dir search",
        "search searched another supernet than other_supernet",
    ),
    # exports
    (
        f"{EXPORT} --weight_format in8",
        "unknown weight_format 'in8', known: fp16, fp32, int4, int8; did you mean 'int8'?",
    ),
    (
        f"{EXPORT} --weight_format int4",
        "BertForSequenceClassification cannot be exported with weight_format int4: an encoder computes a whole text at "
        "once, so smaller weights save it no time and 4 bits cost it exactness; use weight_format int8, or quant_mode "
        "int8, which computes in int8 as well",
    ),
    (f"{EXPORT} --format onxx", "--format must be openvino or onnx, not 'onxx'"),
    (
        f"{EXPORT} --format onnx --weight_format int8",
        "--weight_format int8 is for --format openvino; ONNX is written in float32",
    ),
    (f"{EXPORT} --quant_mode int4", "--quant_mode must be int8, not 'int4'"),
    (f"{EXPORT} --preset mixed", "--preset is for --quant_mode int8"),
    (f"{EXPORT} --group_size 64", "--group_size is for --weight_format int4"),
    (f"{EXPORT} --sym", "--sym is for --weight_format int8 or int4"),
    (f"{EXPORT} --max_metric_drop 1", "--max_metric_drop is for --quant_mode int8 and --weight_format int8 or int4"),
    (
        f"{EXPORT} --weight_format int4 --group_size 0",
        "group_size must be at least 2, …",
    ),
    (f"{EXPORT} --weight_format int4 --ratio 1.5", "ratio must lie from 0 to 1, not 1.5"),
    (f"{EXPORT} --weight_format int4 --calibration_samples 9", "--calibration_samples is for …"),
    (
        f"{EXPORT} --quant_mode int8 --preset mixd",
        "unknown preset 'mixd', known: mixed, performance; did you mean 'mixed'?",
    ),
    (f"{EXPORT} --quant_mode int8 --calibration_samples 0", "--calibration_samples must be at least 1, not 0"),
    (
        f"{EXPORT} --quant_mode int8 --max_metric_drop 1 --no_metric",
        "--max_metric_drop needs the metric that --no_metric leaves out",
    ),
    (f"{EXPORT} --quant_mode int8 --calibration_file nowhere.jsonl", "nowhere.jsonl does not exist"),
    (
        f"{EXPORT.replace('teacher', 'bereft')} --quant_mode int8",
        "{root}/gone.jsonl is gone: --calibration_file names another file to calibrate by",
    ),
    (
        f"{EXPORT} --calibration_file train.jsonl",
        "--calibration_file is for --quant_mode int8, and --awq, --scale_estimation or a --ratio below 1; nothing else "
        "of a task's model is calibrated",
    ),
    (
        f"{EXPORT.replace('teacher', 'pretrained')} --max_seq_length 65",
        "--max_seq_length 65 exceeds the 64 tokens that the model takes",
    ),
    (
        f"{EXPORT.replace('teacher', 'pretrained')} --max_seq_length 0",
        "--max_seq_length must be at least 1, not 0",
    ),
    (
        f"{EXPORT.replace('teacher', 'pretrained')} --validation_file validation.jsonl",
        "no task: pass --task_name or --train_file (there is none to inherit: pretrained has no task.json)",
    ),
    (
        f"{EXPORT} --quant_mode int8 --calibration_file other_task.jsonl",
        "other_task.jsonl has no column 'text' (line 1); found: sentence, label",
    ),
    (
        f"{EXPORT.replace('teacher', 'pretrained')} --quant_mode int8 --calibration_file nowhere.txt",
        "nowhere.txt does not exist",
    ),
    (
        f"{EXPORT.replace('teacher', 'pretrained')} --quant_mode int8 --max_metric_drop 1",
        "no task: pass --task_name or --train_file (there is none to inherit: pretrained has no task.json)",
    ),
    # inputs that are not what the stage needs
    ("search --supernet_dir superent --output_dir new", "superent does not exist or is not a directory"),
    ("search --supernet_dir teacher --output_dir new", "teacher is the output of the stage finetune, not of train"),
    (
        "search --supernet_dir foreign --output_dir new",
        "foreign is not the output of the stage train: it has no stage.json",
    ),
    (
        "search --supernet_dir unfinished_supernet --output_dir new",
        "unfinished_supernet is unfinished: run its train stage again, it resumes",
    ),
    (
        TRAIN.replace("teacher", "unfinished_teacher"),
        "unfinished_teacher is unfinished: run its finetune stage again, it resumes",
    ),
    (
        f"{TRAIN} --importance_weight_dir unfinished_importance",
        "unfinished_importance is unfinished: run its importance stage again, it resumes",
    ),
    (
        "evaluate --model_dir unfinished_teacher",
        "unfinished_teacher is unfinished: run its finetune stage again, it resumes",
    ),
    ("evaluate --model_dir nowhere", "nowhere does not exist or is not a directory"),
    ("evaluate --ir_dir nowhere", "nowhere does not exist or is not a directory"),
    (
        "export --model_dir ir --output_dir new",
        "ir holds an OpenVINO IR: pass the model directory that it was exported from",
    ),
    (
        f"evaluate --model_dir onnx {FILES}",
        "onnx holds an ONNX model: pass the model directory that it was exported from",
    ),
    ("evaluate --ir_dir pretrained", "pretrained holds no OpenVINO IR: openvino_model.xml does not exist"),
    ("evaluate --ir_dir teacher", "teacher holds no OpenVINO IR: openvino_model.xml does not exist"),
    (f"{TRAIN} --importance_weight_dir teacher", "teacher/importance.safetensors does not exist"),
    (
        f"{TRAIN} --importance_weight_dir teacher/model.safetensors",
        "teacher/model.safetensors holds no importance scores",
    ),
    (f"{EXTRACT} --subnet best --search_dir supernet", "supernet is the output of the stage train, not of search"),
    # damage
    (
        SEARCH.replace(" supernet", " cut_supernet"),
        "cut_supernet is damaged: model.safetensors has {cut} bytes, not {whole}; make it again with "
        "--overwrite_output_dir",
    ),
    (
        SEARCH.replace(" supernet", " broken_task"),
        "broken_task/task.json is corrupt: not JSON at line 2: Expecting ',' delimiter",
    ),
    (SEARCH.replace(" supernet", " broken_stage"), "broken_stage/stage.json is corrupt: not JSON at line …"),
    (f"evaluate --model_dir cut_model {FILES}", f"cannot load a model from 'cut_model': {DAMAGED}"),
    (f"evaluate --model_dir garbled_model {FILES}", f"cannot load a model from 'garbled_model': {DAMAGED}"),
    (
        f"evaluate --model_dir broken_model {FILES}",
        "cannot load a model from 'broken_model': … 'broken_model/config.json' is not a valid JSON file.",
    ),
    (f"{TRAIN} --importance_weight_dir cut_scores", "cut_scores/importance.safetensors is corrupt: …"),
    (
        f"{EXTRACT} --subnet best --search_dir no_front",
        "no_front is damaged: pareto.json is missing; make it again with --overwrite_output_dir",
    ),
    (
        SEARCH.replace("new", "corrupt_log") + " --num_evals 5",
        "corrupt_log/evaluations.jsonl is corrupt in line 3: it is not JSON; delete the file to start the search anew",
    ),
    # where to write
    (TRAIN.replace("new", "config.json"), "output_dir config.json is a file"),
    (TRAIN.replace("new", "config.json/below"), "cannot write output_dir config.json/below: Not a directory"),
    (
        TRAIN.replace("new", "foreign"),
        "output_dir foreign is not empty and was not made by this program; choose another",
    ),
    (
        f"{TRAIN.replace('new', 'foreign')} --overwrite_output_dir",
        "output_dir foreign is not empty and was not made by this program; choose another",
    ),
    (
        f"{TRAIN.replace('new', 'teacher')} --overwrite_output_dir",
        "output_dir teacher holds the stage's own input teacher (model); choose another",
    ),
    (
        TRAIN.replace("new", "search"),
        "output_dir search holds another run (made by the stage search, not train); choose another --output_dir "
        "or pass --overwrite_output_dir",
    ),
    (
        f"{TRAIN.replace('new', 'supernet')} --importance_weight_dir importance --num_train_epochs 1 --seed 0 "
        "--learning_rate 0.5",
        "output_dir supernet holds another run (learning_rate: 0.001 there, 0.5 here); choose another "
        "--output_dir or pass --overwrite_output_dir",
    ),
    (  # the config may say otherwise
        f"{TRAIN.replace('new', 'supernet')} --importance_weight_dir importance --num_train_epochs 1 --seed 0 "
        "--learning_rate 0.001 --kd_temperature 2",
        "output_dir supernet holds another run (kd_temperature: None there, 2.0 here); choose another "
        "--output_dir or pass --overwrite_output_dir",
    ),
    (
        "evaluate --model_dir teacher --predict config.json/rows.jsonl",
        "cannot write config.json/rows.jsonl: File exists",
    ),
    (
        "search-space --source_config config.json --model_name_or_path teacher --importance_weight_dir "
        "importance --target_config genes.json",
        "target_config genes.json holds something else; pass --overwrite_target_config to replace it",
    ),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line_and_nothing_is_lost(world: Path, command: str, message: str) -> None:
    refused(command, message.format(root=world, **facts()) if "{" in message else message, world)


def facts() -> dict[str, Any]:
    """Return the numbers in messages that depend on what was trained."""
    front = json.loads(Path("search/pareto.json").read_text())["front"]
    full = json.loads(Path("search/evaluations.jsonl").read_text().splitlines()[1])["values"]["macs"]
    return {
        "last": len(front) - 1,
        "least": f"{front[0]['values']['macs'] / full:.4f}",
        "cut": Path("cut_supernet/model.safetensors").stat().st_size,
        "whole": Path("supernet/model.safetensors").stat().st_size,
    }


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evalate", "unknown command 'evalate'; did you mean 'evaluate'?; see eftnas --help"),
        (FINETUNE.replace("train.jsonl", "trian.jsonl"), "trian.jsonl does not exist"),
    ],
)
def test_a_process_ends_with_the_line_and_status_2(world: Path, command: str, message: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "eftnas", *shlex.split(command)],
        cwd=world,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"eftnas: error: {message}\n")


# -- what looks like a mistake and is none -----------------------------------------------------------------------------


def test_the_mended_command_takes_the_place_of_a_start_that_failed(world: Path) -> None:
    assert call(shlex.split(f"{EXTRACT} --subnet 99 --search_dir search")).status == 2
    outcome = call(shlex.split(f"{EXTRACT} --subnet 0 --search_dir search"))
    assert outcome.status == 0, outcome.err
    shutil.rmtree("new")


def test_a_flag_named_at_its_default_makes_no_other_run(world: Path, tmp_path: Path) -> None:
    search = f"{SEARCH.replace('new', 'search')} --num_evals 5"
    named = f"{search} --objectives metric,macs --eval_batch_size 64 --max_seq_length {LENGTH}"
    assert call(shlex.split(named)).err == "search: finished already in search\n"
    shutil.copytree("search", tmp_path / "search")
    header = json.loads((tmp_path / "search/stage.json").read_text())
    header["settings"] |= {"objectives": "metric,macs", "max_seq_length": LENGTH}
    (tmp_path / "search/stage.json").write_text(json.dumps(header))
    with chdir(tmp_path):
        assert call(shlex.split(search.replace(" supernet", f" {world}/supernet"))).err.startswith("search: finished")


def test_another_run_is_replaced_when_asked_for(world: Path) -> None:
    for arguments in ("--subnet max", "--subnet min --overwrite_output_dir"):
        outcome = call(shlex.split(f"{EXTRACT} {arguments}"))
        assert outcome.status == 0, outcome.err
    assert json.loads(Path("new/subnet.json").read_text())["chosen_by"] == "min"
    shutil.rmtree("new")


@pytest.mark.parametrize(("chosen", "told"), [("max", True), ("lowest_loss", True), ("best", False), ("0", False)])
def test_a_search_that_says_nothing_of_the_subnet_is_told(world: Path, chosen: str, told: bool) -> None:
    outcome = call(shlex.split(f"{EXTRACT} --subnet {chosen} --search_dir search"))
    assert outcome.status == 0, outcome.err
    line = f"warning: --search_dir has no effect: --subnet {chosen} is no choice from a search"
    assert (line in outcome.err.splitlines()) is told
    shutil.rmtree("new")


def write_shuffled(directory: Path) -> list[str]:
    """Write the teacher with its labels in another order; return them."""
    spec = TaskSpec.load("teacher/task.json")
    teacher = load_for_task("teacher", spec)
    shuffled = ["WAIT", "go", "stop"]
    order = [spec.label_names.index(name.lower()) for name in shuffled]
    with torch.no_grad():
        teacher.classifier.weight.copy_(teacher.classifier.weight[order])
        teacher.classifier.bias.copy_(teacher.classifier.bias[order])
    teacher.config.id2label = dict(enumerate(shuffled))
    teacher.config.label2id = {name: index for index, name in enumerate(shuffled)}
    teacher.save_pretrained(directory)
    load_tokenizer("teacher").save_pretrained(directory)
    return shuffled


def test_a_teacher_may_have_its_labels_in_another_order(world: Path, tmp_path: Path) -> None:
    spec = TaskSpec.load("teacher/task.json")
    write_shuffled(tmp_path)
    rows = Rows(spec, load_tokenizer("teacher"))
    arguments = StageTrainingArguments(output_dir="unused")
    train = rows.split("train")
    expected = with_teacher_outputs(rows, train, "teacher", arguments)["teacher_logits"]
    found = with_teacher_outputs(rows, train, str(tmp_path), arguments)["teacher_logits"]
    assert torch.equal(torch.tensor(list(found)), torch.tensor(list(expected)))
    assert torch.tensor(list(found)).shape == (96, 3)


def test_an_ir_may_have_its_labels_in_another_order(world: Path, tmp_path: Path) -> None:
    """As of a model without a task, whose classes are exported in the order that its config names."""
    write_shuffled(tmp_path / "model")
    succeed("export", model_dir=tmp_path / "model", calibration_file="train.jsonl", output_dir=tmp_path / "ir")
    files = {"train_file": "train.jsonl", "validation_file": "validation.jsonl"}
    wanted = metrics_of(model_dir="teacher", predict=tmp_path / "by_torch.jsonl")
    assert metrics_of(ir_dir=tmp_path / "ir", **files, predict=tmp_path / "by_ir.jsonl") == wanted
    assert (tmp_path / "by_ir.jsonl").read_text() == (tmp_path / "by_torch.jsonl").read_text()
    two = tmp_path / "two.json"
    write_json(two, [{"text": "a dog", "label": "go"}, {"text": "a cat", "label": "stop"}])
    outcome = eftnas("evaluate", ir_dir=tmp_path / "ir", train_file=two, validation_file=two)
    assert outcome.status == 2
    assert f"{tmp_path}/ir has 3 labels (WAIT, go, stop), the task 2 (go, stop)" in outcome.err


def test_numbers_as_labels_are_the_indices_of_the_models_classes(world: Path, tmp_path: Path) -> None:
    names = write_shuffled(tmp_path / "model")
    files = {}
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in Path(f"{split}.jsonl").read_text().splitlines()]
        index = {name.lower(): number for number, name in enumerate(names)}
        files[f"{split}_file"] = tmp_path / f"{split}.csv"
        lines = [f"{row['text']},{index[row['label']]}" for row in rows]
        files[f"{split}_file"].write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    assert metrics_of(model_dir=tmp_path / "model", **files) == metrics_of(model_dir="teacher")
    spec = build_task_spec(**files, max_seq_length=LENGTH)
    assert spec.label_names == ("0", "1", "2")
    assert load_for_task(str(tmp_path / "model"), spec).config.id2label == dict(enumerate(names))


def test_what_was_trained_on_need_not_be_there_to_measure_and_quantise(world: Path, tmp_path: Path) -> None:
    assert metrics_of(model_dir="bereft") == metrics_of(model_dir="teacher")
    by_other = {"quant_mode": "int8", "calibration_file": "train.jsonl", "calibration_samples": 4, "no_metric": True}
    for name in ("bereft", "teacher"):
        succeed("export", model_dir=name, **by_other, output_dir=tmp_path / name)
    assert len({digest(tmp_path / name / "openvino_model.bin") for name in ("bereft", "teacher")}) == 1
