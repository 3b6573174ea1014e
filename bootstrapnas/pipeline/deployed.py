"""What is deployed of a supernet: subnets, extracted; of a super-adapter, a smaller base with its adapter merged."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from bootstrapnas.adapters import base_linears, base_subnet, extract_adapters
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.extraction import extract, extracted_name
from bootstrapnas.families.adapted import Adapters, is_rank
from bootstrapnas.integers import round_to_integers
from bootstrapnas.pipeline.adapters import merge_adapter, save_adapter, trained_whole
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer, settle_padding
from bootstrapnas.pipeline.supernets import SUPER_ADAPTER_FILE, load_orders, read_super_adapter
from bootstrapnas.reorder import reorder
from bootstrapnas.space import SearchSpace
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class Parts:
    """A subnet of a super-adapter in two parts.

    Attributes
    ----------
    base
        The smaller base model, with what was trained whole beside adapters, such as its head.
    tensors
        Adapter matrices, and what was trained whole, by their names in `base`.
    ranks
        By adapted module of `base`.
    """

    base: PreTrainedModel
    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]


class Deployed:
    """The models that the subnets of a trained supernet become.

    Ranks change nothing in their shapes, and so in their latency: an adapter is merged.

    Parameters
    ----------
    directory
        Of the supernet.
    spec
        Its task.
    supernet
        What was loaded from there, on the CPU.
    merged
        Whether those of a super-adapter are to be merged: then the base's weights are what it was trained on, rounded
        to integers where that was so.
    base
        Where the base of a super-adapter is now; None for where it was in training.

    Attributes
    ----------
    model
        The full-size model that subnets are taken from: of a super-adapter, the base in the dtype of its checkpoint but
        for what was trained, its units in the adapter's order.
    dtype
        That of its checkpoint.
    blueprint
        Its blueprint.
    space
        What of the supernet's space concerns it.
    """

    def __init__(
        self, directory: str, spec: TaskSpec, supernet: Supernet, *, merged: bool = True, base: str | None = None
    ) -> None:
        self._supernet = supernet
        self.model, self.blueprint, self.space = supernet.model, supernet.blueprint, supernet.space
        self.dtype = self.model.dtype
        self._adapters: Adapters | None = None
        self._integers: str | None = None
        if not (Path(directory) / SUPER_ADAPTER_FILE).is_file():
            return
        about = read_super_adapter(directory, base)
        self._adapters = about.adapters
        self._integers = about.weight_format if merged else None
        self.model = load_for_task(about.base, spec, dtype=None)
        self.dtype = self.model.dtype
        settle_padding(self.model, load_tokenizer(directory))
        self.blueprint = Blueprint.of(self.model)
        reorder(self.model, self.blueprint, load_orders(directory))
        for name, trained in trained_whole(supernet.model, about.adapters.whole).items():
            self.model.get_parameter(name).data = trained.data
        self.space = SearchSpace(tuple(gene for gene in supernet.space.genes if not is_rank(gene.keys[0].dim)))

    def part(self, subnet: Subnet) -> dict[Key, int]:
        """Return what of a subnet of the supernet concerns the model."""
        return base_subnet(self._supernet.blueprint, subnet)

    def parts(self, subnet: Subnet) -> Parts:
        """Return a subnet of a super-adapter as a smaller base and a smaller adapter."""
        assert self._adapters is not None
        supernet, smaller = self._supernet, self.part(subnet)
        tensors, ranks = extract_adapters(supernet.blueprint, dict(supernet.model.named_parameters()), subnet)
        base = extract(self.model, self.blueprint, smaller)
        name_of = partial(extracted_name, base, self.blueprint, smaller)
        if self._integers is not None:
            parameters = self.blueprint.parameters
            linears = base_linears(self.blueprint)
            kept = [path for path in linears if self.blueprint.exists(parameters[f"{path}.weight"], smaller)]
            round_to_integers(base.float(), map(name_of, kept), self._integers)
        found = {name_of(name): tensor for name, tensor in tensors.items()}
        whole = trained_whole(supernet.model, self._adapters.whole)
        found |= {name: parameter for name, parameter in base.named_parameters() if name in whole}
        return Parts(base, found, {name_of(module): rank for module, rank in ranks.items()})

    def extract(self, subnet: Subnet) -> PreTrainedModel:
        """Return a subnet as one ordinary model."""
        if self._adapters is None:
            return self._supernet.extract(subnet)
        return merge(self.parts(subnet), self._adapters)


def merge(parts: Parts, adapters: Adapters) -> PreTrainedModel:
    """Return a model with an adapter added to its weights, by peft, in float32."""
    if not parts.ranks:  # what was trained whole is in the base
        return parts.base.float()
    with tempfile.TemporaryDirectory() as directory:
        save_adapter(Path(directory), "", "", adapters, parts.tensors, parts.ranks)
        return merge_adapter(parts.base, directory)
