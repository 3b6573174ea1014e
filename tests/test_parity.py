"""What NNCF 2.19 computes, and what this project computes on the same model, data and config.

The values come from `tests/golden/nncf.json`, which `make parity` compares with a fresh run of NNCF itself
(`tests/parity/reference.py`); it runs these tests on that run too. Where the two differ on purpose, the test says how.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import OrderedDict
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from parity import setting
from torch import Tensor
from torch.nn import functional as F
from transformers import BertForSequenceClassification

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_linear_macs, count_nncf_flops
from bootstrapnas.dims import Key, Subnet
from bootstrapnas.distillation import Distillation
from bootstrapnas.foreign import load_foreign_tensors
from bootstrapnas.importance import attach, resolve, write_structured_sparsity
from bootstrapnas.importance.filters import filter_orders
from bootstrapnas.nncf_config import NNCFConfig, NodeNames, build_space, check_config, search_settings
from bootstrapnas.outputs import LOGITS
from bootstrapnas.pipeline.import_nncf import find, scores_of
from bootstrapnas.pipeline.search.progression import Progression
from bootstrapnas.reorder import reorder
from bootstrapnas.schedule import StageSchedule, build_schedule
from bootstrapnas.search import Candidate, Objective, SearchSettings
from bootstrapnas.search.select import select_best
from bootstrapnas.space import SearchSpace
from bootstrapnas.supernet import Supernet
from eftnas.importance import movement_settings, structures_of

FRESH = os.environ.get("NNCF_REFERENCE")
ACCURACY = Objective("accuracy", maximise=True)
GOLDEN = Path(__file__).parent / "golden" / "nncf.json"

BLOCKS = [Key(name, layer) for name in ("mha_block", "ffn_block") for layer in range(setting.LAYERS)]
"""NNCF's numbers of the blocks, unless they are chained."""


@pytest.fixture(scope="module")
def nncf() -> Any:
    """What NNCF computed: `make parity` says where it was just written, else the golden values."""
    return json.loads((Path(FRESH) / "nncf.json" if FRESH else GOLDEN).read_text())


def config_of(**options: Any) -> NNCFConfig:
    return check_config(setting.nncf_config(**options))


