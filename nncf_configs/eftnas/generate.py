"""Write the NNCF configs beside this file and the recipes in running_commands/eftnas from `published_spaces`.

python nncf_configs/eftnas/generate.py
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Template
from textwrap import wrap
from typing import Any

import torch
import transformers
from published_spaces import CONFIGS, HUB_IDS, SPACES, TASKS, PublishedSpace

from bootstrapnas.artefacts import write_text
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.nncf_config import NodeNames, config_with_space, format_config
from bootstrapnas.space import SearchSpace

CONFIG_DIR = Path(__file__).resolve().parent
ROOT = CONFIG_DIR.parents[1]
RECIPE_DIR = ROOT / "running_commands" / "eftnas"
ARCHITECTURES = {
    "sequence_classification": "BertForSequenceClassification",
    "question_answering": "BertForQuestionAnswering",
}
TEMPLATE_CHANNELS = 256
"""The step of the FFN widths in the templates."""


def files() -> dict[Path, str]:
    """Return every file and its text."""
    found = {}
    for space in SPACES:
        found[config_path(space)] = published_config(space)
        found[recipe_path(space)] = recipe(space)
    for model in CONFIGS:
        for head, architecture in ARCHITECTURES.items():
            name = f"{model.partition('_')[2]}_{head}.json"
            found[CONFIG_DIR / "templates" / name] = template(model, architecture)
    return found


# -- configs -----------------------------------------------------------------------------------------------------------


def config_path(space: PublishedSpace) -> Path:
    return CONFIG_DIR / space.model / f"{space.task}.json"


def published_config(space: PublishedSpace) -> str:
    """Return the config of a published space, with a comment where it holds a surprise."""
    dims = ["width"] if not space.skipped_mha else ["width", "depth"]
    stage: dict[str, Any] = {
        "train_dims": dims,
        "epochs": space.epochs,
        "init_lr": space.lr,
        "epochs_lr": space.epochs_lr or space.epochs,
        "width_indicator": space.width_indicator,
        "depth_indicator": space.depth_indicator,
        "sample_rate": 1,
    }
    search: dict[str, Any] = {"algorithm": "NSGA2", "num_evals": 1000, "population": 40, "ref_acc": space.ref_acc}
    if space.metric is not None:
        search["eval_metric_name"] = space.metric
    raw = base_config(space.length, dims, stage, search)
    warmup = dict(zip(("warmup_start_epoch", "warmup_end_epoch"), space.warmup, strict=True))
    raw["compression"]["params"].update(warmup)
    raw = {"movement_sparsity_total_epochs": TASKS[space.task].importance_epochs, **raw}
    blueprint, names = model_of(space.model, space.architecture)
    raw = config_with_space(raw, blueprint, names, space.space(blocks=True))
    if space.skipped_mha == ():
        raw["bootstrapNAS"]["training"]["elasticity"]["depth"] = {"skipped_blocks": []}
    comments = [
        f"{title(space)}: the published search space of {model_title(space.model)} and its settings.",
        "Written by generate.py from published_spaces.py; base_bert.json explains the keys.",
    ]
    longest = max(len(sizes) for dim in ("head", "ffn") for sizes in space.sizes(dim))
    if longest > space.width_indicator:
        comments.append(
            f"width_indicator {space.width_indicator} is as published: the smallest width of every group that has "
            f"{longest} is neither trained nor searched. -1 takes all."
        )
    if space.model == "s2_bert_medium":
        comments.append(
            f"ref_acc {space.ref_acc} is as published, which is BERT-base's (S1). Where no subnet comes near, the "
            "search says so and takes the best one. -1 holds subnets against the largest one."
        )
    return commented(comments, raw)


def template(model: str, architecture: str) -> str:
    """Return a config of evenly spaced widths and all half-blocks for a model and head, to edit or generate from."""
    dims = ["width", "depth"]
    stage = {"train_dims": dims, "epochs": -1, "init_lr": -1, "width_indicator": -1, "depth_indicator": 1}
    search = {"algorithm": "NSGA2", "num_evals": 400, "population": 40}
    length = 384 if architecture == ARCHITECTURES["question_answering"] else 128
    raw = base_config(length, dims, stage, search)
    blueprint, names = model_of(model, architecture)
    keys = [key for key in blueprint.elastic if not blueprint.is_whole_layer(key)]  # as published: halves of layers
    space = SearchSpace.build(blueprint, [(key, template_sizes(blueprint, key)) for key in keys])
    comments = [
        f"EFTNAS for {model_title(model)} as {architecture}: any heads, FFN widths {TEMPLATE_CHANNELS} apart, "
        "any block. Edit it, or let eftnas search-space narrow it down (--source_config).",
        "Written by generate.py; base_bert.json explains the keys.",
    ]
    return commented(comments, config_with_space(raw, blueprint, names, space))


def template_sizes(blueprint: Blueprint, key: Any) -> range | tuple[int, int]:
    if blueprint.is_block(key):
        return (1, 0)
    return range(blueprint.full[key], 0, -TEMPLATE_CHANNELS if blueprint.channels_per_unit(key) == 1 else -1)


def base_config(length: int, dims: list[str], stage: dict[str, Any], search: dict[str, Any]) -> dict[str, Any]:
    """Return a config of one stage without groups and widths, for sequences of `length` tokens."""
    return {
        "input_info": [
            {"sample_size": [1, length], "type": "long", "keyword": keyword}
            for keyword in ("input_ids", "token_type_ids", "attention_mask")
        ],
        "compression": {
            "algorithm": "movement_sparsity",
            "params": {
                "warmup_start_epoch": 1,
                "warmup_end_epoch": 3,
                "importance_regularization_factor": 0.02,
                "enable_structured_masking": True,
            },
            "sparse_structure_by_scopes": [
                {"mode": "block", "sparse_factors": [32, 32], "target_scopes": "{re}.*BertAttention.*"},
                {"mode": "per_dim", "axis": 0, "target_scopes": "{re}.*BertIntermediate.*"},
                {"mode": "per_dim", "axis": 1, "target_scopes": "{re}.*BertOutput.*"},
            ],
            "ignored_scopes": [
                f"{{re}}.*{name}.*" for name in ("NNCFEmbedding", "LayerNorm", "pooler", "classifier", "qa_outputs")
            ],
        },
        "bootstrapNAS": {
            "training": {
                "algorithm": "progressive_shrinking",
                "progressivity_of_elasticity": dims,
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
                "schedule": {"list_stage_descriptions": [stage]},
                "elasticity": {"available_elasticity_dims": dims},
            },
            "search": search,
        },
    }


@cache
def model_of(model: str, architecture: str) -> tuple[Blueprint, NodeNames]:
    """Return the blueprint of a model and its names, without weights."""
    config = transformers.BertConfig(**vars(CONFIGS[model]))
    with torch.device("meta"):
        built = getattr(transformers, architecture)(config)
    return Blueprint.of(built), NodeNames.of(built)


def commented(comments: list[str], raw: dict[str, Any]) -> str:
    lines = [line for comment in comments for line in wrap(comment, width=117)]
    return "".join(f"// {line}\n" for line in lines) + format_config(raw)


def title(space: PublishedSpace) -> str:
    return f"EFTNAS-{space.model.partition('_')[0].upper()} on {TASKS[space.task].title}"


def model_title(model: str) -> str:
    return "BERT-" + model.rpartition("_")[2]


# -- recipes -----------------------------------------------------------------------------------------------------------


class _Recipe(Template):
    delimiter = "%"


RECIPE = _Recipe("""\
#!/usr/bin/env bash
# %title: from %model to a smaller model in OpenVINO, with the published settings.
#
#   bash running_commands/eftnas/%name
#
# The same command again finds the stages that are finished and resumes one that was interrupted. Variables change it
# (relative paths begin at the project's root):
#
#   MODEL            the pre-trained student: hub id or directory
#   TEACHER          the fine-tuned teacher: hub id or directory
#   DATASET_DIR      local files, %task/%{splits}.jsonl, instead of the hub
#   OUTPUT_DIR       where all stages write
#   NNCF_CONFIG      another config than the published one
#   SPACE=generated  a search space made from this run's own scores
#   FINETUNE=1       train the extracted subnet a little more, with the teacher
#   TRAINING         more flags of the training stages, for example TRAINING=--bf16 on a GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:$PWD/.venv/bin

