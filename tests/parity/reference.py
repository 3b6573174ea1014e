"""Write what NNCF 2.19 computes on the setting that both sides share. It runs in NNCF's environment; see `make parity`.

python tests/parity/reference.py OUT writes OUT/nncf.json, and in OUT/files what NNCF itself leaves on disk.
"""

from __future__ import annotations

import os

os.environ["NNCF_TORCH_LEGACY_TRACING"] = "1"  # before nncf is imported, which patches torch
os.environ["NNCF_CI"] = "1"  # no telemetry
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nncf.torch  # noqa: F401 - before any model is built: activations keep the functions they find
import numpy as np
import torch
from nncf import NNCFConfig
from nncf.common.pruning.shape_pruning_processor import ShapePruningProcessor
from nncf.experimental.torch.nas.bootstrapNAS import BaseSearchAlgorithm, EpochBasedTrainingAlgorithm
from nncf.experimental.torch.nas.bootstrapNAS.elasticity.elasticity_dim import ElasticityDim
from nncf.torch import create_compressed_model
from nncf.torch.model_creation import create_nncf_network
from setting import (
    DISTILLATIONS,
    GLOBAL_LR,
    MOVEMENT_LR,
    MOVEMENT_STEPS,
    SEARCH,
    STEPS_PER_EPOCH,
    SUBNETS,
    accuracy,
    batch,
    build_model,
    movement_config,
    nncf_config,
)
from torch import nn

# Stock NNCF raises for attention, whose masks end at its products; EFTNAS and LoNAS carried the same patch.
ShapePruningProcessor._get_next_node_sparse_multiplier = lambda *_: 1


def build(log_dir: Path, **options: Any) -> EpochBasedTrainingAlgorithm:
    torch.set_num_threads(1)
    config = NNCFConfig.from_dict({**nncf_config(**options), "log_dir": str(log_dir)})
    network = create_nncf_network(build_model(), config)
    return EpochBasedTrainingAlgorithm.from_config(network, config)


EVERYTHING = {"train_dims": ["width", "depth"], "width_indicator": -1, "depth_indicator": 2, "init_lr": 1e-3}


def staged(log_dir: Path, stage: dict[str, Any] = EVERYTHING, **options: Any) -> EpochBasedTrainingAlgorithm:
    """Return a supernet that has entered a stage of its training."""
    algorithm = build(log_dir, stages=[stage], **options)
    control = algorithm._training_ctrl
    control.set_training_lr_scheduler_args(torch.optim.SGD(algorithm._model.parameters(), lr=1.0), STEPS_PER_EPOCH)
    control.scheduler.epoch_step()
    return algorithm


def activate(handler: Any, subnet: dict[str, Any]) -> None:
    config: OrderedDict[Any, Any] = OrderedDict()
    config[ElasticityDim.WIDTH] = dict(enumerate(subnet["width"]))
    config[ElasticityDim.DEPTH] = list(subnet["depth"])
    handler.activate_subnet_for_config(config)


def active(handler: Any) -> dict[str, Any]:
    config = handler.get_active_config()
    widths = config.get(ElasticityDim.WIDTH, {})
    return {"width": [widths[key] for key in sorted(widths)], "depth": list(config.get(ElasticityDim.DEPTH, []))}


def logits(model: nn.Module, number: int = 0) -> torch.Tensor:
    inputs = {name: tensor for name, tensor in batch(number).items() if name != "labels"}
    with torch.no_grad():
        return model(**inputs).logits


def rounded(tensor: torch.Tensor) -> Any:
    """Return a tensor as lists of numbers with seven decimals, which is what float32 holds."""

    def short(value: Any) -> Any:
        return [short(item) for item in value] if isinstance(value, list) else round(value, 7)

    return short(tensor.tolist())


def subnets(log_dir: Path) -> list[dict[str, Any]]:
    """Outputs, FLOPs and weights of subnets."""
    algorithm = staged(log_dir)
    handler = algorithm._training_ctrl.multi_elasticity_handler
    algorithm._model.eval()
    found = []
    for subnet in SUBNETS:
        activate(handler, subnet)
        assert active(handler) == {**subnet, "width": list(subnet["width"])}, (active(handler), subnet)
        flops, weights = handler.count_flops_and_weights_for_active_subnet()
        found.append(
            {**subnet, "logits": rounded(logits(algorithm._model)), "flops": int(flops), "weights": int(weights)}
        )
    return found


