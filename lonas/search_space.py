"""Write a search space of a super-adapter, as an NNCF config, from the labels of a model alone."""

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
from bootstrapnas.nncf_config import NodeNames, config_with_space, format_config, one_stage_config
from bootstrapnas.pipeline.arguments import flag, numbers, required, shares
from bootstrapnas.progress import notice
from bootstrapnas.space_generation import DEPTHS
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
    depth: str = flag(
        "none", f"What may be skipped: {', '.join(DEPTHS)}; half_blocks are the attention or the FFN of any layer."
    )
    max_seq_length: int = flag(256, "Tokens that MACs are counted for.")
    overwrite: bool = flag(False, "Replace a target_config that is there.")


GROUPS = (SpaceArguments,)


def run(arguments: SpaceArguments, *, typed: Mapping[str, Any]) -> Path:
    """Write the config; return its path."""
    path = Path(arguments.target_config)
    if path.exists() and not arguments.overwrite:
        raise UserError(f"{path} exists; pass --overwrite True, or choose another --target_config")
    targets = tuple(part.strip() for part in arguments.target_modules.split(",") if part.strip())
    ranks = [arguments.lora_r, max(1, arguments.lora_r * 7 // 8)]
    if arguments.ranks is not None:
        ranks = [int(rank) if rank.is_integer() else 0 for rank in numbers("ranks", arguments.ranks)]
    if not all(1 <= rank <= arguments.lora_r for rank in ranks):
        raise UserError(f"--ranks must be whole numbers from 1 to --lora_r {arguments.lora_r}, not {arguments.ranks}")
    config = load_config(arguments.model_name_or_path)
    family = family_of(config)
    targets = targets or default_targets(family)
    raw = space_config(
        config,
        Adapters(targets, arguments.lora_r, transposed=is_transposed(family, targets)),
        ranks=ranks,
        ffn_shares=shares("ffn_shares", arguments.ffn_shares),
        head_shares=shares("head_shares", arguments.head_shares),
        length=arguments.max_seq_length,
        depth=arguments.depth,
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
) -> dict[str, Any]:
    """Return the NNCF config of a model's super-adapter space, with the search published for LoNAS."""
    model = skeleton(config)
    blueprint = Blueprint.of(model, add_adapters(model, adapters))
    space = adapter_space(blueprint, ranks=ranks, ffn_shares=ffn_shares, head_shares=head_shares, depth=depth)
    dims = ["width"] if depth == "none" else ["width", "depth"]
    raw = one_stage_config(dims, length, {"algorithm": "NSGA2", "num_evals": 200, "population": 8})
    raw["bootstrapNAS"]["training"]["sandwich_rule"] = False
    full, least = (count_macs(blueprint, space.subnet(g), length=length) for g in (space.max_genome, space.min_genome))
    notice(f"search-space: {len(space)} groups, {space.num_subnets:.2g} subnets from {least / full:.0%} of the MACs")
    return config_with_space(raw, blueprint, NodeNames.of(model), space)


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
