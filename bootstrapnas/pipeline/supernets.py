"""Trained supernets on disk: whole ones, and super-adapters beside the base model that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bootstrapnas.adapters import adapter_modules, adapter_supernet, add_adapters, merged_adapters
from bootstrapnas.artefacts import (
    FORMAT,
    check_format,
    digest,
    load_tensors,
    read_json,
    read_stage,
    save_tensors,
    stage_of,
    write_json,
)
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import evaluation_dtype
from bootstrapnas.families.adapted import Adapters, is_rank
from bootstrapnas.nncf_config import NNCFConfig, build_space, read_config
from bootstrapnas.pipeline.adapters import (
    ADAPTER_CONFIG,
    put_adapter,
    read_adapter,
    save_adapter,
    train_beside_adapters,
    trained_whole,
)
from bootstrapnas.pipeline.models import SPACE_FILE, cast_parameters, load_for_task, load_tokenizer, settle_padding
from bootstrapnas.space import SearchSpace
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SUPER_ADAPTER_FILE, ORDERS_FILE = "super_adapter.json", "orders.safetensors"


def load_supernet(
    directory: str,
    spec: TaskSpec,
    dtype: torch.dtype | None = torch.float32,
    adapters: torch.dtype = torch.float32,
    base: str | None = None,
) -> tuple[Supernet, NNCFConfig]:
    """Load a trained supernet or super-adapter, and the config that describes its space.

    Parameters
    ----------
    directory, spec
        Where it is, and its task.
    dtype
        Of its weights, of a super-adapter's base; None for that of the checkpoint. There is no copy in another.
    adapters
        Dtype of what was trained of a super-adapter.
    base
        Where its base is now; None for where it was in training.

    Raises
    ------
    UserError
        If the directory is not a finished stage's, or a super-adapter's base is not what it was trained on.
    """
    read_trained(directory)
    check_elastic(directory)
    config = read_config(Path(directory) / SPACE_FILE)
    if (Path(directory) / SUPER_ADAPTER_FILE).is_file():
        return load_super_adapter(directory, spec, config, dtype, adapters, base), config
    model = load_for_task(directory, spec, dtype=dtype)
    return Supernet(model, build_space(config, Blueprint.of(model))), config


def read_space(directory: str) -> NNCFConfig | None:
    """Return the config with the search space of what was trained; None of an ordinary LoRA."""
    path = Path(directory) / SPACE_FILE
    return read_config(path) if path.is_file() else None


def read_trained(directory: str, *others: str) -> dict[str, Any]:
    """Read ``stage.json`` of what was trained, or made by one of the stages `others`, as `read_stage` does.

    Raises
    ------
    UserError
        If it is no such directory; of an adapter that another program or stage made, it says what to do with that.
    """
    try:
        return read_stage(directory, "train", *others)
    except UserError as error:
        made = stage_of(directory)
        if not (Path(directory) / ADAPTER_CONFIG).is_file() or made not in {None, "finetune"}.difference(others):
            raise
        instead = "lonas import-adapter takes over an adapter"
        if made is not None:
            instead = "lonas extract --merge True makes one model of base and adapter, for lonas evaluate --model_dir"
        raise UserError(f"{error}; {instead}") from None


def check_elastic(directory: str) -> None:
    """Raise `UserError` if what was trained has no search space."""
    if not (Path(directory) / SPACE_FILE).is_file():
        raise UserError(
            f"{directory} holds an ordinary LoRA without a search space: it was trained without --nncf_config"
        )


def evaluation_dtypes(directory: str, precision: str | None, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """Return what `load_supernet` loads in to be evaluated in a precision of `bootstrapnas.evaluation`.

    With None, and with ``auto`` where the hardware has no bfloat16, it is what was computed in training.
    """
    found = torch.float32 if precision is None else evaluation_dtype(precision, device)
    if precision not in (None, "auto") or found != torch.float32:
        return found, found
    adapted = (Path(directory) / SUPER_ADAPTER_FILE).is_file()
    return DTYPES[read_super_adapter(directory).base_dtype] if adapted else found, found


# -- super-adapters ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SuperAdapter:
    """What a super-adapter is for.

    Attributes
    ----------
    base
        Hub id or directory of the base model.
    adapters
        Which layers have adapters.
    weight_format
        Integers that the base's weights were rounded to in training, of `bootstrapnas.integers`; None if they were not.
    base_dtype
        What else of the base was in in training, one of `DTYPES`.
    """

    base: str
    adapters: Adapters
    weight_format: str | None = None
    base_dtype: str = "float32"


@contextmanager
def computing(supernet: Supernet, subnet: Subnet, *, merge: bool) -> Iterator[None]:
    """Compute a subnet inside the ``with`` block; with `merge` as if its adapters were part of its weights."""
    with supernet.activate(subnet), merged_adapters(supernet) if merge else nullcontext():
        yield


def build_super_adapter(
    model: PreTrainedModel,
    adapters: Adapters,
    config: NNCFConfig | None,
    orders: Mapping[Key, Tensor],
    weight_format: str | None = None,
    dtype: torch.dtype | None = None,
) -> Supernet:
    """Return the supernet of a base model with new adapters: its units in `orders`, all but `trained_whole` frozen.

    Parameters
    ----------
    model
        The base model; in the dtype of its checkpoint if its weights become integers, so that they are the same ones
        everywhere.
    adapters
        New ones, in float32 whatever the base model is in.
    config
        The search space; without one there is just one subnet: an ordinary LoRA.
    orders
        Of the base model's units.
    weight_format
        Integers that its linear layers become, of `bootstrapnas.integers`.
    dtype
        Of what stays floating point in the base model; None if it stays as it is.

    Raises
    ------
    UserError
        If the space does not fit the model, or varies widths whose weights become integers.
    """
    whole = trained_whole(model, adapters.whole)
    family = add_adapters(model, adapters)
    train_beside_adapters(model, whole)
    space = SearchSpace(()) if config is None else build_space(config, Blueprint.of(model, family))
    if config is not None and weight_format is not None:
        _check_no_widths(space, Blueprint.of(model, family), weight_format, config.path)
    supernet = adapter_supernet(model, family, adapters, space, weight_format)
    if dtype is not None:
        cast_parameters((p for p in model.parameters() if not p.requires_grad), dtype)
    supernet.reorder(orders)
    return supernet


def _check_no_widths(space: SearchSpace, blueprint: Blueprint, weight_format: str, where: str) -> None:
    """Raise `UserError` if a space varies widths of the base model.

    Integers of a group share a scale, so a prefix of a row is no row of a smaller matrix.
    """
    for gene in space.genes:
        if not is_rank(gene.keys[0].dim) and not blueprint.is_block(gene.keys[0]):
            raise UserError(
                f"{where}: a group varies {gene.name} ({', '.join(map(str, gene.choices))}), but widths of a base in "
                f"{weight_format} stay as they are: leave the group out, or --base_weight_format"
            )


def save_super_adapter(directory: Path, supernet: Supernet, about: SuperAdapter, orders: Mapping[Key, Tensor]) -> None:
    """Write what was trained as an ordinary PEFT adapter of the base model as it is, and what makes it elastic.

    The adapter of the largest subnet can be loaded by stock peft. Units of the base model are in its own order there;
    the orders that subnets need are beside it.
    """
    supernet.reorder({key: order.argsort() for key, order in orders.items()})
    trained = {name: p for name, p in supernet.model.named_parameters() if p.requires_grad}
    # peft trains a copy of each module, so what two names have in common is written for both.
    again = {name: trained[p.name].clone() for name, p in supernet.blueprint.tied.items() if p.name in trained}
    tensors = {**trained, **again}
    ranks = dict.fromkeys(adapter_modules(supernet.blueprint), about.adapters.rank)
    save_adapter(directory, about.base, supernet.blueprint.architecture, about.adapters, tensors, ranks)
    supernet.reorder(orders)
    save_orders(directory, orders)
    write_json(directory / SUPER_ADAPTER_FILE, {"format": FORMAT, **asdict(about)})


def read_super_adapter(directory: str | Path, base: str | None = None) -> SuperAdapter:
    """Return what a super-adapter is for, its base being at `base` now; `UserError` if the directory holds none."""
    path = Path(directory) / SUPER_ADAPTER_FILE
    if not path.is_file():
        raise UserError(f"{directory} holds no super-adapter: it has no {SUPER_ADAPTER_FILE}")
    found = read_json(path)
    check_format(path, found)
    entry = found["adapters"]
    lists = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
    rest = {name: found[name] for name in ("weight_format", "base_dtype") if name in found}
    return SuperAdapter(base or found["base"], Adapters(**{**entry, **lists}), **rest)


def load_super_adapter(
    directory: str,
    spec: TaskSpec,
    config: NNCFConfig | None,
    dtype: torch.dtype | None = torch.float32,
    adapters: torch.dtype = torch.float32,
    base: str | None = None,
) -> Supernet:
    """Load a super-adapter onto its base model; dtypes and `base` as in `load_supernet`.

    Raises
    ------
    UserError
        If the base model is not the one that it was trained on, or a matrix is missing or of another shape.
    """
    about = read_super_adapter(directory, base)
    check_base(directory, about.base)
    model = load_for_task(about.base, spec, dtype=dtype if about.weight_format is None else None)
    settle_padding(model, load_tokenizer(directory))
    supernet = build_super_adapter(model, about.adapters, config, {}, about.weight_format, dtype)
    put_adapter(supernet.model, read_adapter(directory), directory)
    cast_parameters((p for p in model.parameters() if p.requires_grad), adapters)
    supernet.reorder(load_orders(directory))
    model.requires_grad_(False)
    return supernet


def check_base(directory: str, base: str) -> None:
    """Raise `UserError` if a local base model's contents are not those that an adapter was trained on."""
    trained_on = read_stage(directory)["inputs"]["model"].get("digest")
    if trained_on is not None and Path(base).is_dir() and digest(base) != trained_on:
        raise UserError(f"{base} is not the base model that the adapter in {directory} was trained on: it has changed")
    if trained_on is not None and not Path(base).exists():
        raise UserError(
            f"the base model of the adapter in {directory} is gone: there is no {base}; --model_name_or_path tells "
            "where it is now"
        )


def save_orders(directory: Path, orders: Mapping[Key, Tensor]) -> None:
    """Write the orders of units that a super-adapter's subnets need, if there are any."""
    if orders:
        save_tensors(directory / ORDERS_FILE, {str(key): order for key, order in orders.items()}, {})


def load_orders(directory: str | Path) -> dict[Key, Tensor]:
    """Return the orders of units that a super-adapter's subnets need; empty if those of the base model."""
    path = Path(directory) / ORDERS_FILE
    if not path.is_file():
        return {}
    tensors = load_tensors(path)[0]
    return {_key(name): order for name, order in tensors.items()}


def _key(text: str) -> Key:
    dim, _, layer = text.removesuffix("]").partition("[")
    return Key(dim, int(layer) if layer else None)
