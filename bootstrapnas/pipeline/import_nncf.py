"""Turn what NNCF 2.x and EFTNAS wrote, importance scores and supernet weights, into this program's artefacts.

Only tensors are read: safetensors, or pickles with ``weights_only``, so that no code of a file runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Optional

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bootstrapnas.artefacts import write_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.extraction import load_config
from bootstrapnas.foreign import load_foreign_tensors
from bootstrapnas.importance import IMPORTANCE_FILE, save_importance
from bootstrapnas.importance.store import check_scores
from bootstrapnas.nncf_config import NNCFConfig, build_space, read_config
from bootstrapnas.pipeline.arguments import OutputArguments, TaskArguments, flag, required
from bootstrapnas.pipeline.data import resolve_task, task_settings
from bootstrapnas.pipeline.models import (
    SPACE_FILE,
    class_order,
    fit_length,
    has_tokenizer,
    load_tokenizer,
    save_artefact,
)
from bootstrapnas.pipeline.stages import begin, finish, report_config
from bootstrapnas.progress import notice
from bootstrapnas.tasks import TASK_FILE, TaskSpec

# ruff: noqa: UP045

MOVEMENT: Final = "movement"
WEIGHTS: Final = ("last_model_weights.pth", "supernet_weights.pth", "pytorch_model.bin", "model.safetensors")
"""Files of tensors by name, in the order in which they are looked for."""

_SCORES = re.compile(r"(.+)\.pre_ops\.\d+\.op\.(weight|bias)_importance$")
_BUFFERS = ("position_ids", "token_type_ids")  # older versions of transformers saved them among the weights
_PICKLES = ("*.pth", "*.pt", "*.bin")

State = Mapping[str, Tensor]


@dataclass
class ImportArguments:
    """What to import."""

    _argument_group_name = "import"

    nncf_dir: str = required("Directory that NNCF or EFTNAS wrote (the first argument, without a flag).")
    model_name_or_path: Optional[str] = flag(None, "Model it was made from: config and tokenizer, where DIR has none.")
    tokenizer_name: Optional[str] = flag(None, "Hub id or directory of the tokenizer, when not DIR's or the model's.")
    nncf_config: Optional[str] = flag(None, "NNCF config of the supernet, when not DIR/nncf_config.json.")


GROUPS = (ImportArguments, TaskArguments, OutputArguments)


@dataclass(frozen=True)
class Found:
    """The files of a directory that can be imported, by what they hold, and those that were left out, with why."""

    scores: tuple[Path, State] | None
    supernet: tuple[Path, State] | None
    skipped: tuple[tuple[Path, str], ...]


def run(
    arguments: ImportArguments, task_args: TaskArguments, output: OutputArguments, *, typed: Mapping[str, Any]
) -> Path:
    """Import; return the output directory, with ``importance/`` and ``supernet/`` in it, whichever was found."""
    source, target = Path(arguments.nncf_dir), Path(output.output_dir)
    if not source.is_dir():
        raise UserError(f"{source} does not exist or is not a directory")
    found = find(source)
    supernet_config = _supernet_config(arguments, source, found)
    if found.scores is None and found.supernet is None:
        raise UserError(
            f"{source} holds neither importance scores nor supernet weights; looked for {', '.join(WEIGHTS)}"
            + "".join(f"; {path.name}: {why}" for path, why in found.skipped)
        )
    config, whose = _model_config(arguments, source, found)
    spec = _task(task_args, config, source)
    model = _empty_model(config, spec, whose)
    blueprint = Blueprint.of(model)
    # All is checked before anything is written.
    scores: dict[str, Tensor] = {}
    if found.scores is not None:
        scores = scores_of(found.scores[1])
        check_scores(found.scores[0], scores, blueprint)
    tokenizer: PreTrainedTokenizerBase | None = None
    if found.supernet is not None and supernet_config is not None:
        _check_state(found.supernet[0], found.supernet[1], model)
        build_space(supernet_config, blueprint)
        tokenizer = _tokenizer(arguments, source)
    spec = fit_length(spec, typed, whose)
    for path, why in found.skipped:
        notice(f"import: {path.name} skipped: {why}")
    if found.scores is not None:
        write_scores(target / "importance", found.scores[0], scores, blueprint, spec, typed, output)
    if found.supernet is not None and supernet_config is not None and tokenizer is not None:
        report_config(supernet_config)
        path, state = found.supernet
        write_supernet(target / "supernet", path, state, config, supernet_config, tokenizer, spec, typed, output)
    return target


# -- reading -----------------------------------------------------------------------------------------------------------


def find(source: Path) -> Found:
    """Read the files of a directory that hold tensors by name; EFTNAS's scores lie in ``movement_sparsity_<epoch>``."""
    scores: tuple[Path, State] | None = None
    supernet: tuple[Path, State] | None = None
    skipped: list[tuple[Path, str]] = []
    epochs = sorted(source.glob("movement_sparsity_*"), key=lambda path: (len(path.name), path.name), reverse=True)
    for directory in (source, *epochs):
        for path in (directory / name for name in WEIGHTS if (directory / name).is_file()):
            try:
                state = load_foreign_tensors(path)
            except UserError as error:
                skipped.append((path, str(error).removeprefix(f"{path} ")))
                continue
            if any(_SCORES.match(name) for name in state):
                scores = scores or (path, state)
            elif directory == source:
                supernet = supernet or (path, state)
    known = {path for path, _ in skipped}
    for path in sorted({path for pattern in _PICKLES for path in source.glob(pattern)} - known):
        if path.name not in WEIGHTS:
            skipped.append((path, "a pickle of NNCF's or the Trainer's state, not weights by name"))
    return Found(scores, supernet, tuple(skipped))


