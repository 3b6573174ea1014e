"""Write the table of keys in nncf_config.md from the schema of the reader: ``python docs/nncf_keys.py``.

A key that acts needs an entry in `ACTS`; what has no effect says why in the schema itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from bootstrapnas.nncf_config.schema import REASON, Document, Search, Section
from bootstrapnas.search import SearchSettings

PAGE = Path(__file__).parent / "nncf_config.md"
START, END = "<!-- keys: written by nncf_keys.py -->", "<!-- end of keys -->"

ACTS = {
    "Document.kd_teacher_model": "The teacher of `train`, as `--kd_teacher_model`.",
    "Document.kd_mode": "What student and teacher are compared by, as `--kd_mode`: see [training.md](training.md).",
    "Document.kd_temperature": "Temperature of the distillation in `train`, as `--kd_temperature`.",
    "Document.movement_sparsity_total_epochs": "As `--num_train_epochs` of `importance`: the length of its "
    "learning-rate schedule. Training ends with the warm-up.",
    "InputInfo.sample_size": "Shape [batch, tokens]. The tokens are the length that costs are counted for; all entries "
    "must agree.",
    "InputInfo.type": "Checked; `float` or `long`. Costs need the length alone.",
    "InputInfo.keyword": "Checked. Costs need the length alone.",
    "Training.algorithm": "Only `progressive_shrinking`.",
    "Training.progressivity_of_elasticity": "The order in which stages may add dimensions; stages are checked against "
    "it.",
    "Training.sandwich_rule": "`true`: the largest, a random and the smallest subnet a step; `false`: one random. "
    "Without it `--sampling` decides (sandwich).",
    "KnowledgeDistillation.algorithm": "Only `knowledge_distillation`: without `--kd_teacher_model`, the teacher of "
    "`train` is the model as it was before training, in evaluation mode; its term is added to the whole task loss.",
    "KnowledgeDistillation.type": "`softmax`: as `--kd_mode original`; `mse`: mean squared error of the outputs.",
    "KnowledgeDistillation.scale": "Weight of the term.",
    "KnowledgeDistillation.temperature": "Temperature of both softmaxes.",
    "StageDescription.train_dims": "What is elastic from this stage on: `width`, `depth`. `kernel` is named in a "
    "warning and left out.",
    "StageDescription.epochs": "Length of the stage; -1: `--num_train_epochs`.",
    "StageDescription.depth_indicator": "Of blocks that follow each other in `skipped_blocks`, only the last so many "
    "may be skipped.",
    "StageDescription.width_indicator": "Only the largest so many widths of each group may be taken; -1: all. The last "
    "stage's holds in the search too.",
    "StageDescription.reorg_weights": "Units are put in order when the stage begins, by `filter_importance` and the "
    "weights as they are then; the optimiser's moments move along. `--importance_weight_dir` orders once, before "
    "training, instead.",
    "StageDescription.init_lr": "Learning rate at the beginning of the stage; -1 or missing: `--learning_rate`.",
    "StageDescription.epochs_lr": "Epochs in which the learning rate falls to zero; missing: `epochs`.",
    "StageDescription.sample_rate": "New subnets are drawn every so many steps, from the first step of the stage on.",
    "StageDescription.reorg_interval": "The same at the beginning of every so many epochs of the stage, the first one "
    "included.",
    "Elasticity.available_elasticity_dims": "What may be elastic at all.",
    "Width.min_width": "Without `overwrite_groups`: the smallest width, in channels.",
    "Width.max_num_widths": "Without `overwrite_groups`: at most so many widths; -1: no limit.",
    "Width.width_step": "Without `overwrite_groups`: widths go down from the full one in such steps.",
    "Width.width_multipliers": "Without `overwrite_groups`: widths are these shares of the full one, floored to a "
    "multiple of 8, instead of steps.",
    "Width.filter_importance": "What `reorg_weights` and `reorg_interval` order by, over a unit's output rows: `L1`, "
    "`L2` (norms), `geometric_median` (distances to the other units), or `external`. Without effect where "
    "`--importance_weight_dir` is given.",
    "Width.external_importance_path": "The scores of `external`: safetensors or a file of `torch.save`, by parameter "
    "or node, summed over rows. They order units once.",
    "Width.overwrite_groups": "Groups of node names that share a width. Missing: one group per elastic dimension of a "
    "layer.",
    "Width.overwrite_groups_widths": "Per group its widths, in channels (heads × head size; of one part of a fused "
    "layer), in any order.",
    "Width.add_dynamic_inputs": "Nodes whose input follows a group. Checked: here every input follows by its labels.",
    "Depth.skipped_blocks": "Blocks that may be skipped, as [start node, end node]. Missing: all blocks of the family.",
    "Depth.fixed_skipped_blocks": "Blocks that are always skipped.",
    "LRParams.base_lr": "One learning rate over all stages, instead of one a stage.",
    "LRParams.num_epochs": "Epochs after which it is zero; missing: those of all stages together.",
    "LRParams.warmup_epochs": "Epochs in which it rises linearly.",
    "LRParams.warmup_lr": "Where the rise begins.",
    "Search.algorithm": "`NSGA2`, `RNSGA2`, or `random`.",
    "Search.num_evals": "Subnets to propose in all, repeats included; rounded down to whole generations.",
    "Search.population": "Subnets of a generation.",
    "Search.seed": "Seed of the algorithm.",
    "Search.crossover_prob": "Probability of simulated binary crossover.",
    "Search.crossover_eta": "Its distribution index: larger keeps children closer to their parents.",
    "Search.mutation_prob": "Probability that an offspring mutates at all; missing: always.",
    "Search.mutation_eta": "Distribution index of polynomial mutation.",
    "Search.acc_delta": "Points of a percent that the best subnet may lose against `ref_acc`.",
    "Search.ref_acc": "Metric that the best subnet is held against, a fraction or, above 1, a percentage; -1 or "
    "missing: the largest subnet's own.",
    "Search.aspiration_points": "RNSGA2: points [MACs in millions, minus the metric] to search near. The metric is a "
    "percentage, or a fraction from -1 to 0.",
    "Search.epsilon": "RNSGA2: subnets nearer to each other than this, relative to the front's extent, count as one.",
    "Search.weights": "RNSGA2: weights of the two objectives in distances; missing: equal.",
    "Search.extreme_points_as_ref_points": "RNSGA2: whether the extremes of a generation are aspired to as well.",
    "Search.eval_metric_name": "Metric to search by, as `--eval_metric_name`: one of the task's, with or without "
    "`eval_`. Missing: the one that the task is selected by.",
    "MovementSparsity.algorithm": "Only `movement_sparsity`.",
    "MovementSparsity.ignored_scopes": "Layers without scores.",
    "MovementSparsity.compression_lr_multiplier": "Factor of the scores' gradients. AdamW's steps do not depend on it, "
    "but for clipping; `--score_learning_rate` changes their pace.",
    "MovementSparsity.target_scopes": "Only these layers have scores; missing: all linear layers.",
    "MovementParams.warmup_start_epoch": "When threshold and penalty begin to rise; fractions are allowed.",
    "MovementParams.warmup_end_epoch": "When they are done, scores are frozen and training ends.",
    "MovementParams.importance_regularization_factor": "Strength of the penalty at the end.",
    "MovementParams.enable_structured_masking": "Whether the frozen masks drop whole units. Training ends there, so "
    "the scores do not depend on it.",
    "MovementParams.power": "How steeply both rise at first.",
    "MovementParams.init_importance_threshold": "The threshold when the rise begins; missing: such that 0.1 % of all "
    "scored entries lie below it.",
    "MovementParams.final_importance_threshold": "The threshold at the end.",
    "SparseStructure.mode": "`fine`: a score per entry; `block`: per block; `per_dim`: per row or column.",
    "SparseStructure.sparse_factors": "[rows, columns] of a block.",
    "SparseStructure.axis": "0: a score per output channel; 1: per input channel.",
    "SparseStructure.target_scopes": "The layers this entry is for; layers that no entry matches are `fine`.",
}


def keys(section: type[Section], path: str) -> Iterator[tuple[str, str, str]]:
    """Yield (key path, default, effect) of every key of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        key = path + (field.alias or name)
        inner = _section_in(field.annotation)
        reason = field.json_schema_extra and field.json_schema_extra[REASON]
        if inner is not None and reason is None:
            yield from keys(inner, f"{key}[]." if _is_list(field.annotation) else f"{key}.")
        elif reason is not None:
            yield key, "", f"*no effect*: {reason}."
        else:
            yield key, _default(section, name), ACTS[f"{section.__name__}.{name}"]


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation holds, possibly in a list or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _is_list(annotation: Any) -> bool:
    return "tuple[" in str(annotation)


