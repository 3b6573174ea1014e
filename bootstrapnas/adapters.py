"""Models with low-rank adapters whose ranks are elastic dimensions like any other: LoNAS's super-adapters.

The labels are those of `bootstrapnas.families.adapted`; slicing, counting, search spaces and extraction need no word
about adapters. The layers are those of an unpatched peft.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Subnet
from bootstrapnas.errors import UserError, near_miss
from bootstrapnas.families import Family, family_of
from bootstrapnas.families.adapted import (
    NAME,
    Adapters,
    adapted_family,
    adapted_paths,
    is_rank,
    is_transposed,
    ranks_only,
)
from bootstrapnas.integers import IntegerLinear, to_integers
from bootstrapnas.modules import ElasticLinear, adopt, linear_classes
from bootstrapnas.slicing import select
from bootstrapnas.supernet import Supernet

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


# -- models ------------------------------------------------------------------------------------------------------------


def add_adapters(model: PreTrainedModel, adapters: Adapters) -> Family:
    """Give a model adapters, in place, and freeze all else; return the family that labels it.

    A new adapter adds nothing: B is 0. A comes from torch's global generator.

    Raises
    ------
    UserError
        If a target is no linear layer of the model, or holds its weight in another way than `adapters` say.
    """
    from peft import inject_adapter_in_model

    family = family_of(model.config)
    blueprint = Blueprint.of(model)
    modules = [
        blueprint.layer_path(layer, path)
        for layer in range(blueprint.num_layers)
        for path in adapted_paths(family, adapters.targets)
    ]
    for module in modules:
        if type(model.get_submodule(module)) not in linear_classes():
            kind = type(model.get_submodule(module)).__name__
            raise UserError(f"{module} is a {kind}: adapters can be added to linear layers only, and once")
    if is_transposed(family, adapters.targets) is not adapters.transposed:
        raise UserError(f"adapters of {family.model_type} must have transposed={not adapters.transposed}")
    inject_adapter_in_model(lora_config(adapters, modules), model)
    return adapted_family(family, adapters)


def lora_config(adapters: Adapters, modules: Sequence[str], ranks: Mapping[str, int] | None = None) -> LoraConfig:
    """Return peft's config of adapters on `modules`, with the ranks of a subnet by module; default: the full one.

    Every rank is scaled as the supernet scaled it. The config's one rank is that of most modules, for programs that
    know no other; what differs has patterns.
    """
    from peft import LoraConfig

    found = [(ranks or {}).get(module, adapters.rank) for module in modules]
    most = max(found, key=found.count, default=adapters.rank)
    others = {_pattern(module): rank for module, rank in zip(modules, found, strict=True) if rank != most}
    config = LoraConfig(
        r=most,
        lora_alpha=adapters.factor(most) * most,
        lora_dropout=adapters.dropout,
        target_modules=list(modules),
        rank_pattern=others,
        alpha_pattern={pattern: adapters.factor(rank) * rank for pattern, rank in others.items()},
        bias="none",
        fan_in_fan_out=adapters.transposed,
    )
    config.target_modules = list(modules)  # peft makes a set of them, which has another order in every process
    return config


def _pattern(module: str) -> str:
    return module.replace(".", r"\.")


def adapter_supernet(
    model: PreTrainedModel, family: Family, adapters: Adapters, space: Any = None, weight_format: str | None = None
) -> Supernet:
    """Return the supernet of a model with adapters, scaled as `adapters` say.

    With a `weight_format` of `bootstrapnas.integers`, the linear layers of the base model's layers become integers;
    then their widths are not elastic, and ranks and blocks alone are.
    """
    blueprint = Blueprint.of(model, family if weight_format is None else ranks_only(family))
    if weight_format is not None:
        to_integers(model, base_linears(blueprint), weight_format)
    supernet = Supernet(model, space, blueprint=blueprint)
    if adapters.scaling == "active":
        for path in adapter_modules(supernet.blueprint):
            up = model.get_submodule(f"{path}.lora_B.{NAME}")
            model.set_submodule(f"{path}.lora_B.{NAME}", adopt(RankScaledLinear, up))
    return supernet


class RankScaledLinear(ElasticLinear):
    """An adapter's B, whose output grows as the rank shrinks, so that the scale is alpha / active rank in all."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (self.in_features / input.shape[-1])


def adapter_modules(blueprint: Blueprint) -> Iterator[str]:
    """Yield the paths of the layers that have adapters."""
    suffix = f".lora_A.{NAME}.weight"
    yield from (name.removesuffix(suffix) for name in blueprint.parameters if name.endswith(suffix))


