"""Labels of linear layers with low-rank adapters (LoRA, Hu et al. 2021) of elastic rank. Free of torch.

An adapted layer ``y = W x + s B A x`` has three matrices. Labelled ``W: "out, in"``, ``A: "rank, in"`` and
``B: "out, rank"``, the adapter follows the width of the layer, and its rank is one more dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bootstrapnas.dims import Dim, Labels
from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.families.base import Family

NAME = "default"
"""peft's name of the one adapter."""
RANK = "rank"
SCALINGS = ("fixed", "active")
"""How an adapter of a smaller rank is scaled: by alpha / largest rank (published), or by alpha / active rank."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """Which layers have adapters, and how large.

    Attributes
    ----------
    targets
        Linear layers, as the last words of their paths: ``"q_proj"``, ``"attention.self.query"``.
    rank
        The largest rank; all adapters have it.
    alpha
        The product of an adapter's matrices is scaled by ``alpha / rank``.
    dropout
        Of the adapter's input.
    scaling
        One of `SCALINGS`.
    whole
        Modules outside the layers that are trained whole beside the adapters, as the last words of their paths.
    transposed
        Whether the layers hold their weights as [in, out] (`is_transposed`; peft's ``fan_in_fan_out``).
    """

    targets: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: str = "fixed"
    whole: tuple[str, ...] = ()
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of adapters must be at least 1, not {self.rank}")
        if self.alpha <= 0:
            raise UserError(f"the alpha of adapters must be above 0, not {self.alpha:g}: else they add nothing")
        if not 0 <= self.dropout < 1:
            raise UserError(f"the dropout of adapters must be at least 0 and below 1, not {self.dropout:g}")
        if self.scaling not in SCALINGS:
            raise UserError(
                f"unknown scaling {self.scaling!r} of adapters (known: {listed(SCALINGS)})"
                f"{near_miss(self.scaling, SCALINGS)}"
            )

    def factor(self, rank: int) -> float:
        """Return what the product of an adapter's matrices is scaled by at an active rank."""
        return self.alpha / (rank if self.scaling == "active" else self.rank)


def adapted_family(family: Family, adapters: Adapters) -> Family:
    """Return the labels of a family whose linear layers have adapters: a dimension ``<path>.rank`` a layer each.

    Raises
    ------
    UserError
        If a target names no linear layer of the family.
    """
    paths = set(adapted_paths(family, adapters.targets))
    layer: dict[str, Labels] = {}
    for name, labels in family.layer.items():
        path, _, leaf = name.rpartition(".")
        if path not in paths:
            layer[name] = labels
            continue
        layer[f"{path}.base_layer.{leaf}"] = labels
        if leaf == "weight":
            out, inp = labels.outputs, labels.inputs
            rank = f"{path}.{RANK}"
            layer[f"{path}.lora_A.{NAME}.weight"] = replace(labels, axes=f"{rank}, {inp}")
            layer[f"{path}.lora_B.{NAME}.weight"] = replace(labels, axes=f"{out}, {rank}")
    ranks = tuple(Dim(f"{path}.{RANK}", lambda _: adapters.rank) for path in adapted_paths(family, adapters.targets))
    constants = {f"{path}.base_layer" if path in paths else path: read for path, read in family.constants.items()}
    return replace(family, layer=layer, dims=(*family.dims, *ranks), constants=constants)


def is_transposed(family: Family, targets: Sequence[str]) -> bool:
    """Return whether the linear layers that `targets` name hold their weights as [in, out].

    Raises
    ------
    UserError
        If some do and others do not, or a target names none.
    """
    found = {path: family.layer[f"{path}.weight"].transposed for path in adapted_paths(family, targets)}
    if len(set(found.values())) > 1:
        raise UserError(f"target modules {listed(found)}: some hold their weights as [in, out], others as [out, in]")
    return any(found.values())


def ranks_only(family: Family) -> Family:
    """Return the labels of a family with adapters in which ranks alone are elastic, and blocks."""
    return replace(family, dims=tuple(dim if is_rank(dim.name) else replace(dim, elastic=False) for dim in family.dims))


def is_rank(dim: str) -> bool:
    """Return whether a dimension is the rank of an adapter, by its name."""
    return dim.endswith(f".{RANK}")


def adapted_paths(family: Family, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the paths, inside a layer, of the linear layers that `targets` name.

    Raises
    ------
    UserError
        If a target names none, or there is no target.
    """
    linears = [name.removesuffix(".weight") for name, labels in family.layer.items() if labels.applied]
    if not targets:
        raise UserError(f"no target modules for adapters (the layers of {family.model_type} have {listed(linears)})")
    for target in targets:
        if not any(_named(path, target) for path in linears):
            short = {path.rpartition(".")[2] for path in linears} | set(linears)
            raise UserError(
                f"target module {target!r} is no linear layer of {family.model_type}, which has {listed(linears)}"
                f"{near_miss(target, short)}"
            )
    return tuple(path for path in linears if any(_named(path, target) for target in targets))


def _named(path: str, target: str) -> bool:
    return f".{path}".endswith(f".{target}")