def _default(section: type[Section], name: str) -> str:
    value = section.model_fields[name].default
    if section is Search:  # what a file leaves out is left to the search's own settings
        value = next((field.default for field in fields(SearchSettings) if field.name == name), value)
    if value is PydanticUndefined:
        return "required"
    return "" if value is None or value == () else f"`{json.dumps(value)}`"


def table(rows: list[tuple[str, str, str]], root: str) -> str:
    """Return Markdown; keys are shown below `root`."""
    lines = ["| key | default | effect |", "|---|---|---|"]
    lines += [f"| `{key.removeprefix(root)}` | {default} | {effect} |" for key, default, effect in rows]
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return the page with its tables written anew."""
    rows = list(keys(Document, ""))
    known = {f"{section.__name__}.{name}" for section in _sections(Document) for name in section.model_fields}
    assert not ACTS.keys() - known, f"no such key: {ACTS.keys() - known}"
    roots = ("bootstrapNAS.training.", "bootstrapNAS.search.", "compression[].")
    parts = []
    for root in roots:
        parts.append(f"### `{root.rstrip('.')}`\n\n" + table([row for row in rows if row[0].startswith(root)], root))
    parts.append("### Top level\n\n" + table([row for row in rows if not row[0].startswith(roots)], ""))
    before, _, rest = text.partition(START)
    return before + START + "\n\n" + "\n\n".join(parts) + "\n\n" + END + rest.partition(END)[2]


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        inner = _section_in(field.annotation)
        if inner is not None:
            yield from _sections(inner)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