def stem_of(blueprint: Blueprint) -> str:
    """Return what the names of all parameters inside layers begin with."""
    return blueprint.layer_path(0, "").removesuffix("0")


def base_linears(blueprint: Blueprint) -> Iterator[str]:
    """Yield the paths of the linear layers of the base model's layers, in a model with adapters or without."""
    for name, parameter in blueprint.parameters.items():
        if name.startswith(stem_of(blueprint)) and parameter.applied and ".lora_" not in name:
            yield name.removesuffix(".weight")


@contextmanager
def merged_adapters(supernet: Supernet) -> Iterator[None]:
    """Compute the adapted layers of the active subnet with one matrix each inside the ``with`` block: W + s B A.

    What takes their place holds a copy of the active part of W, made once and let go of afterwards. The subnet must
    stay active, and no gradient reaches the adapters.

    Raises
    ------
    UserError
        If the model has no adapters.
    """
    model, blueprint, subnet = supernet.model, supernet.blueprint, supernet.active
    paths = list(adapter_modules(blueprint))
    if not paths:
        raise UserError("the supernet has no adapters to merge")
    parameters = dict(model.named_parameters())
    layers = {path: model.get_submodule(path) for path in paths}
    try:
        for path, layer in layers.items():
            if blueprint.exists(blueprint.parameters[f"{path}.lora_A.{NAME}.weight"], subnet):
                model.set_submodule(path, _merged(blueprint, path, layer, parameters, subnet))
        yield
    finally:
        for path, layer in layers.items():
            model.set_submodule(path, layer)


@torch.no_grad()
def _merged(blueprint: Blueprint, path: str, layer: Any, parameters: Mapping[str, Tensor], subnet: Subnet) -> nn.Linear:
    """Return an adapted layer of a subnet as an ordinary one, summed in float32."""

    def active(leaf: str) -> Tensor | None:
        name = f"{path}.{leaf}"
        return select(blueprint, name, parameters[name], subnet) if name in parameters else None

    down, up = (active(f"lora_{each}.{NAME}.weight") for each in "AB")
    base = layer.get_base_layer()
    if isinstance(base, IntegerLinear):
        weight: Tensor | None = base.weight
        dtype = next(p.dtype for name, p in parameters.items() if name.startswith(stem_of(blueprint)) and p.dim() == 1)
    else:
        weight = active("base_layer.weight")
        dtype = base.weight.dtype
    assert weight is not None
    assert down is not None
    assert up is not None
    if blueprint.parameters[f"{path}.base_layer.weight"].transposed:
        weight = weight.T
    factor = layer.scaling[NAME]
    if isinstance(layer.lora_B[NAME], RankScaledLinear):
        factor *= layer.lora_B[NAME].in_features / len(down)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    whole = weight.float().addmm(up.float(), down.float(), alpha=factor).to(dtype)
    plain.weight = nn.Parameter(whole, requires_grad=False)
    bias = active("base_layer.bias")
    plain.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return plain.train(layer.training)


# -- extraction --------------------------------------------------------------------------------------------------------


def base_subnet(blueprint: Blueprint, subnet: Subnet) -> dict[Any, int]:
    """Return the part of a subnet that concerns the base model: all but the ranks."""
    return {key: size for key, size in subnet.items() if not is_rank(key.dim)}


def extract_adapters(
    blueprint: Blueprint, tensors: Mapping[str, Tensor], subnet: Subnet
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the adapters of a subnet and their ranks.

    Parameters
    ----------
    blueprint
        Of the model with adapters.
    tensors
        Full-size adapter matrices, by their names in that model.
    subnet
        What to extract.

    Returns
    -------
    The smaller matrices by the same names, without those of skipped blocks, and the rank by module.

    Raises
    ------
    UserError
        If the model cannot take a size of `subnet`, or a matrix is missing.
    """
    blueprint.check(subnet)
    found, ranks = {}, {}
    for module in adapter_modules(blueprint):
        down, up = f"{module}.lora_A.{NAME}.weight", f"{module}.lora_B.{NAME}.weight"
        if not blueprint.exists(blueprint.parameters[down], subnet):
            continue
        for name in (down, up):
            if name not in tensors:
                raise UserError(f"the adapter has no {name!r}{near_miss(name, tensors)}")
            found[name] = select(blueprint, name, tensors[name].detach(), subnet).clone().contiguous()
        ranks[module] = len(found[down])
    return found, ranks