MODEL=${MODEL:-%hub_id}
TEACHER=${TEACHER:-%teacher}
OUTPUT_DIR=${OUTPUT_DIR:-runs/eftnas/%run}
NNCF_CONFIG=${NNCF_CONFIG:-%config}
data=(${DATASET_DIR:+--dataset_dir "$DATASET_DIR"})
training=(--per_device_train_batch_size %batch --per_device_eval_batch_size 128 ${TRAINING:-})

# 1. Scores of all weights by movement sparsity: the threshold rises from epoch %start to %end, and training ends there.
eftnas importance --model_name_or_path "$MODEL" --nncf_config "$NNCF_CONFIG" \\
    %task_flags "${data[@]}" \\
    --learning_rate 2e-5 "${training[@]}" --output_dir "$OUTPUT_DIR/importance"

# 2. The search space.
case ${SPACE:-published} in
    published) space=$NNCF_CONFIG ;;
    generated)
        space=$OUTPUT_DIR/space.json
        eftnas search-space --model_name_or_path "$MODEL" --importance_weight_dir "$OUTPUT_DIR/importance" \\
            --source_config "$NNCF_CONFIG" --lowest_macs_ratio %ratio --target_config "$space"
        ;;
    *)
        echo "%name: SPACE must be published or generated, not $SPACE" >&2
        exit 2
        ;;
