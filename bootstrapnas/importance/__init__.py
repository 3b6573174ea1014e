"""Importance of weights and of units: criteria, reduction over coupled groups, files."""

from bootstrapnas.importance.criteria import CRITERIA, WITHOUT_DATA, find_criterion
from bootstrapnas.importance.external import EXTERNAL, load_external
from bootstrapnas.importance.filters import filter_orders
from bootstrapnas.importance.movement import MovementSettings, MovementSparsity, attach
from bootstrapnas.importance.reduction import Scores, expand, orders, unit_scores
from bootstrapnas.importance.rules import RULES, default_rule, order_scores, width_scores
from bootstrapnas.importance.store import IMPORTANCE_FILE, load_importance, save_importance
from bootstrapnas.importance.structured import resolve, write_structured_sparsity
from bootstrapnas.importance.structures import Block, Fine, PerDim, Structure, assign_structures, build_structure

__all__ = [
    "CRITERIA",
    "EXTERNAL",
    "IMPORTANCE_FILE",
    "RULES",
    "WITHOUT_DATA",
    "Block",
    "Fine",
    "MovementSettings",
    "MovementSparsity",
    "PerDim",
    "Scores",
    "Structure",
    "assign_structures",
    "attach",
    "build_structure",
    "default_rule",
    "expand",
    "filter_orders",
    "find_criterion",
    "load_external",
    "load_importance",
    "order_scores",
    "orders",
    "resolve",
    "save_importance",
    "unit_scores",
    "width_scores",
    "write_structured_sparsity",
]
