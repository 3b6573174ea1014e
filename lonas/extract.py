"""Write one subnet of a super-adapter as a smaller base and a smaller ordinary adapter, or as one merged model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from transformers import PreTrainedModel

from bootstrapnas.artefacts import read_json, write_json
from bootstrapnas.costs import FULL, count_costs
from bootstrapnas.errors import UserError, listed
from bootstrapnas.extraction import SUBNET_FILE
from bootstrapnas.integers import round_to_integers
from bootstrapnas.nncf_config import sequence_length
from bootstrapnas.pipeline.adapters import ADAPTER_CONFIG, layer_linears, merge_adapter, save_adapter
from bootstrapnas.pipeline.arguments import OutputArguments, flag
from bootstrapnas.pipeline.card import write_first_card, write_searched_card
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.pipeline.deployed import Deployed, merge
from bootstrapnas.pipeline.extract import ExtractArguments, begin_extraction, choose, words_of, write_subnet
from bootstrapnas.pipeline.models import cast_parameters, load_for_task, load_tokenizer, save_artefact
from bootstrapnas.pipeline.search.objectives import ConstraintArguments
from bootstrapnas.pipeline.stages import METRICS_FILE, begin
from bootstrapnas.pipeline.supernets import (
    DTYPES,
    check_base,
    load_orders,
    load_super_adapter,
    read_space,
    read_super_adapter,
    read_trained,
)
from bootstrapnas.progress import notice
from lonas.train import check_dtype, local_path

# ruff: noqa: UP045

BASE, ADAPTER = "base", "adapter"
APART = ("base_dtype", "base_weight_format", "costs_merged", "full_costs_merged")
"""What the file of a subnet says of a base beside its adapter: how it was trained, what the merged model will cost."""


@dataclass
class AdapterExtractArguments(ExtractArguments):
    """Which subnet of which super-adapter."""

    _argument_group_name = "subnet"

    model_name_or_path: Optional[str] = flag(None, "Where the base model is; default: where it was in training.")
    merge: bool = flag(
        False, "Add the adapter to the base's weights: one model instead of two directories. Of an ordinary LoRA, too."
    )
    merged_dtype: Optional[str] = flag(
        None, f"Of merge, which adds in float32: what the sums are rounded to, {listed(DTYPES)}; default: the base's."
    )


GROUPS = (AdapterExtractArguments, ConstraintArguments, OutputArguments)


def run(
    arguments: AdapterExtractArguments,
    bounds: ConstraintArguments,
    output: OutputArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Extract; return the output directory."""
    if arguments.merged_dtype is not None:
        if not arguments.merge:
            raise UserError("--merged_dtype is for --merge True")
        check_dtype(arguments.merged_dtype, "merged_dtype")
    if read_trained(arguments.supernet_dir, "finetune")["stage"] == "finetune":
        return merge_finetuned(arguments, bounds, output, typed)
    config = read_space(arguments.supernet_dir)
    if config is None:
        check_lora(arguments, bounds)
    chosen_by = "all of an ordinary LoRA" if config is None else words_of(arguments.subnet, bounds)
    stage = begin_extraction(arguments, output, typed)
    if stage.finished:
        return stage.directory
    spec, about = inherited_task(arguments.supernet_dir), read_super_adapter(arguments.supernet_dir)
    supernet = load_super_adapter(arguments.supernet_dir, spec, config, None, base=arguments.model_name_or_path)
    length = spec.max_seq_length if config is None else sequence_length(config)
    subnet, values = ({}, None) if config is None else choose(arguments, bounds, supernet, length)

    deployed = Deployed(
        arguments.supernet_dir, spec, supernet, merged=arguments.merge, base=arguments.model_name_or_path
    )
    parts, tokenizer = deployed.parts(subnet), load_tokenizer(arguments.supernet_dir)
    if arguments.merge:
        merged = rounded(merge(parts, about.adapters), arguments, deployed.dtype)
        save_artefact(stage.directory, merged, tokenizer, spec)
        dtype = str(merged.dtype).removeprefix("torch.")
        told = f"the merged weights are those of the base in {about.weight_format}, as trained, in {dtype}"
    else:
        where = stage.directory / BASE
        if not all("lora_" in name for name in parts.tensors):  # what was trained whole is in float32: so is the rest
            parts.base.float()
        save_artefact(where, parts.base, tokenizer, spec)
        architecture, adapter = deployed.blueprint.architecture, stage.directory / ADAPTER
        if parts.ranks:
            save_adapter(adapter, local_path(str(where)), architecture, about.adapters, parts.tensors, parts.ranks)
        else:
            notice(f"extract: no layer with an adapter is left, so {BASE}/ is the whole subnet")
        told = f"{BASE}/ holds the weights as they were before training rounded them to {about.weight_format}"
    if about.weight_format is not None:
        notice(f"extract: {told}")

    costs, full = (count_costs(supernet.blueprint, each, length=length) for each in (subnet, FULL))
    small = count_costs(deployed.blueprint, deployed.part(subnet), length=length)
    whole = count_costs(deployed.blueprint, FULL, length=length)
    kept, all_of_it = (small, whole) if arguments.merge else (costs, full)
    apart = dict(zip(APART, (about.base_dtype, about.weight_format, asdict(small), asdict(whole)), strict=True))
    origin = {"super_adapter": {"base": about.base, "reordered": bool(load_orders(arguments.supernet_dir))}}
    more = origin if arguments.merge else origin | apart
    write_subnet(stage, supernet.blueprint, subnet, kept, all_of_it, values, chosen_by, **more)
    if arguments.merge and config is not None:
        write_searched_card(stage.directory, values, arguments.search_dir)
    notice(
        f"extract: {small.macs / whole.macs:.1%} of the base model's MACs, {small.params / whole.params:.1%} of its "
        f"parameters; adapters of {costs.params - small.params:,} parameters, of {full.params - whole.params:,}"
    )
    stage.complete(macs=kept.macs, params=kept.params)
    return stage.directory


