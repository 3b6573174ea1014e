"""Low-rank adapters as stock peft writes and reads them, and models that are trained with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bootstrapnas.adapters import lora_config
from bootstrapnas.artefacts import read_json, save_tensors, writing
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.extraction import head_of
from bootstrapnas.families import family_of
from bootstrapnas.families.adapted import NAME, Adapters
from bootstrapnas.foreign import load_foreign_tensors

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_FILE, "adapter_model.bin")
_PEFT_PREFIX = "base_model.model."
_TASK_TYPES = {
    "CausalLM": "CAUSAL_LM",
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
}  # what peft's auto classes go by


# -- training ----------------------------------------------------------------------------------------------------------


def trained_whole(model: PreTrainedModel, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the parameters that are trained beside adapters: a task's own head, and the modules named.

    The head of a language model is pre-trained, and frozen unless it is named.

    Raises
    ------
    UserError
        If a name is no module with parameters outside the layers, whose own weights are frozen.
    """
    parameters = dict(model.named_parameters())
    prefix, stack = f"{model.base_model_prefix}.", f".{family_of(model.config).stack}."
    pretrained = model.get_output_embeddings() is not None
    found = {name for name in parameters if not pretrained and not name.startswith(prefix)}
    outside: dict[str, list[str]] = {}
    for path, _ in model.named_modules():
        inside = [name for name in parameters if name.startswith(f"{path}.")]
        if inside and not any(stack in f".{name}" for name in inside):
            outside[path] = inside
    for name in names:
        paths = [path for path in outside if f".{path}".endswith(f".{name}")]
        if not paths:
            raise UserError(
                f"--modules_to_save: {name!r} is no module outside the layers of {type(model).__name__}, which are "
                f"{listed(outside)}{near_miss(name, {path.rpartition('.')[2] for path in outside})}"
            )
        found.update(*(outside[path] for path in paths))
    return {name: parameter for name, parameter in parameters.items() if name in found}


def train_beside_adapters(model: PreTrainedModel, whole: Iterable[str]) -> None:
    """Let a model's adapters learn and the parameters named, in float32 whatever the rest is in, which is frozen.

    Parameters
    ----------
    model
        A base model with adapters, all but these frozen, as peft leaves it.
    whole
        Names of parameters outside the layers, as those of `trained_whole`.
    """
    names = set(whole)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name in names)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    frozen = min((p for p in model.parameters() if not p.requires_grad), key=Tensor.dim)  # a norm's, which stays
    for path in {name.rpartition(".")[0] for name in names}:
        model.get_submodule(path).register_forward_pre_hook(_in_own_dtype)
        if path.startswith(f"{model.base_model_prefix}."):
            model.get_submodule(path).register_forward_hook(partial(_out_in_dtype_of, frozen))


def layer_linears(model: PreTrainedModel) -> list[str]:
    """Return the paths of the linear layers in a base model's layers, whatever is left of these; no adapter's."""
    stack = f".{family_of(model.config).stack}."
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and ".lora_" not in path]
    return [path for path in paths if stack in f".{path}"]


