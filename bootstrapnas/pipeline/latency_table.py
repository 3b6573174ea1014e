"""Measure once what the parts of a model's layers take on this device; searches then add up the latency of any subnet.

The same command goes on with a table that is unfinished, and adds what another search space needs besides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from bootstrapnas.artefacts import STAGE_FILE, OtherRunError, holding, writing
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError, listed
from bootstrapnas.export import WEIGHT_FORMATS
from bootstrapnas.export.latency_build import (
    circumstances_of,
    complete_latency_table,
    models_to_measure,
    open_latency_table,
    openvino_timer,
)
from bootstrapnas.export.latency_table import Circumstances, LatencyTable, OtherTableError, extends
from bootstrapnas.extraction import load_config
from bootstrapnas.families import family_of
from bootstrapnas.nncf_config import build_space, read_config, sequence_length
from bootstrapnas.pipeline.arguments import flag, required
from bootstrapnas.pipeline.data import inherited_task
from bootstrapnas.pipeline.deployed import Deployed
from bootstrapnas.pipeline.models import SPACE_FILE
from bootstrapnas.pipeline.supernets import SUPER_ADAPTER_FILE, check_elastic, load_supernet, read_trained
from bootstrapnas.progress import Ticker, notice, warn
from bootstrapnas.space import SearchSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# ruff: noqa: UP045

PRECISION = (
    "What OpenVINO computes in: f32, bf16, f16; of encoders that are quantised (export --quant_mode int8) int8 or "
    "int8+bf16, by what the other layers compute in."
)
WEIGHTS = f"How weights are stored, as by export: {', '.join(WEIGHT_FORMATS)}."
DEVICE = "OpenVINO's name of the device."


@dataclass
class LatencyTableArguments:
    """What to measure, and how."""

    _argument_group_name = "latency table"

    output_file: str = required("The table, JSON.")
    supernet_dir: Optional[str] = flag(None, "Output of a training stage: its shapes and its search space.")
    model_name_or_path: Optional[str] = flag(
        None, "Instead: a model, of which the config is enough. With a super-adapter: where its base is now."
    )
    nncf_config: Optional[str] = flag(None, "The config that has the model's search space.")
    precision: str = flag("f32", PRECISION)
    weight_format: str = flag("fp32", WEIGHTS)
    batch: int = flag(1, "Rows of the input.")
    length: Optional[int] = flag(None, "Tokens of a row; default: the config's input_info.")
    step: Optional[str] = flag(
        None, "Causal language models: prefill (reading length tokens, the default) or token (one more after them)."
    )
    threads: Optional[int] = flag(None, "Threads; default: OpenVINO's choice.")
    device: str = flag("CPU", DEVICE)


@dataclass
class LatencyArguments:
    """How the latencies are predicted that a search asks for."""

    _argument_group_name = "latency, where it is an objective or a bound"

    latency_table: Optional[str] = flag(
        None, "Table of bootstrapnas latency-table; what it lacks is measured first. Default: one in output_dir."
    )
    latency_precision: str = flag("f32", PRECISION)
    latency_weight_format: str = flag("fp32", WEIGHTS)
    latency_batch: int = flag(1, "Rows of the input.")
    latency_length: Optional[int] = flag(None, "Tokens of a row; default: the config's input_info.")
    latency_step: Optional[str] = flag(None, "Causal language models: prefill (the default) or token.")
    latency_device: str = flag("CPU", DEVICE)


GROUPS = (LatencyTableArguments,)
LATENCY = "latency"
TABLE_FILE = "latency_table.json"


def run(arguments: LatencyTableArguments, *, typed: Mapping[str, Any]) -> Path:
    """Measure; return the file."""
    source, config_path = _sources(arguments)
    config = read_config(config_path)
    if _is_super_adapter(source):
        spec, base = inherited_task(source), arguments.model_name_or_path
        deployed = Deployed(source, spec, load_supernet(source, spec, None, base=base)[0], base=base)
        model, blueprint, space = deployed.model, deployed.blueprint, deployed.space
        _check_varies(space, source)
    else:
        model = random_model(source)
        blueprint = Blueprint.of(model)
        space = build_space(config, blueprint)
    circumstances = circumstances_of(
        model,
        blueprint,
        precision=arguments.precision,
        batch=arguments.batch,
        length=sequence_length(config) if arguments.length is None else arguments.length,
        step=arguments.step,
        threads=arguments.threads,
        weight_format=arguments.weight_format,
        device=arguments.device,
    )
    table_at(arguments.output_file, model, blueprint, space, circumstances)
    return Path(arguments.output_file)


def random_model(directory_or_id: str) -> PreTrainedModel:
    """Build the model that a config describes, with random weights: its speed is that of the trained one.

    Raises
    ------
    UserError
        If there is no config, or it names no class whose labels are known.
    """
    import transformers

    config = load_config(directory_or_id)
    names, known = config.architectures or [], family_of(config).architectures
    if len(names) != 1 or names[0] not in known:
        raise UserError(
            f"{directory_or_id}: its architectures are {listed(names) or 'none'}, not one of {listed(known)}"
        )
    return getattr(transformers, names[0])(config).eval()


def table_at(
    path: str | os.PathLike[str],
    model: PreTrainedModel,
    blueprint: Blueprint,
    space: SearchSpace,
    circumstances: Circumstances,
) -> LatencyTable:
    """Return the table in a file, after measuring what it lacks of a space; show how that goes on."""
    shown = f"{circumstances.precision}, batch {circumstances.batch}, {circumstances.length} tokens"
    if circumstances.weight_format != "fp32":
        shown = f"{circumstances.weight_format} weights, {shown}"
    table = open_latency_table(path, blueprint, space, circumstances)
    left = models_to_measure(table, space)
    if left:
        _check_attention(table, space)
        with writing(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with holding(Path(path).parent):  # two that write the same table would overwrite each other's times
            table = open_latency_table(path, blueprint, space, circumstances)
            left = models_to_measure(table, space)
            notice(f"latency table: {left} models to measure, {shown}")
            if not (Path(path).parent / STAGE_FILE).is_file():
                table.save(path)  # so that a place where it cannot be costs no measurement; a stage's is known
            with Ticker("latency table", left) as ticker, openvino_timer(model, blueprint, circumstances) as measure:
                complete_latency_table(table, path, measure, space, ticker.update)
    notice(f"latency table: {path} ({shown}; {circumstances.device}): {table.accuracy}")
    if table.accuracy is not None and table.accuracy.doubtful:
        warn(
            f"the predictions of {path} are doubtful: the machine was busy, or subnets of the space take much the same "
            "time; measure another table when it is quiet"
        )
    return table


def searched_table(arguments: LatencyArguments, directory: Path, deployed: Deployed, length: int) -> LatencyTable:
    """Return the table that a search goes by, whole for the supernet's space.

    Parameters
    ----------
    arguments
        The flags.
    directory
        Of the search: where the table is if no other place is given, and what was used of another one, which a search
        that is resumed goes by.
    deployed
        What the subnets of the supernet become.
    length
        Tokens of a row, where the flags do not say.
    """
    _check_varies(deployed.space, "the supernet")
    circumstances = circumstances_of(
        deployed.model,
        deployed.blueprint,
        precision=arguments.latency_precision,
        batch=arguments.latency_batch,
        length=length if arguments.latency_length is None else arguments.latency_length,
        step=arguments.latency_step,
        weight_format=arguments.latency_weight_format,
        device=arguments.latency_device,
    )
    own, given = directory / TABLE_FILE, arguments.latency_table
    path = own if given is None or own.is_file() else given
    if path == own and given is not None and not Path(given).is_file():
        notice(f"latency table: this search began with its own, {own}; nothing is written to {given}")
    try:
        return table_at(path, deployed.model, deployed.blueprint, deployed.space, circumstances)
    except OtherTableError as error:
        if path != own:
            raise
        # Another file would not help: a search goes by the one that it began with.
        raise OtherRunError(directory, f"latency_table: {own} is of another {error.difference}") from error


def check_table(arguments: LatencyArguments, directory: Path, *, overwrite: bool) -> None:
    """Raise `UserError` if a search went by another table than the flags name, or if that were to be overwritten.

    More of the same is no other table.
    """
    own, given = directory / TABLE_FILE, arguments.latency_table
    if given is None or not Path(given).is_file():
        return
    if overwrite and Path(given).resolve().is_relative_to(directory.resolve()):
        raise UserError(
            f"output_dir {directory} holds the --latency_table {given}, which --overwrite_output_dir would delete; "
            "choose another"
        )
    if not overwrite and own.is_file() and not extends(given, own):
        raise OtherRunError(directory, f"latency_table: {given} has other times than {own}")


def _check_varies(space: SearchSpace, whose: str) -> None:
    """Raise `UserError` if subnets differ in nothing that takes time."""
    if not space.genes:
        raise UserError(
            f"the subnets of {whose} differ in ranks alone: with their adapters merged, as they are deployed, all have "
            "the same latency"
        )


def _check_attention(table: LatencyTable, space: SearchSpace) -> None:
    """Raise `UserError` if a language model would have to be measured without any attention, of which no IR is made."""
    states = [table.subnet(place) for places in table.missing(space).values() for place in places]
    states += [dict(end) for ends in table.missing_ends(space).values() for end in ends]
    if not all(map(table.is_measurable, states)):
        raise UserError(
            "the space lets the attention of the only layer be skipped, but no IR is made of a language model without "
            "attention: leave it in, or search by macs"
        )


def _is_super_adapter(directory: str) -> bool:
    return (Path(directory) / SUPER_ADAPTER_FILE).is_file()


def _sources(arguments: LatencyTableArguments) -> tuple[str, str]:
    """Return the directory or hub id of the model's config, and the file of the space."""
    directory = arguments.supernet_dir
    moved = directory is not None and _is_super_adapter(directory)
    if (directory is None) == (arguments.model_name_or_path is None) and not moved:
        raise UserError("pass either --supernet_dir, or --model_name_or_path and --nncf_config")
    if directory is not None:
        if arguments.nncf_config is not None:
            raise UserError("--supernet_dir has a search space of its own: leave --nncf_config out")
        read_trained(directory)
        check_elastic(directory)
        return directory, str(Path(directory) / SPACE_FILE)
    if arguments.nncf_config is None:
        raise UserError("--model_name_or_path needs --nncf_config, which says what is elastic and how wide")
    assert arguments.model_name_or_path is not None
    return arguments.model_name_or_path, arguments.nncf_config