def training(log_dir: Path, lr_schedule: Any = None) -> dict[str, Any]:
    """Learning rates and subnets of every step, and what SGD makes of the weights along them."""
    algorithm = build(log_dir, lr_schedule=lr_schedule)
    control, model = algorithm._training_ctrl, algorithm._model
    handler = control.multi_elasticity_handler
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    steps: list[dict[str, Any]] = []

    def train_epoch(loader: Any, model: nn.Module, control: Any, epoch: int, optimizer: Any) -> None:
        model.train()
        for number in loader:
            control.scheduler.step()
            optimizer.zero_grad()
            loss = model(**batch(number)).loss + control.loss()
            loss.backward()
            optimizer.step()
            steps.append({**active(handler), "lr": optimizer.param_groups[0]["lr"], "loss": float(loss)})

    def validate(model: nn.Module, loader: Any) -> tuple[float, float, float]:
        model.eval()
        return 0.0, 0.0, 0.0

    class Writer:
        def add_scalar(self, *_: Any) -> None:
            """Stand in for TensorBoard, without which NNCF fails."""

    random.seed(5)
    loader = range(STEPS_PER_EPOCH)
    algorithm.run(train_epoch, loader, validate, loader, optimizer, str(log_dir), Writer())
    model.eval()
    handler.activate_supernet()
    result = {"steps": steps, "logits": rounded(logits(model))}
    handler.activate_minimum_subnet()
    return {**result, "smallest": active(handler), "smallest_logits": rounded(logits(model))}


def spaces(log_dir: Path) -> list[dict[str, Any]]:
    """What may be chosen under every pair of indicators, and what Python's random chooses."""
    found = []
    for width_indicator, depth_indicator, chained in ((1, 1, False), (2, 1, False), (-1, 1, True), (-1, 2, True)):
        stage = {**EVERYTHING, "width_indicator": width_indicator, "depth_indicator": depth_indicator}
        algorithm = staged(log_dir, stage, chained=chained)
        handler = algorithm._training_ctrl.multi_elasticity_handler
        space = handler.get_search_space()
        random.seed(7)
        drawn = []
        for _ in range(12):
            handler.activate_random_subnet()
            drawn.append(active(handler))
        widths = space["width"]
        found.append(
            {
                "width_indicator": width_indicator,
                "depth_indicator": depth_indicator,
                "chained": chained,
                "width": [list(widths[key]) for key in sorted(widths)],
                "depth": sorted(sorted(skipped) for skipped in space["depth"]),
                "drawn": drawn,
            }
        )
    return found


def orders(log_dir: Path) -> dict[str, Any]:
    """What each filter importance reorders: old numbers of the first layer's FFN channels, and the outputs after it."""
    found: dict[str, Any] = {}
    for name in ("L1", "L2", "geometric_median"):
        algorithm = build(log_dir, filter_importance=name)
        before = build_model().bert.encoder.layer[0].intermediate.dense.weight
        algorithm._training_ctrl.multi_elasticity_handler.width_handler.reorganize_weights()
        after = algorithm._model.bert.encoder.layer[0].intermediate.dense.weight
        order = [int((before == row).all(1).nonzero()) for row in after]
        found[name] = {"order": order, "logits": rounded(logits(algorithm._model.eval()))}
    return found


def distillation(log_dir: Path) -> list[float]:
    """The loss of a subnet against the model before training, by each kind of distillation."""
    found = []
    for kind in DISTILLATIONS:
        algorithm = staged(log_dir, distillation=kind)
        control, model = algorithm._training_ctrl, algorithm._model
        activate(control.multi_elasticity_handler, SUBNETS[1])
        model.train()
        model(**{name: tensor for name, tensor in batch(0).items() if name != "labels"})
        found.append(float(control.loss()))
    return found