def _in_own_dtype(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hand a module that is trained whole what a base model in another dtype computes; adapters do so themselves."""
    return tuple(_floats_to(next(module.parameters()).dtype, value) for value in inputs)


def _out_in_dtype_of(frozen: Tensor, module: nn.Module, inputs: Any, output: Any) -> Any:
    """Hand back to the base model what a module inside it, trained whole, computes in another dtype."""
    return _floats_to(frozen.dtype, output)


def _floats_to(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


# -- on disk -----------------------------------------------------------------------------------------------------------


def save_adapter(
    directory: Path,
    base: str,
    architecture: str,
    adapters: Adapters,
    tensors: Mapping[str, Tensor],
    ranks: Mapping[str, int],
) -> None:
    """Write an adapter that stock peft loads.

    Parameters
    ----------
    directory
        Where to.
    base
        Hub id or directory of the model it is for.
    architecture
        Class name of that model.
    adapters
        As what it was trained.
    tensors
        Adapter matrices, and parameters of a head that was trained, by their names in the model.
    ranks
        Rank by adapted module.
    """
    config = lora_config(adapters, list(ranks), ranks)
    config.task_type = _TASK_TYPES.get(head_of(architecture))
    config.base_model_name_or_path = base
    heads = {name.rpartition(".")[0] for name in tensors if "lora_" not in name}
    config.modules_to_save = sorted(heads) or None
    write_adapter(directory, config, tensors)


def write_adapter(directory: Path, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter of a config; `tensors` are named as in the model."""
    directory.mkdir(parents=True, exist_ok=True)
    with writing(directory):
        config.save_pretrained(directory)
    renamed = {f"{_PEFT_PREFIX}{name.replace(f'.{NAME}.', '.')}": tensor for name, tensor in tensors.items()}
    save_tensors(directory / ADAPTER_FILE, renamed, {})


def read_adapter(directory: str | Path) -> dict[str, Tensor]:
    """Return an adapter's tensors by their names in a model; those of PEFT 0.5 are read without running any code."""
    path = next((Path(directory) / name for name in ADAPTER_FILES if (Path(directory) / name).is_file()), None)
    if path is None:
        raise UserError(f"{directory} holds no adapter: it has neither {' nor '.join(ADAPTER_FILES)}")
    return dict(_renamed(load_foreign_tensors(path)))


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        found = name.removeprefix(_PEFT_PREFIX).replace(".modules_to_save.", ".").replace(f".{NAME}.", ".")
        path, _, leaf = found.rpartition(".")
        inside = path.endswith(("lora_A", "lora_B"))
        yield f"{path}.{NAME}.{leaf}" if inside else found, tensor


def put_adapter(model: PreTrainedModel, tensors: Mapping[str, Tensor], whose: str) -> None:
    """Copy an adapter's tensors into a model with adapters.

    Raises
    ------
    UserError
        If one is missing, left over or of another shape: the adapter is of another base.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in wanted.items():
        if name not in tensors:
            raise UserError(f"the adapter in {whose} has no {name}{near_miss(name, tensors)}: it is of another base")
        if tensors[name].shape != parameter.shape:
            raise UserError(
                f"the adapter in {whose} is of another base: {name} has shape {tuple(tensors[name].shape)}, "
                f"the model {tuple(parameter.shape)}"
            )
    both = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    left = sorted(tensors.keys() - both)
    if left:
        raise UserError(f"the adapter in {whose} has {left[0]}{near_miss(left[0], wanted)}, which the model has not")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])


def load_lora(model: PreTrainedModel, directory: Path, dropout: float | None = None) -> LoraConfig:
    """Give a model the adapter that `save_adapter` wrote, in place, to be trained on; return its config.

    Parameters
    ----------
    model
        Its base model; all but the adapter and the modules that were trained whole is frozen.
    directory
        Where it is.
    dropout
        Of the adapters' inputs; None for that with which it was trained.

    Raises
    ------
    UserError
        If a matrix is missing, left over or of another shape: the adapter is of another base.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig.from_pretrained(str(directory))
    targets = read_json(directory / ADAPTER_CONFIG)["target_modules"]
    config.inference_mode = False
    config.lora_dropout = config.lora_dropout if dropout is None else dropout
    whole, config.modules_to_save = config.modules_to_save, None  # peft would train copies of them, by other names
    tensors = read_adapter(directory)
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)
    train_beside_adapters(model, [name for name, _ in model.named_parameters() if name in tensors])
    put_adapter(model, tensors, str(directory))
    config.modules_to_save = whole
    config.target_modules = targets  # peft makes a set of them, which has another order in every process
    return config


def merge_adapter(model: PreTrainedModel, directory: str | Path) -> PreTrainedModel:
    """Return a model with the adapter in a directory added to its weights by peft, in float32."""
    from peft import PeftModel

    with warnings.catch_warnings():  # peft reads a property that transformers deprecates
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return PeftModel.from_pretrained(model.float(), str(directory)).merge_and_unload()