def scores_of(state: State) -> dict[str, Tensor]:
    """Return parameter name -> grid of scores, from NNCF's names of them."""
    matches = {name: match for name in state if (match := _SCORES.match(name))}
    return {f"{match[1]}.{match[2]}": state[name] for name, match in matches.items()}


def _supernet_config(arguments: ImportArguments, source: Path, found: Found) -> NNCFConfig | None:
    if found.supernet is None:
        return None
    path = Path(arguments.nncf_config) if arguments.nncf_config is not None else source / SPACE_FILE
    if arguments.nncf_config is None and not path.is_file():
        if found.scores is None:
            raise UserError(f"{source} has no {SPACE_FILE}, which describes the supernet; pass --nncf_config")
        notice(
            f"import: {found.supernet[0].name} skipped: no {SPACE_FILE} beside it; pass --nncf_config for a supernet"
        )
        return None
    return read_config(path)


def _model_config(arguments: ImportArguments, source: Path, found: Found) -> tuple[PreTrainedConfig, str]:
    """Return the config of the model, of DIR or, where it has none, of the model it was made from; and whose it is."""
    directories = [source, *([found.scores[0].parent] if found.scores is not None else [])]
    whose = next((str(path) for path in directories if (path / "config.json").is_file()), arguments.model_name_or_path)
    if whose is None:
        raise UserError(f"{source} has no config.json; pass --model_name_or_path, the model it was made from")
    return load_config(whose), whose


def _task(task_args: TaskArguments, config: PreTrainedConfig, source: Path) -> TaskSpec:
    """Return the task of the flags, else the one that older versions of transformers noted in the config."""
    noted = config.to_dict().get("finetuning_task")
    if task_args.task_name is None and task_args.train_file is None:
        if not noted:
            raise UserError(f"the task of {source} is not noted in it; pass --task_name (or --train_file)")
        task_args.task_name = noted
    return resolve_task(task_args)


def _empty_model(config: PreTrainedConfig, spec: TaskSpec, whose: str) -> PreTrainedModel:
    names = spec.output_names
    if config.num_labels != spec.num_labels:
        if spec.head.is_in(config.architectures):
            raise UserError(f"{whose} has {config.num_labels} labels, the task {spec.task_name} {spec.num_labels}")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    class_order(config, spec, whose)
    with torch.device("meta"):
        model: PreTrainedModel = spec.head.load_class().from_config(config)
    return model


def _check_state(path: Path, state: State, model: PreTrainedModel) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    name = next((name for name in expected if name not in state), None)
    if name is not None:
        raise UserError(f"{path} has no {name!r}, which {type(model).__name__} needs{near_miss(name, state)}")
    for name, tensor in _weights(state).items():
        if name not in expected:
            raise UserError(f"{path} has {name!r}, which {type(model).__name__} has not{near_miss(name, expected)}")
        if tuple(tensor.shape) != expected[name]:
            raise UserError(f"{path}: {name!r} has shape {tuple(tensor.shape)}, the model's has {expected[name]}")


def _weights(state: State) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in _BUFFERS}


def _tokenizer(arguments: ImportArguments, source: Path) -> PreTrainedTokenizerBase:
    places = [arguments.tokenizer_name, str(source), arguments.model_name_or_path]
    place = next((place for place in places if place is not None and has_tokenizer(place)), None)
    if place is None:
        raise UserError(f"{source} has no tokenizer files; pass --tokenizer_name or --model_name_or_path")
    return load_tokenizer(place)


# -- writing -----------------------------------------------------------------------------------------------------------


def write_scores(
    directory: Path,
    path: Path,
    scores: Mapping[str, Tensor],
    blueprint: Blueprint,
    spec: TaskSpec,
    typed: Mapping[str, Any],
    output: OutputArguments,
) -> None:
    """Write scores as the importance stage does."""
    stage = begin(
        "importance",
        str(directory),
        typed,
        {"nncf": str(path)},
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return
    save_importance(directory / IMPORTANCE_FILE, scores, blueprint, MOVEMENT, {"imported": path.name})
    spec.save(directory / TASK_FILE)
    finish(stage, {}, criterion=MOVEMENT, imported=str(path))
    notice(f"import: scores of {len(scores)} parameters; eftnas search-space --importance_weight_dir {directory}")


def write_supernet(
    directory: Path,
    path: Path,
    state: State,
    config: PreTrainedConfig,
    nncf_config: NNCFConfig,
    tokenizer: PreTrainedTokenizerBase,
    spec: TaskSpec,
    typed: Mapping[str, Any],
    output: OutputArguments,
) -> None:
    """Write a supernet as the train stage does. EFTNAS's is in order of importance already."""
    stage = begin(
        "train",
        str(directory),
        typed,
        {"nncf": str(path), "nncf_config": nncf_config.path},
        overwrite=output.overwrite_output_dir,
        settings=task_settings(spec),
    )
    if stage.finished:
        return
    model: PreTrainedModel = spec.head.load_class().from_config(config)
    model.load_state_dict(_weights(state))
    save_artefact(directory, model.float().eval(), tokenizer, spec)
    write_json(directory / SPACE_FILE, nncf_config.raw)
    finish(stage, {}, imported=str(path))
    notice(f"import: supernet weights of {path.name}; eftnas search --supernet_dir {directory}")