def search(log_dir: Path, dims: tuple[str, ...], **settings: Any) -> dict[str, Any]:
    """Rows of search_progression.csv and the winner."""
    algorithm = staged(log_dir, {**EVERYTHING, "train_dims": list(dims)})
    control, model = algorithm._training_ctrl, algorithm._model
    config = NNCFConfig.from_dict({**nncf_config(), "log_dir": str(log_dir)})
    config["bootstrapNAS"]["search"].update(settings)
    searching = BaseSearchAlgorithm.from_config(model, control.elasticity_controller, config)

    def validate(model: nn.Module, loader: Any) -> float:
        model.eval()
        return sum(accuracy(logits(model, number), batch(number)["labels"]) for number in loader) / len(loader)

    # NNCF draws the first population from numpy's own generator, which pymoo no longer seeds.
    np.random.seed(SEARCH["seed"])
    _, best, values = searching.run(validate, range(4), str(log_dir))
    searching.search_progression_to_csv()
    widths = best[ElasticityDim.WIDTH]
    return {
        "rows": (log_dir / "search_progression.csv").read_text().splitlines(),
        "best": {"width": [widths[key] for key in sorted(widths)], "depth": list(best.get(ElasticityDim.DEPTH, []))},
        "best_values": values,
        "ref_acc": searching.search_params.ref_acc,
    }


def sparsifiers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if type(module).__name__ == "MovementSparsifier":
            yield path.partition(".pre_ops")[0], module


def movement(log_dir: Path) -> dict[str, Any]:
    """Thresholds, penalties, losses, scores and masks of movement sparsity along AdamW."""
    torch.set_num_threads(1)
    config = NNCFConfig.from_dict({**movement_config(), "log_dir": str(log_dir)})
    control, model = create_compressed_model(build_model(), config, dump_graphs=False)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=MOVEMENT_LR, weight_decay=0.0)
    steps = []
    for step in range(MOVEMENT_STEPS):
        if step % STEPS_PER_EPOCH == 0:
            control.scheduler.epoch_step()
        control.scheduler.step()
        optimizer.zero_grad()
        task, penalty = model(**batch(step)).loss, control.loss()
        (task + penalty).backward()
        optimizer.step()
        modules = dict(sparsifiers(model))
        masks = [m for module in modules.values() for m in (module.weight_ctx, module.bias_ctx)]
        threshold = next(iter(modules.values())).importance_threshold
        steps.append(
            {
                "threshold": None if threshold == -float("inf") else threshold,
                "strength": next(iter(modules.values())).importance_regularization_factor,
                "loss": float(task),
                "penalty": float(penalty),
                "masked": sum(int((mask.binary_mask == 0).sum()) for mask in masks),
            }
        )
    model.eval()
    scores = {}
    kept = {}
    for path, module in sparsifiers(model):
        scores[f"{path}.weight"] = rounded(module.weight_importance)
        scores[f"{path}.bias"] = rounded(module.bias_importance)
        kept[f"{path}.weight"] = int(module.weight_ctx.binary_mask.sum())
        kept[f"{path}.bias"] = int(module.bias_ctx.binary_mask.sum())
    torch.save(model.state_dict(), log_dir / "pytorch_model.bin")
    return {
        "steps": steps,
        "scores": scores,
        "kept": kept,
        "logits": rounded(logits(model)),
        "structured_sparsity": (log_dir / "structured_sparsity.csv").read_text().splitlines(),
    }


def main(out: Path) -> None:
    def folder(name: str) -> Path:
        path = out / "files" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    found = {
        "versions": {name: version(name).partition("+")[0] for name in ("nncf", "torch", "transformers", "pymoo")},
        "subnets": subnets(folder("subnets")),
        "spaces": spaces(folder("spaces")),
        "stage_training": training(folder("training")),
        "global_training": training(folder("global_training"), GLOBAL_LR),
        "orders": orders(folder("orders")),
        "distillation": distillation(folder("distillation")),
        "search": search(folder("search"), ("width", "depth")),
        "width_search": search(folder("width_search"), ("width",)),
        "default_search": search(folder("default_search"), ("width",), num_evals=8, ref_acc=-1),
        "movement": movement(folder("movement")),
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    (out / "nncf.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
