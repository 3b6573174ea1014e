"""Turn importance scores into a search space, written as an NNCF config.

One global threshold per target of MACs decides every width; the widths over all targets are the space (EFTNAS).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.errors import UserError
from bootstrapnas.extraction import load_config
from bootstrapnas.importance import IMPORTANCE_FILE, RULES, default_rule, load_importance, width_scores
from bootstrapnas.nncf_config import (
    NNCFConfig,
    NodeNames,
    check_config,
    config_with_space,
    read_config,
    sequence_length,
    write_config,
)
from bootstrapnas.pipeline.arguments import ModelArguments, flag, numbers, required, shares
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.pipeline.export_data import TEXT_LENGTH
from bootstrapnas.pipeline.models import max_length, saved_class
from bootstrapnas.pipeline.stages import check_whole, report_config
from bootstrapnas.progress import notice, warn
from bootstrapnas.space import SearchSpace
from bootstrapnas.space_generation import SpaceReport, generate_space, mac_targets
from bootstrapnas.tasks import TASK_FILE
from eftnas.default_config import default_space_config

# ruff: noqa: UP045


@dataclass
class SpaceArguments:
    """The space to generate."""

    _argument_group_name = "search space"

    importance_weight_dir: str = required("Output of eftnas importance (or its importance.safetensors).")
    target_config: str = required("NNCF config to write.")
    source_config: Optional[str] = flag(
        None,
        "NNCF config to start from; its width and depth entries are written anew. Default: one stage, as long as "
        "eftnas train is told, and EFTNAS's search.",
    )
    max_seq_length: Optional[int] = flag(
        None, "Without --source_config: the tokens that MACs are counted for; default: the task's, or 128."
    )
    num_subnets: int = flag(5, "Number of targets, evenly spaced from the full model down.")
    lowest_macs_ratio: float = flag(0.2, "The lowest target, as a share of the full model's MACs.")
    macs_ratios: Optional[str] = flag(None, "Instead: shares of the full model's MACs, separated by commas.")
    macs_targets: Optional[str] = flag(None, "Instead: targets in millions of MACs, separated by commas.")
    tolerance: float = flag(0.01, "A target missed by more than this share of the full model's MACs is reported.")
    channel_multiple: int = flag(8, "FFN widths, in channels, are multiples of this; 1 is the original.")
    skip_below: float = flag(0.02, "A half-block is skipped where less than this share of its width is left.")
    depth: str = flag(
        "half_blocks",
        "What may be skipped if the config trains depth: half_blocks (attention or FFN; True), layers, none (False).",
    )
    hidden: bool = flag(False, "Vary the hidden size as well, in all layers at once: of decoders.")
    importance_rule: Optional[str] = flag(
        None, f"From weights to units: {', '.join(RULES)}; default: the criterion's (see docs/importance.md)."
    )
    overwrite_target_config: bool = flag(False, "Replace a different target_config.")


GROUPS = (ModelArguments, SpaceArguments)


def run(model_args: ModelArguments, arguments: SpaceArguments, *, typed: Mapping[str, Any]) -> Path:
    """Generate the space; return the path of the config written."""
    source, path = arguments.source_config, Path(arguments.importance_weight_dir)
    if source is not None and arguments.max_seq_length is not None:
        raise UserError("pass either --source_config, whose input_info gives the length, or --max_seq_length")
    if arguments.max_seq_length is not None and arguments.max_seq_length < 1:
        raise UserError(f"--max_seq_length must be at least 1, not {arguments.max_seq_length}")
    if arguments.tolerance < 0:
        raise UserError(f"--tolerance must not be negative, got {arguments.tolerance:g}")
    config = None if source is None else read_config(source)
    check_whole(model_args.model_name_or_path)
    check_whole(arguments.importance_weight_dir)
    beside = path if path.is_dir() else path.parent
    model_config = load_config(model_args.model_name_or_path)
    if (beside / TASK_FILE).is_file():
        spec = inherited_task(str(beside))
        model_config.num_labels = spec.num_labels
        auto_class, usual_length = spec.head.load_class(), spec.max_seq_length
    else:  # scores of the weights alone, of the model as it is saved
        auto_class = saved_class(model_args.model_name_or_path)
        usual_length = int(min(TEXT_LENGTH, max_length(model_config)))
    with torch.device("meta"):
        model = auto_class.from_config(model_config)
    blueprint = Blueprint.of(model)
    if config is None:
        length = arguments.max_seq_length or usual_length
        config = check_config(default_space_config(blueprint, length), "the default config")
    report_config(config)
    scores, metadata = load_importance(path / IMPORTANCE_FILE if path.is_dir() else path, blueprint)
    length = sequence_length(config)
    full = count_macs(blueprint, length=length)
    depth = {"true": "half_blocks", "false": "none"}.get(arguments.depth.lower(), arguments.depth)
    also = {key.dim for key in blueprint.elastic if key.layer is None} if arguments.hidden else set()
    if arguments.hidden and not also:
        raise UserError(f"--hidden: the hidden size of family {blueprint.family.model_type!r} is fixed")
    rule = arguments.importance_rule or default_rule(metadata["criterion"])
    report = generate_space(
        blueprint,
        width_scores(blueprint, scores, rule, also),
        targets_of(arguments, full),
        length=length,
        tolerance=int(arguments.tolerance * full),
        multiple={
            key.dim: arguments.channel_multiple
            for key in blueprint.elastic
            if not blueprint.is_block(key) and blueprint.channels_per_unit(key) == 1
        },
        skip_below=arguments.skip_below,
        # A config without depth keeps all blocks; one that was asked for by name is then an error.
        depth=depth if "depth" in typed or config.training.is_elastic("depth") else "none",
    )
    describe(report, full)
    target = Path(arguments.target_config)
    written = config_with_space(uncut(config, report.space), blueprint, NodeNames.of(model), report.space)
    if target.exists() and not arguments.overwrite_target_config and not _holds(target, written):
        raise UserError(f"target_config {target} holds something else; pass --overwrite_target_config to replace it")
    write_config(target, written)
    return target


def uncut(config: NNCFConfig, space: SearchSpace) -> dict[str, Any]:
    """Return the config's content with a last stage that takes every width of `space`.

    A ``width_indicator`` below the number of widths would leave out the smallest ones, and so the lowest target.
    """
    raw, stages = copy.deepcopy(dict(config.raw)), config.training.stages
    if not stages or space.limited(stages[-1].width_indicator) == space:
        return raw
    listed = [stage.model_dump(mode="json", exclude_unset=True) for stage in stages]
    listed[-1]["width_indicator"] = -1
    raw["bootstrapNAS"]["training"].setdefault("schedule", {})["list_stage_descriptions"] = listed
    before = stages[-1].width_indicator
    notice(f"search-space: width_indicator {before} of the last stage becomes -1, so that no width is left out")
    return raw


def targets_of(arguments: SpaceArguments, full: int) -> tuple[int, ...]:
    """Return the targets in MACs that the flags ask for."""
    if arguments.macs_targets is not None and arguments.macs_ratios is not None:
        raise UserError("pass either --macs_targets or --macs_ratios")
    if arguments.macs_targets is not None:
        targets = tuple(int(1e6 * value) for value in numbers("macs_targets", arguments.macs_targets))
        if min(targets) >= full:
            raise UserError(
                f"the lowest of --macs_targets, {min(targets) / 1e6:,.0f} M, is not below the full model's "
                f"{full / 1e6:,.0f} M MACs: the space would hold the full model only"
            )
        return targets
    if arguments.macs_ratios is not None:
        return tuple(int(full * ratio) for ratio in shares("macs_ratios", arguments.macs_ratios))
    return mac_targets(full, arguments.lowest_macs_ratio, arguments.num_subnets)


def describe(report: SpaceReport, full: int) -> None:
    """Print what each target came to and how large the space is."""
    for note in report.notes:
        warn(note)
    for found in report.subnets:
        skipped = sum(size == 0 for size in found.subnet.values())
        blocks = f", {skipped} {'block' if skipped == 1 else 'blocks'} skipped" if skipped else ""
        millions = found.macs / 1e6
        shown = f"{millions:,.0f}" if millions >= 100 else f"{millions:.3g}"
        notice(f"search-space: {shown} M MACs ({found.macs / full:.1%}){blocks}")
    free = sum(count > 1 for count in report.space.cardinalities)
    notice(f"search-space: {free} genes with a choice, {float(report.space.num_subnets):.1e} subnets")


def _holds(target: Path, written: Mapping[str, Any]) -> bool:
    try:
        return read_config(target).raw == written
    except UserError:
        return False