esac

# 3. The supernet: important units first, then %epochs epochs of the largest, a random and the smallest subnet a step.
eftnas train --model_name_or_path "$MODEL" --kd_teacher_model "$TEACHER" --nncf_config "$space" \\
    --importance_weight_dir "$OUTPUT_DIR/importance" "${data[@]}" \\
    "${training[@]}" --output_dir "$OUTPUT_DIR/supernet"

# 4. The subnets with the best trade-off between quality and MACs, on the validation set.
eftnas search --supernet_dir "$OUTPUT_DIR/supernet" --eval_batch_size 128 --output_dir "$OUTPUT_DIR/search"

# 5. The cheapest subnet within a point of the config's ref_acc, as a smaller Hugging Face model.
subnet=$OUTPUT_DIR/subnet
eftnas extract --supernet_dir "$OUTPUT_DIR/supernet" --search_dir "$OUTPUT_DIR/search" --subnet best \\
    --output_dir "$subnet"

# 6. Optional: further training of that subnet alone.
if [[ ${FINETUNE:-0} == 1 ]]; then
    eftnas finetune --model_name_or_path "$subnet" --kd_teacher_model "$TEACHER" \\
        --num_train_epochs 3 --learning_rate %lr "${training[@]}" --output_dir "$OUTPUT_DIR/finetuned"
    subnet=$OUTPUT_DIR/finetuned
fi

# 7. OpenVINO IR, checked against torch, and its metrics.
eftnas export --model_dir "$subnet" --output_dir "$OUTPUT_DIR/ir"
%evaluation
""")


MISMATCHED = """\
found() { compgen -G "$DATASET_DIR/$1validation_mismatched.*" >/dev/null; }
if [[ -n ${DATASET_DIR:-} ]] && ! found mnli/ && ! found ""; then
    echo "warning: not evaluated on the mismatched rows: $DATASET_DIR holds no validation_mismatched.jsonl" >&2
else
"""


def recipe_path(space: PublishedSpace) -> Path:
    return RECIPE_DIR / f"{space.model.partition('_')[0]}_{space.task}.sh"


def recipe(space: PublishedSpace) -> str:
    """Return the script that runs all stages for a published space."""
    flags = f"--task_name {space.task} --max_seq_length {space.length}"
    if space.is_squad:
        flags += " --doc_stride 128"
    evaluate = 'eftnas evaluate --ir_dir "$OUTPUT_DIR/ir"'
    if space.task == "mnli":
        evaluate += f" --split validation # matched\n{MISMATCHED}    {evaluate} --split validation_mismatched\nfi"
    start, end = space.warmup
    smallest, largest = space.mmacs
    return RECIPE.substitute(
        title=title(space),
        model=model_title(space.model),
        hub_id=HUB_IDS[space.model],
        name=recipe_path(space).name,
        run=recipe_path(space).stem,
        task=space.task,
        splits="{train,validation}" if space.task != "mnli" else "{train,validation_matched,validation_mismatched}",
        teacher=TASKS[space.task].teacher,
        config=config_path(space).relative_to(ROOT).as_posix(),
        task_flags=flags,
        batch=16 if space.is_squad else 32,
        start=start,
        end=end,
        ratio=f"{smallest / largest:.1f}",
        epochs=space.epochs,
        lr=f"{space.lr:.0e}".replace("e-0", "e-"),
        evaluation=evaluate,
    )


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        write_text(path, text)


if __name__ == "__main__":
    main()
