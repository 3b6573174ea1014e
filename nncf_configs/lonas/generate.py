"""Write the NNCF configs beside this file and the recipes in running_commands/lonas from `published_adapters`.

python nncf_configs/lonas/generate.py
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from textwrap import wrap
from typing import Any

import torch
import transformers
from published_adapters import (
    BERT_FFN,
    BERT_HEADS,
    FFN_SHARES,
    GLUE,
    MODELS,
    RUNS,
    TRAINED_ON,
    AdapterModel,
    PublishedRun,
)

from bootstrapnas.adapters import add_adapters
from bootstrapnas.artefacts import write_text
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.nncf_config import NodeNames, config_with_space, format_config, one_stage_config
from bootstrapnas.space import Gene, SearchSpace
from bootstrapnas.tasks.known import KNOWN
from lonas.spaces import adapter_space, rank_groups

CONFIG_DIR = Path(__file__).resolve().parent
ROOT = CONFIG_DIR.parents[1]
RECIPE_DIR = ROOT / "running_commands" / "lonas"


def files() -> dict[Path, str]:
    """Return every file and its text."""
    found = {}
    for run in RUNS:
        found[config_path(run)] = config(run)
        found[recipe_path(run)] = recipe(run)
    return found


# -- configs -----------------------------------------------------------------------------------------------------------


def config_path(run: PublishedRun) -> Path:
    return CONFIG_DIR / run.model / f"{run.task}.json"


def config(run: PublishedRun) -> str:
    """Return the config of a run."""
    model = MODELS[run.model]
    blueprint, names = model_of(model)
    search: dict[str, Any] = {"algorithm": "NSGA2"}
    if run.is_glue:
        length, indicator, space = 128, 4, bert_space(blueprint)
        search |= {"num_evals": 1000, "population": 40, "ref_acc": 0.85, "acc_delta": 0.01}
        search["eval_metric_name"] = f"eval_{run.metric}"
    else:
        length, indicator = 256, 5
        space = adapter_space(blueprint, ranks=model.ranks, ffn_shares=FFN_SHARES, head_shares=model.head_shares)
        held = {"ref_acc": 0.45, "acc_delta": 0.01} if model.published else {"ref_acc": -1, "acc_delta": 1}
        search |= {"num_evals": 200, "population": 8, **held}
    raw = one_stage_config(["width"], length, search)
    stage = {"train_dims": ["width"], "epochs": run.epochs, "init_lr": run.lr, "epochs_lr": run.epochs}
    stage |= {"width_indicator": indicator, "sample_rate": 1}
    training = raw["bootstrapNAS"]["training"]
    training["sandwich_rule"] = False
    training["schedule"]["list_stage_descriptions"] = [stage]
    comments = [
        f"LoNAS on {title(run)}: {'' if model.published else 'in the manner of '}the published search space and "
        "its settings.",
        "Written by generate.py from published_adapters.py; docs/nncf_config.md explains the keys.",
    ]
    if run.task in ("cola", "rte", "mnli"):
        comments.append(
            f"ref_acc {search['ref_acc']} is as published, above what {GLUE[run.task]} reaches: the search says so and "
            "takes the best subnet. -1 holds subnets against the largest one."
        )
    lines = [line for comment in comments for line in wrap(comment, width=117)]
    return "".join(f"// {line}\n" for line in lines) + format_config(config_with_space(raw, blueprint, names, space))


def bert_space(blueprint: Blueprint) -> SearchSpace:
    """Return the space of BERT-base, the same for all tasks."""
    heads = [Gene((Key("head", layer),), (12, *sizes)) for layer, sizes in enumerate(BERT_HEADS)]
    ranks = [Gene(keys, MODELS["bert_base"].ranks) for keys in rank_groups(blueprint)]
    ffn = [Gene((Key("ffn", layer),), (3072, *sizes)) for layer, sizes in enumerate(BERT_FFN)]
    return SearchSpace((*heads, *ranks, *ffn))


def model_of(model: AdapterModel) -> tuple[Blueprint, NodeNames]:
    """Return the blueprint of a model with adapters and its names, without weights."""
    with torch.device("meta"):
        built = getattr(transformers, model.architecture)(transformers.AutoConfig.for_model(**model.config))
    blueprint = Blueprint.of(built, add_adapters(built, Adapters(model.targets, model.rank, model.alpha)))
    return blueprint, NodeNames.of(built)


def title(run: PublishedRun) -> str:
    return f"{GLUE.get(run.task, run.task)} with {MODELS[run.model].title}"


# -- recipes -----------------------------------------------------------------------------------------------------------


class _Recipe(Template):
    delimiter = "%"


RECIPE = _Recipe("""\
#!/usr/bin/env bash
# LoNAS on %title: a super-adapter, searched, and its best subnet as one smaller model in OpenVINO.
#
#   bash running_commands/lonas/%name
#
# The same command again finds the stages that are finished and resumes one that was interrupted. Variables change it
# (relative paths begin at the project's root):
#
#   MODEL        the base model: hub id or directory
%data_help
#   OUTPUT_DIR   where all stages write
#   NNCF_CONFIG  another config than the published one
#   TRAINING     more flags of the training, for example TRAINING="%example"
#   BASELINE     1 trains an ordinary LoRA as well, and evaluates it
#   EXPORT       flags of the export, for example EXPORT="--weight_format int8"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:$PWD/.venv/bin

