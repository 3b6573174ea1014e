"""Write one subnet of a super-adapter as a smaller base and a smaller ordinary adapter, or as one merged model."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from bootstrapnas.adapters import base_linears, base_subnet, extract_adapters
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import FULL, count_costs
from bootstrapnas.extraction import extract, extracted_name
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.integers import round_to_integers
from bootstrapnas.nncf_config import sequence_length
from bootstrapnas.pipeline.arguments import OutputArguments, flag
from bootstrapnas.pipeline.card import write_first_card
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.pipeline.extract import ExtractArguments, begin_extraction, choose, words_of, write_subnet
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer, save_artefact, settle_padding
from bootstrapnas.pipeline.objectives import ConstraintArguments
from bootstrapnas.pipeline.supernets import load_orders, load_supernet, read_super_adapter, save_adapter, trained_whole
from bootstrapnas.progress import notice
from bootstrapnas.reorder import reorder
from lonas.train import local_path

BASE, ADAPTER = "base", "adapter"


@dataclass
class AdapterExtractArguments(ExtractArguments):
    """Which subnet of which super-adapter."""

    _argument_group_name = "subnet"

    merge: bool = flag(False, "Add the adapter to the base's weights: one model instead of two directories.")


GROUPS = (AdapterExtractArguments, ConstraintArguments, OutputArguments)


def run(
    arguments: AdapterExtractArguments,
    bounds: ConstraintArguments,
    output: OutputArguments,
    *,
    typed: Mapping[str, Any],
) -> Path:
    """Extract; return the output directory."""
    chosen_by = words_of(arguments.subnet, bounds)
    stage = begin_extraction(arguments, output, typed)
    if stage.finished:
        return stage.directory
    spec, about = inherited_task(arguments.supernet_dir), read_super_adapter(arguments.supernet_dir)
    supernet, config = load_supernet(arguments.supernet_dir, spec)
    length = sequence_length(config)
    subnet, values = choose(arguments, bounds, supernet, length)

    tensors, ranks = extract_adapters(supernet.blueprint, dict(supernet.model.named_parameters()), subnet)
    beside = trained_whole(supernet.model, about.adapters.whole)
    tokenizer = load_tokenizer(arguments.supernet_dir)
    plain = load_for_task(about.base, spec)
    settle_padding(plain, tokenizer)
    blueprint = Blueprint.of(plain)
    reorder(plain, blueprint, load_orders(arguments.supernet_dir))
    plain.load_state_dict(beside, strict=False)
    if about.weight_format is not None:
        if arguments.merge:
            round_to_integers(plain, base_linears(blueprint), about.weight_format)
        told = (
            f"the merged weights are those of the base in {about.weight_format}, as trained, in float32"
            if arguments.merge
            else f"{BASE}/ holds the weights as they were before training rounded them to {about.weight_format}"
        )
        notice(f"extract: {told}")
    smaller = base_subnet(supernet.blueprint, subnet)
    base = extract(plain, blueprint, smaller)
    name_of = partial(extracted_name, base, blueprint, smaller)
    tensors = {name_of(name): tensor for name, tensor in tensors.items()}
    ranks = {name_of(module): rank for module, rank in ranks.items()}
    tensors |= {name: parameter for name, parameter in base.named_parameters() if name in beside}
    if arguments.merge:
        save_artefact(stage.directory, merged(base, about.adapters, tensors, ranks), tokenizer, spec)
    else:
        save_artefact(stage.directory / BASE, base, tokenizer, spec)
        where = local_path(str(stage.directory / BASE))
        save_adapter(stage.directory / ADAPTER, where, blueprint.architecture, about.adapters, tensors, ranks)

    costs, full = (count_costs(supernet.blueprint, each, length=length) for each in (subnet, FULL))
    small = count_costs(blueprint, smaller, length=length)
    whole = count_costs(blueprint, FULL, length=length)
    kept, all_of_it = (small, whole) if arguments.merge else (costs, full)
    write_subnet(stage, supernet.blueprint, subnet, kept, all_of_it, values, chosen_by)
    if arguments.merge:
        measured = {name: value for name, value in (values or {}).items() if name == spec.metric}
        write_first_card(stage.directory, measured, "The metric is the search's, on the validation split.")
    notice(
        f"extract: {small.macs / whole.macs:.1%} of the base model's MACs, {small.params / whole.params:.1%} of its "
        f"parameters; adapters of {costs.params - small.params:,} parameters, of {full.params - whole.params:,}"
    )
    stage.complete(macs=small.macs, params=small.params)
    return stage.directory


def merged(
    base: PreTrainedModel, adapters: Adapters, tensors: Mapping[str, Tensor], ranks: Mapping[str, int]
) -> PreTrainedModel:
    """Return a model with an adapter added to its weights, by peft."""
    with tempfile.TemporaryDirectory() as directory:
        save_adapter(Path(directory), "", "", adapters, tensors, ranks)
        with warnings.catch_warnings():  # peft reads a property that transformers deprecates
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return PeftModel.from_pretrained(base, directory).merge_and_unload()