def merge_finetuned(
    arguments: AdapterExtractArguments,
    bounds: ConstraintArguments,
    output: OutputArguments,
    typed: Mapping[str, Any],
) -> Path:
    """Write a subnet whose adapter `lonas finetune` has trained as one merged model; return the output directory."""
    directory = Path(arguments.supernet_dir)
    if not (directory / ADAPTER_CONFIG).is_file():
        raise UserError(f"{directory} holds no adapter: it is one model already")
    check_lora(arguments, bounds)
    stage = begin(
        "extract", output.output_dir, typed, {"supernet": str(directory)}, overwrite=output.overwrite_output_dir
    )
    if stage.finished:
        return stage.directory
    subnet = read_json(directory / SUBNET_FILE)
    apart = {name: subnet.pop(name) for name in APART}
    spec = inherited_task(str(directory))
    base = arguments.model_name_or_path or read_json(directory / ADAPTER_CONFIG)["base_model_name_or_path"]
    check_base(str(directory), base)
    model = load_for_task(base, spec, dtype=None)
    dtype = model.dtype
    if apart["base_weight_format"] is not None:
        round_to_integers(model.float(), layer_linears(model), apart["base_weight_format"])
    merged = rounded(merge_adapter(model, directory), arguments, dtype)
    save_artefact(stage.directory, merged, load_tokenizer(str(directory)), spec)
    costs = {name: apart[f"{name}_merged"] for name in ("costs", "full_costs")}
    write_json(stage.directory / SUBNET_FILE, subnet | costs)
    metrics = read_json(directory / METRICS_FILE)
    measured = {name: metrics[name] for name in metrics.keys() & {spec.metric}}
    write_first_card(stage.directory, measured, "The metric is that of the validation split, after fine-tuning.")
    stage.complete(**{name: costs["costs"][name] for name in ("macs", "params")})
    return stage.directory


def rounded(merged: PreTrainedModel, arguments: AdapterExtractArguments, base: torch.dtype) -> PreTrainedModel:
    """Return a merged model in the dtype that flags name, or that of its base."""
    name = arguments.merged_dtype
    cast_parameters(merged.parameters(), base if name is None else DTYPES[name])
    return merged


def check_lora(arguments: AdapterExtractArguments, bounds: ConstraintArguments) -> None:
    """Raise `UserError` unless all that is asked for of an ordinary LoRA is to merge it."""
    where = arguments.supernet_dir
    flags = {"subnet": arguments.subnet, "search_dir": arguments.search_dir, **vars(bounds)}
    named = [f"--{name} {value}" for name, value in flags.items() if value is not None]
    if named:
        raise UserError(f"{named[0]}: {where} is an ordinary LoRA, which has no subnets")
    if not arguments.merge:
        raise UserError(
            f"{where} is an ordinary LoRA, which has no subnets to extract: it is an adapter of its base as it is; "
            "--merge True adds it to the base's weights"
        )
