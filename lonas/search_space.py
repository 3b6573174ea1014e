"""Write a search space of a super-adapter, as an NNCF config: from a model's labels, or from what a LoRA has learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from bootstrapnas.adapters import add_adapters
from bootstrapnas.artefacts import write_text
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.errors import UserError
from bootstrapnas.extraction import load_config
from bootstrapnas.families import Family, family_of
from bootstrapnas.families.adapted import Adapters, is_transposed
from bootstrapnas.importance import RULES, width_scores
from bootstrapnas.nncf_config import NodeNames, config_with_space, format_config, one_stage_config
from bootstrapnas.pipeline.adapters import merge_adapter
from bootstrapnas.pipeline.arguments import StageTrainingArguments, flag, numbers, required, shares
from bootstrapnas.pipeline.calibration import calibrated_scores
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer, settle_padding
from bootstrapnas.pipeline.supernets import check_base, read_super_adapter, read_trained
from bootstrapnas.progress import notice, warn
from bootstrapnas.space import SearchSpace
from bootstrapnas.space_generation import DEPTHS, generate_space
from lonas.spaces import adapter_space

# ruff: noqa: UP045


@dataclass
class SpaceArguments:
    """The model and its space."""

    _argument_group_name = "search space"

    model_name_or_path: str = required("Hub id, or a local directory; its config is enough.")
    target_config: str = required("The file to write.")
    lora_r: int = flag(8, "The largest rank.")
    target_modules: str = flag("", "Linear layers with adapters, separated by commas; default: see docs/lonas.md.")
    ranks: Optional[str] = flag(None, "Ranks to choose from; default: all and 7/8 of --lora_r.")
    ffn_shares: str = flag("1,0.875,0.75,0.625,0.5", "Shares of the feed-forward width to choose from.")
    head_shares: str = flag("1", "Shares of the heads, or key-value heads, to choose from.")
    adapter_dir: Optional[str] = flag(
        None,
        "Output of lonas train, such as an ordinary LoRA: widths come from the importance of units in the model with "
        "its adapters, by one threshold for each of --macs_ratios, instead of from shares.",
    )
    importance: str = flag("gate", "With --adapter_dir: the criterion.")
    importance_rule: str = flag("sum", f"With --adapter_dir: from weights to units: {', '.join(RULES)}.")
    importance_batches: int = flag(32, "With --adapter_dir: batches of training rows that the criterion sees.")
    macs_ratios: str = flag("1,0.9,0.8,0.7,0.6,0.5", "With --adapter_dir: shares of the base model's MACs.")
    depth: str = flag(
        "none", f"What may be skipped: {', '.join(DEPTHS)}; half_blocks are the attention or the FFN of any layer."
    )
    max_seq_length: int = flag(256, "Tokens that MACs are counted for.")
    seed: int = flag(42, "With --adapter_dir: which training rows the criterion sees.")
    overwrite: bool = flag(False, "Replace a target_config that is there.")


GROUPS = (SpaceArguments,)
OF_IMPORTANCE = ("importance", "importance_rule", "importance_batches", "macs_ratios", "seed")
"""Flags that say something with ``--adapter_dir`` alone."""


def run(arguments: SpaceArguments, *, typed: Mapping[str, Any]) -> Path:
    """Write the config; return its path."""
    path = Path(arguments.target_config)
    if path.exists() and not arguments.overwrite:
        raise UserError(f"{path} exists; pass --overwrite True, or choose another --target_config")
    check_flags(typed)
    targets = tuple(part.strip() for part in arguments.target_modules.split(",") if part.strip())
    about = None
    if arguments.adapter_dir is not None:
        read_trained(arguments.adapter_dir)
        about = read_super_adapter(arguments.adapter_dir, arguments.model_name_or_path)
        check_base(arguments.adapter_dir, arguments.model_name_or_path)
        if about.weight_format is not None:
            raise UserError(
                f"--adapter_dir {arguments.adapter_dir}: widths of a base in {about.weight_format} stay whole"
            )
        targets, arguments.lora_r = about.adapters.targets, about.adapters.rank
    ranks = [arguments.lora_r, max(1, arguments.lora_r * 7 // 8)]
    if arguments.ranks is not None:
        ranks = [int(rank) if rank.is_integer() else 0 for rank in numbers("ranks", arguments.ranks)]
    if not all(1 <= rank <= arguments.lora_r for rank in ranks):
        raise UserError(f"--ranks must be whole numbers from 1 to --lora_r {arguments.lora_r}, not {arguments.ranks}")
    if about is not None and max(ranks) < about.adapters.rank:
        warn(f"--ranks leaves out {about.adapters.rank}, the rank of {arguments.adapter_dir}: no subnet has all of it")
    config = load_config(arguments.model_name_or_path)
    family = family_of(config)
    targets = targets or default_targets(family)
    widths = None if about is None else important_widths(arguments)
    raw = space_config(
        config,
        Adapters(targets, arguments.lora_r, transposed=is_transposed(family, targets)),
        ranks=ranks,
        ffn_shares=shares("ffn_shares", arguments.ffn_shares),
        head_shares=shares("head_shares", arguments.head_shares),
        length=arguments.max_seq_length,
        depth=arguments.depth,
        widths=widths,
    )
    write_text(path, format_config(raw))
    notice(f"search-space: written to {path}")
    return path


def space_config(
    config: PreTrainedConfig,
    adapters: Adapters,
    *,
    ranks: Sequence[int],
    ffn_shares: Sequence[float],
    head_shares: Sequence[float],
    length: int,
    depth: str = "none",
    widths: SearchSpace | None = None,
) -> dict[str, Any]:
    """Return the NNCF config of a model's super-adapter space, with the search published for LoNAS.

    `widths` are widths and blocks of the base model, instead of those that shares and depth say.
    """
    model = skeleton(config)
    blueprint = Blueprint.of(model, add_adapters(model, adapters))
    if widths is None:
        space = adapter_space(blueprint, ranks=ranks, ffn_shares=ffn_shares, head_shares=head_shares, depth=depth)
    else:
        space = SearchSpace((*adapter_space(blueprint, ranks=ranks).genes, *widths.genes))
        space.check(blueprint)
    dims = ["width"] if depth == "none" else ["width", "depth"]
    raw = one_stage_config(dims, length, {"algorithm": "NSGA2", "num_evals": 200, "population": 8})
    raw["bootstrapNAS"]["training"]["sandwich_rule"] = False
    full, least = (count_macs(blueprint, space.subnet(g), length=length) for g in (space.max_genome, space.min_genome))
    notice(f"search-space: {len(space)} groups, {space.num_subnets:.2g} subnets from {least / full:.0%} of the MACs")
    return config_with_space(raw, blueprint, NodeNames.of(model), space)


def check_flags(typed: Mapping[str, Any]) -> None:
    """Raise `UserError` if flags are typed that say nothing with, or without, ``--adapter_dir``."""
    given = typed.get("adapter_dir") is not None
    for name in ("ffn_shares", "head_shares", "lora_r", "target_modules") if given else OF_IMPORTANCE:
        if name in typed:
            raise UserError(
                f"--{name} says nothing with --adapter_dir: the adapters and the importance of units decide"
                if given
                else f"--{name} needs --adapter_dir, of which model it tells the importance of units"
            )


def important_widths(arguments: SpaceArguments) -> SearchSpace:
    """Return the widths and blocks that a threshold for each target leaves of a model with its adapter (EFTNAS)."""
    directory = str(arguments.adapter_dir)
    spec = inherited_task(directory)
    tokenizer = load_tokenizer(directory)
    base = load_for_task(arguments.model_name_or_path, spec)
    settle_padding(base, tokenizer)
    model = merge_adapter(base, directory)
    training = StageTrainingArguments(output_dir=directory, seed=arguments.seed)
    rows = Rows(spec, tokenizer)
    scores = calibrated_scores(arguments.importance, model, rows, arguments.importance_batches, training)
    blueprint, length = Blueprint.of(model), arguments.max_seq_length
    full = count_macs(blueprint, length=length)
    report = generate_space(
        blueprint,
        width_scores(blueprint, scores, arguments.importance_rule),
        [int(full * ratio) for ratio in shares("macs_ratios", arguments.macs_ratios)],
        length=length,
        depth=arguments.depth,
    )
    for note in report.notes:
        warn(note)
    return report.space


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model of a config without weights: a language model, or with a classification head."""
    causal = any(name.endswith("ForCausalLM") for name in family_of(config).architectures)
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False)


def default_targets(family: Family) -> tuple[str, ...]:
    """Return the linear layers that have adapters if nobody says which: all but those that read the heads' outputs."""
    heads = {dim for attention in family.attention for dim in attention.heads.split()}
    return tuple(
        name.removesuffix(".weight")
        for name, labels in family.layer.items()
        if labels.applied and not heads.intersection(labels.inputs.split())
    )
