"""Make Transformer language models truly smaller: elastic supernets, subnet search, extraction, OpenVINO.

The public names below are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootstrapnas.blueprint import Blueprint as Blueprint
    from bootstrapnas.costs import Costs as Costs
    from bootstrapnas.costs import count_costs as count_costs
    from bootstrapnas.costs import count_macs as count_macs
    from bootstrapnas.costs import count_params as count_params
    from bootstrapnas.dims import Key as Key
    from bootstrapnas.distillation import Distillation as Distillation
    from bootstrapnas.errors import UserError as UserError
    from bootstrapnas.export import export_openvino as export_openvino
    from bootstrapnas.export import load_ir as load_ir
    from bootstrapnas.export import measure_latency as measure_latency
    from bootstrapnas.extraction import extract as extract
    from bootstrapnas.extraction import load_model as load_model
    from bootstrapnas.extraction import save_subnet as save_subnet
    from bootstrapnas.importance import CRITERIA as CRITERIA
    from bootstrapnas.importance import load_importance as load_importance
    from bootstrapnas.importance import order_scores as order_scores
    from bootstrapnas.importance import orders as orders
    from bootstrapnas.importance import save_importance as save_importance
    from bootstrapnas.importance import unit_scores as unit_scores
    from bootstrapnas.importance import width_scores as width_scores
    from bootstrapnas.nncf_config import build_space as build_space
    from bootstrapnas.nncf_config import read_config as read_config
    from bootstrapnas.sampling import one_random as one_random
    from bootstrapnas.sampling import sandwich as sandwich
    from bootstrapnas.sampling import step_random as step_random
    from bootstrapnas.search import Candidate as Candidate
    from bootstrapnas.search import EvaluationLog as EvaluationLog
    from bootstrapnas.search import Objective as Objective
    from bootstrapnas.search import SearchResult as SearchResult
    from bootstrapnas.search import SearchSettings as SearchSettings
    from bootstrapnas.search import build_algorithm as build_algorithm
    from bootstrapnas.search import run_search as run_search
    from bootstrapnas.search import select_best as select_best
    from bootstrapnas.search import select_by_budget as select_by_budget
    from bootstrapnas.space import Gene as Gene
    from bootstrapnas.space import SearchSpace as SearchSpace
    from bootstrapnas.space_generation import generate_space as generate_space
    from bootstrapnas.space_generation import mac_targets as mac_targets
    from bootstrapnas.supernet import Supernet as Supernet
    from bootstrapnas.training import StageTrainer as StageTrainer

__version__ = "0.1.0"

_MODULES = {
    "blueprint": "Blueprint",
    "costs": "Costs count_costs count_macs count_params",
    "dims": "Key",
    "distillation": "Distillation",
    "errors": "UserError",
    "export": "export_openvino load_ir measure_latency",
    "extraction": "extract load_model save_subnet",
    "importance": "CRITERIA load_importance order_scores orders save_importance unit_scores width_scores",
    "nncf_config": "build_space read_config",
    "sampling": "one_random sandwich step_random",
    "search": "Candidate EvaluationLog Objective SearchResult SearchSettings build_algorithm run_search select_best "
    "select_by_budget",
    "space": "Gene SearchSpace",
    "space_generation": "generate_space mac_targets",
    "supernet": "Supernet",
    "training": "StageTrainer",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:  # a type checker that saw this function would let every misspelt name pass

    def __getattr__(name: str) -> Any:
        """Import a public name from its module; later uses find it in the package itself."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
