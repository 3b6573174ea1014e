"""Write one subnet of a super-adapter as a smaller base and a smaller ordinary adapter, or as one merged model."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from bootstrapnas.adapters import base_subnet, extract_adapters
from bootstrapnas.artefacts import FORMAT, read_stage, write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import FULL, count_costs
from bootstrapnas.dims import subnet_to_json
from bootstrapnas.extraction import SUBNET_FILE, extract
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.nncf_config import sequence_length
from bootstrapnas.pipeline.arguments import OutputArguments, flag, required
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.pipeline.extract import ExtractArguments, choose, words_of
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer, save_artefact
from bootstrapnas.pipeline.objectives import ConstraintArguments
from bootstrapnas.pipeline.stages import begin
from bootstrapnas.pipeline.supernets import load_orders, load_supernet, read_super_adapter, save_adapter, task_head
from bootstrapnas.progress import notice
from bootstrapnas.reorder import reorder

# ruff: noqa: UP045

BASE, ADAPTER = "base", "adapter"


@dataclass
class AdapterExtractArguments:
    """Which subnet of which super-adapter."""

    _argument_group_name = "subnet"

    supernet_dir: str = required("Output of lonas train.")
    search_dir: Optional[str] = flag(None, "Output of lonas search; needed for best, an index or bounds.")
    subnet: Optional[str] = flag(
        None,
        "best, max, min, heuristic, an index on the search's front, or a JSON file of sizes per layer. Instead, "
        "bounds: the subnet on the front with the best metric that keeps them; with min_metric the cheapest.",
    )
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
    read_stage(arguments.supernet_dir, "train")
    subnet_file = arguments.subnet if arguments.subnet and Path(arguments.subnet).is_file() else None
    stage = begin(
        "extract",
        output.output_dir,
        typed,
        {"supernet": arguments.supernet_dir, "search": arguments.search_dir, "subnet": subnet_file},
        overwrite=output.overwrite_output_dir,
    )
    if stage.finished:
        return stage.directory
    spec, about = inherited_task(arguments.supernet_dir), read_super_adapter(arguments.supernet_dir)
    supernet, config = load_supernet(arguments.supernet_dir, spec)
    length = sequence_length(config)
    chosen = ExtractArguments(arguments.supernet_dir, arguments.search_dir, arguments.subnet)
    subnet, values = choose(chosen, bounds, supernet, length)

    tensors, ranks = extract_adapters(supernet.blueprint, dict(supernet.model.named_parameters()), subnet)
    head = task_head(supernet.model)
    plain = load_for_task(about.base, spec)
    blueprint = Blueprint.of(plain)
    reorder(plain, blueprint, load_orders(arguments.supernet_dir))
    plain.load_state_dict(head, strict=False)
    base = extract(plain, blueprint, base_subnet(supernet.blueprint, subnet))
    tokenizer = load_tokenizer(arguments.supernet_dir)
    if arguments.merge:
        save_artefact(stage.directory, merged(base, about.adapters, {**tensors, **head}, ranks), tokenizer, spec)
    else:
        save_artefact(stage.directory / BASE, base, tokenizer, spec)
        where = stage.directory / BASE
        save_adapter(stage.directory / ADAPTER, str(where), about.adapters, {**tensors, **head}, ranks)

    costs, full = (count_costs(supernet.blueprint, each, length=length) for each in (subnet, FULL))
    small = count_costs(blueprint, base_subnet(supernet.blueprint, subnet), length=length)
    whole = count_costs(blueprint, FULL, length=length)
    write_json(
        stage.directory / SUBNET_FILE,
        {
            "format": FORMAT,
            "sizes": subnet_to_json(supernet.blueprint.complete(subnet)),
            "costs": asdict(small if arguments.merge else costs),
            "full_costs": asdict(whole if arguments.merge else full),
            "search_values": values,
            "chosen_by": chosen_by,
            "supernet": stage.inputs["supernet"],
            "search": stage.inputs.get("search"),
        },
    )
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
        save_adapter(Path(directory), "", adapters, tensors, ranks)
        with warnings.catch_warnings():  # peft reads a property that transformers deprecates
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return PeftModel.from_pretrained(base, directory).merge_and_unload()