def subnet_of(entry: dict[str, Any]) -> Subnet:
    """Translate NNCF's widths by group and numbers of skipped blocks."""
    keys = [Key(dim, layer) for dim in ("head", "ffn") for layer in range(setting.LAYERS)]
    per_unit = {"head": setting.HIDDEN // setting.HEADS, "ffn": 1}
    widths = {key: width // per_unit[key.dim] for key, width in zip(keys, entry["width"], strict=True)}
    return {**widths, **{block: int(number not in entry["depth"]) for number, block in enumerate(BLOCKS)}}


def batch_of(subnet: Subnet, number: int) -> dict[str, Tensor]:
    """Return a batch, without its mask where NNCF loses it.

    That is a defect of NNCF: the operators that make attention's mask lie between the embeddings and the first
    attention, so that they are skipped with it, and later layers see the padding.
    """
    found = setting.batch(number)
    if subnet.get(Key("mha_block", 0)) == 0:
        del found["attention_mask"]
    return found


def logits_of(model: BertForSequenceClassification, subnet: Subnet, number: int = 0) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch_of(subnet, number)).logits
    return found


def assert_near(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.tensor(expected).double(), rtol=0, atol=tolerance)


@pytest.mark.skipif(not FRESH, reason="make parity runs NNCF")
def test_the_golden_values_are_those_of_nncf(nncf: Any) -> None:
    """To the rounding of another processor."""

    def same(golden: Any, fresh: Any, where: str) -> None:
        if isinstance(golden, dict):
            assert golden.keys() == fresh.keys(), where
            for key in golden:
                same(golden[key], fresh[key], f"{where}/{key}")
        elif isinstance(golden, list):
            assert len(golden) == len(fresh), where
            for index, (one, other) in enumerate(zip(golden, fresh, strict=True)):
                same(one, other, f"{where}/{index}")
        elif isinstance(golden, float) and "key.bias" not in where:
            assert fresh == pytest.approx(golden, abs=2e-5), where
        elif not isinstance(golden, float):
            assert fresh == golden, where

    same(json.loads(GOLDEN.read_text()), nncf, "")


# -- the supernet ------------------------------------------------------------------------------------------------------


def test_subnets_compute_and_cost_what_they_do_in_nncf(nncf: Any) -> None:
    """NNCF's FLOPs leave out attention's products, as `count_nncf_flops` does; our MACs elsewhere have them."""
    supernet = Supernet(setting.build_model())
    for entry in nncf["subnets"]:
        subnet = subnet_of(entry)
        assert count_nncf_flops(supernet.blueprint, subnet, length=setting.LENGTH) == entry["flops"]
        assert count_linear_macs(supernet.blueprint, subnet, length=1) == entry["weights"]
        with supernet.activate(subnet) as model:
            assert_near(logits_of(model, subnet), entry["logits"], 2e-6)
        assert_near(logits_of(supernet.extract(subnet), subnet), entry["logits"], 2e-6)


def test_spaces_under_indicators_and_what_random_draws_from_them(nncf: Any) -> None:
    """Blocks of a chain go from its end in NNCF; here each goes on its own, where the indicator lets it go at all."""
    blueprint = Blueprint.of(setting.build_model())
    for entry in nncf["spaces"]:
        stage = {"train_dims": ["width", "depth"], "init_lr": 1e-3}
        stage |= {name: entry[name] for name in ("width_indicator", "depth_indicator")}
        config = config_of(stages=[stage], chained=entry["chained"])
        said: list[str] = []
        space = build_space(config, blueprint, warn=said.append)
        widths = SearchSpace(tuple(gene for gene in space.genes if not blueprint.is_block(gene.keys[0])))
        channels = [[n * blueprint.channels_per_unit(g.keys[0]) for n in g.choices] for g in widths.genes]
        assert channels == entry["width"]
        order = [BLOCKS[number] for number in (0, 2, 1, 3)] if entry["chained"] else BLOCKS
        numbers = [order.index(gene.keys[0]) for gene in space.genes if blueprint.is_block(gene.keys[0])]
        ours = {skipped for count in range(len(numbers) + 1) for skipped in combinations(numbers, count)}
        theirs = set(map(tuple, entry["depth"]))
        is_wider = entry["chained"] and entry["depth_indicator"] > 1
        assert theirs < ours if is_wider else theirs == ours
        assert any("NNCF skips one only together with the later ones" in line for line in said) == is_wider
        random = Random(7)
        for drawn in entry["drawn"]:
            sizes = list(widths.subnet(widths.sample(random)).values())
            found = [
                size * (setting.HIDDEN // setting.HEADS if i < setting.LAYERS else 1) for i, size in enumerate(sizes)
            ]
            assert found == drawn["width"]
            skipped = tuple(number for number in range(len(BLOCKS)) if random.getrandbits(1))  # NNCF's way to draw
            assert tuple(drawn["depth"]) in theirs
            assert entry["chained"] or tuple(drawn["depth"]) == skipped


@pytest.mark.parametrize("kind", ["stage", "global"])
def test_training_along_the_same_subnets(nncf: Any, kind: str) -> None:
    """Learning rates with ``parity``, which keeps NNCF's lag of a step an epoch; losses, and the weights at the end."""
    entry = nncf[f"{kind}_training"]
    config = config_of(lr_schedule=setting.GLOBAL_LR if kind == "global" else None)
    options: dict[str, Any] = {"steps_per_epoch": setting.STEPS_PER_EPOCH, "epochs": 1.0, "learning_rate": 1.0}
    schedule: StageSchedule = build_schedule(config.training, **options, parity=True)
    assert schedule.total_steps == len(entry["steps"])
    supernet = Supernet(setting.build_model())
    spaces = [build_space(config, supernet.blueprint, stage=index, warn=lambda _: None) for index in range(2)]
    optimizer = torch.optim.SGD(supernet.model.parameters(), lr=1.0)
    supernet.model.train()
    for step, expected in enumerate(entry["steps"]):
        subnet = subnet_of(expected)
        space = spaces[schedule.index(step)]
        chosen = {key for gene in space.genes for key in gene.keys}
        space.genome({key: size for key, size in subnet.items() if key in chosen})  # raises if it is not in there
        assert schedule.lr(step) == pytest.approx(expected["lr"], rel=1e-9)
        optimizer.param_groups[0]["lr"] = schedule.lr(step)
        optimizer.zero_grad()
        with supernet.activate(subnet):
            loss = supernet.model(**batch_of(subnet, step % setting.STEPS_PER_EPOCH)).loss
            loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    supernet.model.eval()
    for name, subnet in (("logits", {}), ("smallest_logits", subnet_of(entry["smallest"]))):
        with supernet.activate(subnet):
            assert_near(logits_of(supernet.model, subnet), entry[name])


@pytest.mark.parametrize("filter_importance", ["L1", "L2", "geometric_median"])
def test_units_are_ordered_by_their_filters(nncf: Any, filter_importance: str) -> None:
    """Of heads NNCF orders the single rows of q, k and v, which changes what the model computes; here heads move."""
    entry = nncf["orders"][filter_importance]
    model = setting.build_model()
    before = logits_of(model, {})
    blueprint = Blueprint.of(model)
    orders = filter_orders(model, blueprint, filter_importance)
    assert orders[Key("ffn", 0)].tolist() == entry["order"]
    reorder(model, blueprint, orders)
    assert_near(logits_of(model, {}), before.tolist())
    assert (before - torch.tensor(entry["logits"])).abs().max() > 0.01


@pytest.mark.parametrize("number", range(len(setting.DISTILLATIONS)))
def test_distillation_from_the_model_before_training(nncf: Any, number: int) -> None:
    """NNCF's softmax kind is a cross entropy: the divergence plus the teacher's entropy, which has no gradient."""
    section = setting.DISTILLATIONS[number]
    supernet = Supernet(setting.build_model())
    subnet = subnet_of(setting.SUBNETS[1])
    teacher = logits_of(supernet.model, {})
    with supernet.activate(subnet):
        student = logits_of(supernet.model, subnet)
    temperature, scale, squared = section.get("temperature", 1.0), section["scale"], section["type"] == "mse"
    distillation = Distillation(temperature, 0.0, scale, outputs=(LOGITS,), squared=squared)
    found = distillation(torch.zeros(()), {LOGITS.name: student}, {LOGITS.name: teacher})
    scaled = teacher / temperature
    entropy = -(scaled.softmax(-1) * F.log_softmax(scaled, -1)).sum(-1).mean()
    expected = nncf["distillation"][number]
    assert float(found + (0.0 if squared else scale * temperature**2 * entropy)) == pytest.approx(expected, abs=1e-5)


# -- the search --------------------------------------------------------------------------------------------------------


def genome_of(row: str, space: SearchSpace) -> tuple[int, ...]:
    """Return the genome that a row of search_progression.csv describes."""
    names = {"OrderedDict": OrderedDict}
    text = next(csv.reader([row]))[0].replace("<ElasticityDim.WIDTH: 'width'>", "'width'")
    found = eval(text.replace("<ElasticityDim.DEPTH: 'depth'>", "'depth'"), names)
    subnet = subnet_of({"width": list(found["width"].values()), "depth": found.get("depth", [])})
    chosen = {key for gene in space.genes for key in gene.keys}
    return space.genome({key: size for key, size in subnet.items() if key in chosen})


def evaluate(supernet: Supernet, genome: tuple[int, ...]) -> dict[str, float]:
    """Return the accuracy and, so that it can be compared, NNCF's count of MACs, which lacks attention's products."""
    subnet = supernet.space.subnet(genome)
    with supernet.activate(subnet):
        scores = [setting.accuracy(logits_of(supernet.model, subnet, n), setting.batch(n)["labels"]) for n in range(4)]
    macs = count_linear_macs(supernet.blueprint, subnet, length=setting.LENGTH)
    return {"accuracy": sum(scores) / len(scores) / 100, "macs": macs}


@pytest.mark.parametrize("dims", [["width", "depth"], ["width"]], ids=" and ".join)
def test_search_progression(nncf: Any, dims: list[str], tmp_path: Path) -> None:
    """The same candidates give the same rows and the same choice.

    What is proposed differs: NNCF draws its first population unseeded, and has one gene for all of depth. The choice
    would differ on a tie with the floor, which NNCF refuses.
    """
    entry = nncf["search" if "depth" in dims else "width_search"]
    stage = {"train_dims": dims, "width_indicator": -1, "depth_indicator": 2, "init_lr": 1e-3}
    config = config_of(stages=[stage])
    supernet = Supernet(setting.build_model())
    supernet = Supernet(setting.build_model(), build_space(config, supernet.blueprint))
    genomes = [genome_of(row, supernet.space) for row in entry["rows"]]
    candidates = [
        Candidate(genome, evaluate(supernet, genome), 1 + index // setting.SEARCH["population"])
        for index, genome in enumerate(genomes)
    ]
    Progression(tmp_path, supernet, ACCURACY, "").write(candidates, None, draw=False)
    assert (tmp_path / "search_progression.csv").read_text().splitlines() == entry["rows"]
    settings = SearchSettings(**search_settings(config))
    best = select_best(candidates, ACCURACY, "macs", settings.ref_acc, settings.acc_delta)
    assert supernet.space.subnet(best.genome).items() <= subnet_of(entry["best"]).items()
    assert_near([best.values["macs"] / 1e6, 100 * best.values["accuracy"]], entry["best_values"])


def test_the_default_reference_has_the_wrong_sign_in_nncf(nncf: Any) -> None:
    """So every subnet passes; here it is the accuracy of the largest subnet."""
    supernet = Supernet(setting.build_model())
    accuracy = 100 * evaluate(supernet, ())["accuracy"]
    assert accuracy > 0
    assert nncf["default_search"]["ref_acc"] == pytest.approx(-accuracy)


# -- movement sparsity -------------------------------------------------------------------------------------------------


def test_movement_sparsity(nncf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds, penalty, losses, scores and masks along AdamW, with stock NNCF's cap at the 0.98 quantile.

    NNCF's final masks are those of the last step of the warm-up: of scores before that step, at its threshold. Here
    they are of the final scores at the final threshold; the comparison goes on with NNCF's. Scores of key biases are
    left out: a softmax does not see these biases, so Adam steps along rounding errors.
    """
    entry = nncf["movement"]
    config = check_config(setting.movement_config())
    model = setting.build_model().train()
    names, blueprint = NodeNames.of(model), Blueprint.of(model)
    settings = movement_settings(config, stock_cap=True)
    control = attach(model, structures_of(config, names), settings, setting.STEPS_PER_EPOCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.MOVEMENT_LR, weight_decay=0.0)
    masks: dict[str, Tensor] = {}
    for step, expected in enumerate(entry["steps"]):
        if step == control.end_step:
            monkeypatch.setattr(control, "masks", partial(dict, masks))
        control.step(step)
        masks = control.masks()
        threshold = -math.inf if expected["threshold"] is None else expected["threshold"]
        assert control.threshold == pytest.approx(threshold, abs=1e-6)
        optimizer.zero_grad()
        task, penalty = model(**setting.batch(step)).loss, control.loss()
        (task + penalty).backward()
        optimizer.step()
        assert task.item() == pytest.approx(expected["loss"], abs=2e-4)
        assert penalty.item() == pytest.approx(expected["penalty"], abs=1e-4)
        assert control.frozen or control.strength == pytest.approx(expected["strength"])
    scores = control.scores()
    assert scores.keys() == entry["scores"].keys()
    for name, expected in entry["scores"].items():
        if "key.bias" not in name:
            assert_near(scores[name], expected)
    units = resolve(blueprint, {name: mask.float() for name, mask in masks.items()}, 0.0)
    write_structured_sparsity(tmp_path / "s.csv", blueprint, units, lambda module: names.linears[module])
    assert (tmp_path / "s.csv").read_text().splitlines() == entry["structured_sparsity"]
    model.eval()
    assert_near(logits_of(model, {}), entry["logits"], 2e-4)
    for path, module in control.modules.items():
        for leaf in module.scored():
            mask = getattr(module, f"{leaf}_mask")
            size = module.get_parameter(leaf).numel()
            assert (size if mask is None else int(mask.sum())) == entry["kept"][f"{path}.{leaf}"]


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not FRESH, reason="make parity runs NNCF")
def test_files_of_nncf_are_read(nncf: Any) -> None:
    """Without its classes: weights of a supernet, and scores under NNCF's names."""
    files = Path(FRESH or "") / "files"
    model = setting.build_model()
    model.load_state_dict(load_foreign_tensors(files / "training" / "last_model_weights.pth"))
    assert_near(logits_of(model, {}), nncf["stage_training"]["logits"])
    imported = find(files / "movement")
    assert imported.supernet is None
    assert imported.scores is not None
    scores = scores_of(imported.scores[1])
    assert scores.keys() == nncf["movement"]["scores"].keys()
    for name, expected in nncf["movement"]["scores"].items():
        assert_near(scores[name], expected, 1e-7)
