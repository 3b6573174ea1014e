"""Measure the task metric of one subnet of a super-adapter, or of an ordinary LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch

from bootstrapnas.costs import count_costs
from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config import sequence_length
from bootstrapnas.pipeline.arguments import TaskArguments, flag, required
from bootstrapnas.pipeline.data import Rows, check_split, check_writing, resolve_task
from bootstrapnas.pipeline.extract import ExtractArguments, choose
from bootstrapnas.pipeline.harness import harness_tasks, measure_by_harness
from bootstrapnas.pipeline.models import evaluate_model, load_tokenizer
from bootstrapnas.pipeline.search.objectives import ConstraintArguments
from bootstrapnas.pipeline.supernets import computing, evaluation_dtypes, load_super_adapter, read_space, read_trained

# ruff: noqa: UP045


@dataclass
class EvaluateArguments:
    """What to evaluate."""

    _argument_group_name = "evaluation"

    supernet_dir: str = required("Output of lonas train.")
    subnet: str = flag(
        "heuristic",
        "heuristic, max, min, frequent or lowest_loss (of what training drew), best, an index on the front, or a JSON "
        "file of sizes.",
    )
    search_dir: Optional[str] = flag(None, "Output of lonas search; needed for best or an index.")
    split: str = flag("validation", "validation, test or train.")
    precision: Optional[str] = flag(
        None,
        "float32, bfloat16, or auto (bfloat16 where the hardware has it, else as trained); default: as trained, in "
        "float32 but for a base with --base_dtype.",
    )
    eval_batch_size: int = flag(64, "Rows of a batch.")
    merge_adapters: bool = flag(False, "Evaluate with the adapters added to a copy of the weights; faster.")
    model_name_or_path: Optional[str] = flag(None, "Where the base model is; default: where it was in training.")
    lm_eval: Optional[str] = flag(
        None, "Instead of the task, tasks of lm-evaluation-harness, separated by commas: hellaswag,arc_easy."
    )


GROUPS = (EvaluateArguments, TaskArguments)


def run(arguments: EvaluateArguments, task_args: TaskArguments, *, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate; print and return the metrics and the subnet's costs."""
    check_split(arguments.split)
    read_trained(arguments.supernet_dir)
    spec = resolve_task(task_args, arguments.supernet_dir)
    check_writing(task_args, spec)
    harness = None if arguments.lm_eval is None else harness_tasks(arguments.lm_eval, spec)
    config = read_space(arguments.supernet_dir)
    if config is None and "subnet" in typed:
        where = arguments.supernet_dir
        raise UserError(f"--subnet {arguments.subnet}: {where} is an ordinary LoRA, which has no subnets")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = evaluation_dtypes(arguments.supernet_dir, arguments.precision, device)
    supernet = load_super_adapter(arguments.supernet_dir, spec, config, *dtypes, arguments.model_name_or_path)
    length = spec.max_seq_length if config is None else sequence_length(config)
    subnet = {}
    if config is not None:
        chosen = ExtractArguments(arguments.supernet_dir, arguments.search_dir, arguments.subnet)
        subnet = choose(chosen, ConstraintArguments(), supernet, length)[0]
    tokenizer, batch_size = load_tokenizer(arguments.supernet_dir), arguments.eval_batch_size
    most = task_args.max_eval_samples
    supernet.model.to(device)
    with computing(supernet, subnet, merge=arguments.merge_adapters):
        metrics: dict[str, Any] = (
            dict(evaluate_model(supernet.model, Rows(spec, tokenizer, batch_size, most), arguments.split))
            if harness is None
            else measure_by_harness(supernet.model, tokenizer, harness, batch_size=batch_size, limit=most)
        )
    result = {**metrics, "costs": asdict(count_costs(supernet.blueprint, subnet, length=length))}
    print(json.dumps(result, indent=2))
    return result
