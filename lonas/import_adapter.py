"""Take over a super-adapter that LoNAS's own code trained (PEFT 0.5), or any LoRA, as one of this project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from bootstrapnas.artefacts import STAGE_FILE, read_json, write_json
from bootstrapnas.errors import UserError, listed
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.integers import WEIGHT_FORMATS, check_weight_format
from bootstrapnas.nncf_config import read_config
from bootstrapnas.pipeline.adapters import ADAPTER_CONFIG, put_adapter, read_adapter
from bootstrapnas.pipeline.arguments import OutputArguments, TaskArguments, flag, required
from bootstrapnas.pipeline.data import data_inputs, resolve_task, task_settings
from bootstrapnas.pipeline.models import SPACE_FILE, fit_length, load_for_task, load_tokenizer, save_tokenizer
from bootstrapnas.pipeline.stages import begin, report_config
from bootstrapnas.pipeline.supernets import DTYPES, SuperAdapter, build_super_adapter, check_base, save_super_adapter
from bootstrapnas.progress import warn
from bootstrapnas.tasks import TASK_FILE
from lonas.train import check_dtype, local_path

# ruff: noqa: UP045

HEADS = ("classifier", "score", "qa_outputs")
"""Modules that peft names in ``modules_to_save`` by the kind of task, whether the model has them or not."""


@dataclass
class ImportArguments:
    """What is taken over."""

    _argument_group_name = "adapter"

    adapter_dir: str = required("Directory with adapter_config.json and adapter_model.safetensors or .bin.")
    nncf_config: Optional[str] = flag(None, "The config that it was trained with; without one, an ordinary LoRA.")
    model_name_or_path: Optional[str] = flag(None, "The base model; default: what adapter_config.json names.")
    base_dtype: str = flag("float32", f"What the base was in in training: {listed(DTYPES)}.")
    base_weight_format: Optional[str] = flag(
        None, f"{listed(WEIGHT_FORMATS)}: the base's linear layers as integers, as those of lonas train are."
    )


_OTHER_KINDS = (
    "rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "use_qalora", "lora_bias", "layer_replication",
    "alora_invocation_tokens", "trainable_token_indices", "target_parameters",
)  # fmt: skip
_BASE_AS_IT_IS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways of initialising an adapter that leave the base model's weights alone."""
GROUPS = (ImportArguments, TaskArguments, OutputArguments)


def run(
    arguments: ImportArguments, task_args: TaskArguments, output: OutputArguments, *, typed: Mapping[str, Any]
) -> Path:
    """Import; return the output directory."""
    path = Path(arguments.adapter_dir) / ADAPTER_CONFIG
    if not path.is_file():
        raise UserError(f"{arguments.adapter_dir} holds no adapter: it has no {ADAPTER_CONFIG}")
    adapters, base = adapters_of(read_json(path), path)
    source = arguments.model_name_or_path or base
    if not source:
        raise UserError(f"{path} names no base model; pass --model_name_or_path")
    if (Path(arguments.adapter_dir) / STAGE_FILE).is_file():
        check_base(arguments.adapter_dir, source)
    elif base and local_path(base) != local_path(source):
        warn(f"{path} names {base} as its base model: {source} must be the same")
    check_dtype(arguments.base_dtype)
    integers = arguments.base_weight_format
    if integers is not None:
        check_weight_format(integers)
    config = None if arguments.nncf_config is None else read_config(arguments.nncf_config)
    if config is not None:
        report_config(config)
    spec = fit_length(resolve_task(task_args, source), typed, source)
    stage = begin(
        "train",
        output.output_dir,
        typed,
        {
            "model": source,
            "adapter": arguments.adapter_dir,
            "nncf_config": arguments.nncf_config,
            **data_inputs(spec),
        },
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return stage.directory
    supernet = build_super_adapter(load_for_task(source, spec, dtype=None), adapters, config, {}, integers)
    put_adapter(supernet.model, read_adapter(arguments.adapter_dir), arguments.adapter_dir)
    about = SuperAdapter(local_path(source), adapters, integers, arguments.base_dtype)
    save_super_adapter(stage.directory, supernet, about, {})
    save_tokenizer(stage.directory, load_tokenizer(source))
    spec.save(stage.directory / TASK_FILE)
    if config is not None:
        write_json(stage.directory / SPACE_FILE, config.raw)
    stage.complete()
    return stage.directory


def adapters_of(found: Mapping[str, Any], path: Path) -> tuple[Adapters, str]:
    """Return the adapters that a PEFT config describes, and the base model that it names.

    Raises
    ------
    UserError
        If it is no plain LoRA with one rank, or its layers are named by a pattern.
    """
    if found.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {found.get('peft_type')!r}, not LORA")
    special = [name for name in _OTHER_KINDS if found.get(name)]
    if special:
        raise UserError(
            f"{path}: a super-adapter is a plain LoRA of one rank and one scale, but {listed(special)} is set"
        )
    if found.get("init_lora_weights", True) not in _BASE_AS_IT_IS:
        raise UserError(
            f"{path}: init_lora_weights {found['init_lora_weights']!r} changed the base model's weights as well; "
            "convert the adapter first (peft's path_initial_model_for_weight_conversion)"
        )
    targets = found.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{path}: target_modules must list layers by name, not {targets!r}")
    within = tuple(dict.fromkeys(_within_layer(target) for target in targets))
    whole = tuple(name for name in found.get("modules_to_save") or () if name.rpartition(".")[2] not in HEADS)
    try:
        dropout = float(found.get("lora_dropout", 0))
        rank, alpha, transposed = int(found["r"]), float(found["lora_alpha"]), bool(found.get("fan_in_fan_out"))
        adapters = Adapters(within, rank, alpha, dropout, whole=whole, transposed=transposed)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: r and lora_alpha must be numbers ({error})") from None
    return adapters, found.get("base_model_name_or_path") or ""


def _within_layer(target: str) -> str:
    """Return what is left of a module's path after the number of its layer; a name without one stays."""
    parts = target.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(parts[number + 1 :])
