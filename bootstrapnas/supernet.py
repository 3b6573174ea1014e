"""The supernet: a model made elastic, its search space, and the one active subnet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import Costs, count_costs
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.families import Family
from bootstrapnas.modules import make_elastic
from bootstrapnas.reorder import reorder
from bootstrapnas.space import SearchSpace

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


class Supernet:
    """An elastic model and the space of its subnets.

    The model is changed in place: its modules become elastic, its parameters and their names stay. With nothing
    activated it computes what it computed before.

    Parameters
    ----------
    model
        A Hugging Face model of a known family, reordered already or to be reordered by `reorder`.
    space
        The sizes to choose from. Default: no choice at all, which is enough to activate subnets by hand.
    family
        The labels of the model. Default: the registered family of its model type.
    blueprint
        Instead of a family: the model's blueprint, where its tensors no longer have the shapes that labels tell.

    Raises
    ------
    UserError
        If the model has parameters without labels, or the space does not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        space: SearchSpace | None = None,
        family: Family | None = None,
        blueprint: Blueprint | None = None,
    ) -> None:
        self.blueprint = blueprint or Blueprint.of(model, family)
        self.space = space or SearchSpace(())
        self.space.check(self.blueprint)
        self.model = model
        self._active = make_elastic(model, self.blueprint)

    @property
    def active(self) -> Subnet:
        """The subnet that a forward pass computes now."""
        return self._active.subnet

    @contextmanager
    def activate(self, subnet: Subnet) -> Iterator[PreTrainedModel]:
        """Compute `subnet` inside the ``with`` block; the subnet active before returns after it.

        Backward passes belong inside the block too: gradient checkpointing computes the forward pass again.

        Raises
        ------
        UserError
            If the model cannot take a size of `subnet`.
        """
        self.blueprint.check(subnet)
        before = self._active.subnet
        self._active.set(dict(subnet))
        try:
            yield self.model
        finally:
            self._active.set(before)

    def reorder(self, orders: Mapping[Key, Tensor], optimizer: Optimizer | None = None) -> None:
        """Put the most important units first; see `bootstrapnas.reorder.reorder`."""
        reorder(self.model, self.blueprint, orders, optimizer)

    def count(self, subnet: Subnet, *, length: int) -> Costs:
        """Return the closed-form costs of a subnet at `length` tokens."""
        return count_costs(self.blueprint, subnet, length=length)

    def extract(self, subnet: Subnet) -> PreTrainedModel:
        """Return a copy of the subnet as an ordinary, really smaller model."""
        from bootstrapnas.extraction import extract

        return extract(self.model, self.blueprint, subnet)