MODEL=${MODEL:-%hub_id}
OUTPUT_DIR=${OUTPUT_DIR:-runs/lonas/%run}
NNCF_CONFIG=${NNCF_CONFIG:-%config}
%data
# 1. The super-adapter: one random subnet a step, %epochs epochs, the base model frozen.
lonas train --model_name_or_path "$MODEL" --nncf_config "$NNCF_CONFIG" \\
    %task_flags "${data[@]}" \\
    --lora_r %rank --lora_alpha %alpha --lora_dropout %dropout \\
    --target_modules %targets \\
    %batch ${TRAINING:-} \\
    --output_dir "$OUTPUT_DIR/super"

# 2. The subnet of the middle choices, without any search.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --subnet heuristic%measured

# 3. The subnets with the best trade-off between quality and MACs, on %searched_on.
lonas search --supernet_dir "$OUTPUT_DIR/super" --output_dir "$OUTPUT_DIR/search"

# 4. The best one: what it reaches, as a smaller base model with a smaller adapter, and merged.
lonas eval --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search"%long--subnet best%measured
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best \\
    --output_dir "$OUTPUT_DIR/subnet"
lonas extract --supernet_dir "$OUTPUT_DIR/super" --search_dir "$OUTPUT_DIR/search" --subnet best --merge True \\
    --output_dir "$OUTPUT_DIR/merged"

# 5. OpenVINO IR, checked against torch.
lonas export --model_dir "$OUTPUT_DIR/merged" --output_dir "$OUTPUT_DIR/ir" ${EXPORT:-}

# 6. What it is held against: an ordinary LoRA of the same rank on the same layers, trained as long at the same rate.
if [[ -n ${BASELINE:-} ]]; then
    lonas train --model_name_or_path "$MODEL" \\
        %task_flags "${data[@]}" \\
        --lora_r %rank --lora_alpha %alpha --lora_dropout %dropout \\
        --target_modules %targets \\
        --num_train_epochs %epochs --learning_rate %lr --lr_scheduler_type cosine \\
        %batch ${TRAINING:-} \\
        --output_dir "$OUTPUT_DIR/lora"
    lonas eval --supernet_dir "$OUTPUT_DIR/lora"%measured
fi
""")

GLUE_HELP = "#   DATASET_DIR  local files instead of the hub"
GLUE_DATA = """\
data=(${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})
"""
# Language models: rows and test sets are files of LLM-Adapters, which no hub has.
TEXTS_HELP = _Recipe("""\
#   TRAIN_FILE   rows to train on, a tenth of which is held out: LLM-Adapters' ft-training_set/%rows
#   DATASET_DIR  the test sets: LLM-Adapters' dataset/, with %first/test.json and so on
#                (https://github.com/AGI-Edgerunners/LLM-Adapters); or, for both, one directory of train.jsonl and
#                test.jsonl""")
TEXTS_DATA = _Recipe("""\
data=(${TRAIN_FILE:+--train_file "$TRAIN_FILE"} ${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})
if [[ ${#data[@]} == 0 ]]; then
    echo "%name: TRAIN_FILE and DATASET_DIR must say where LLM-Adapters' files are" >&2
    exit 2
fi
# What is evaluated: all test sets that are there (%parts), or else the
# rows that were held out.
split=validation
if [[ -n ${DATASET_DIR:-} && -n $(find "$DATASET_DIR" -maxdepth 2 -name 'test.*') ]]; then split=test; fi
""")


def recipe_path(run: PublishedRun) -> Path:
    return RECIPE_DIR / f"{run.model}_{run.task}.sh"


def recipe(run: PublishedRun) -> str:
    """Return the script that runs all stages of a run."""
    model, name = MODELS[run.model], recipe_path(run).name
    dropout = 0.05 if run.task == "cola" else model.dropout
    if run.is_glue:
        flags = f"--task_name {run.task} --max_seq_length {256 if run.task == 'qnli' else 128}"
        flags += "" if run.metric == KNOWN[run.task].metrics[0] else f" --metric {run.metric}"
        batch = f"--per_device_train_batch_size {run.batch} --weight_decay 0.1 --seed 0"
        example, data_help, data = "--bf16 --reorder wanda", GLUE_HELP, GLUE_DATA
        measured, searched_on, long = "", "the validation rows", " "
    else:
        flags = f"--task_name {run.task} --max_seq_length 256"
        batch = f"--per_device_train_batch_size {run.batch} --gradient_accumulation_steps 4"
        batch += " --base_dtype bfloat16 --bf16 True"
        example = "--base_dtype float16 --bf16 False --fp16 True"
        parts = KNOWN[run.task].parts
        data_help = TEXTS_HELP.substitute(rows=TRAINED_ON[run.task], first=parts[0])
        data = TEXTS_DATA.substitute(name=name, parts=", ".join(parts))
        measured, searched_on, long = ' --split "$split" --precision auto', "the held-out rows", " \\\n    "
    return RECIPE.substitute(
        title=title(run),
        name=name,
        run=recipe_path(run).stem,
        hub_id=model.hub_id,
        config=config_path(run).relative_to(ROOT).as_posix(),
        epochs=run.epochs,
        lr=f"{run.lr:g}",
        task_flags=flags,
        rank=model.rank,
        alpha=model.alpha,
        dropout=dropout,
        targets=",".join(model.targets),
        batch=batch,
        example=example,
        data_help=data_help,
        data=data,
        measured=measured,
        searched_on=searched_on,
        long=long,
    )


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


if __name__ == "__main__":
    main()
