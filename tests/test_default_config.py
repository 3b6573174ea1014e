"""EFTNAS without an NNCF config: what is scored, the space that is written, and that no target gets lost in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_models import build_causal, build_tokenizer
from command_line import eftnas, succeed, write_config
from conftest import TaskFiles, tiny_bert_config
from families import ROWS, Row
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from bootstrapnas import space_generation
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key
from bootstrapnas.importance import CRITERIA, PerDim, load_importance
from bootstrapnas.nncf_config import NodeNames, build_space, check_config, config_with_space, read_config
from bootstrapnas.space_generation import even_targets, generate_space, mac_targets
from eftnas.default_config import default_movement_config, default_space_config
from eftnas.importance import structures_of
from eftnas.search_space import uncut

CONFIGS = Path(__file__).parents[1] / "nncf_configs" / "eftnas"
TINY = Blueprint(tiny_bert_config(), "BertForSequenceClassification")


def random_scores(blueprint: Blueprint, seed: int) -> dict[Key, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = (key for key in blueprint.elastic if not blueprint.is_block(key))
    return {key: torch.randn(blueprint.full[key], generator=generator) for key in keys}


# -- what is scored ----------------------------------------------------------------------------------------------------


def test_bert_base_is_scored_as_published() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    blueprint, names = Blueprint.of(model), NodeNames.of(model)
    default = check_config(default_movement_config(blueprint, names.linears, 3))
    published = read_config(CONFIGS / "s1_bert_base" / "mnli.json")
    assert structures_of(default, names) == structures_of(published, names)
    assert default.movement.params.warmup_start_epoch == published.movement.params.warmup_start_epoch == 1
    assert default.movement.params.warmup_end_epoch == published.movement.params.warmup_end_epoch == 3


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_linear_layer_of_a_group_is_scored_and_no_other(row: Row) -> None:
    model = row.build()
    blueprint, names = Blueprint.of(model), NodeNames.of(model)
    found = structures_of(check_config(default_movement_config(blueprint, names.linears, 1)), names)
    members = {
        (parameter.name.removesuffix(".weight"), axis): blueprint.channels_along(parameter.axes[axis], key)
        for key in blueprint.widths
        for parameter, axis in blueprint.members(key)
        if parameter.applied
    }
    several = {path for path, count in Counter(path for path, _ in members).items() if count > 1}
    assert found.keys() == {path for path, _ in members}
    for (path, axis), channels in members.items():
        axis = 1 - axis if isinstance(model.get_submodule(path), Conv1D) else axis
        rows, columns = found[path].factors(blueprint.shape(f"{path}.weight", {}))
        if path in several:
            assert rows == columns == 1
        elif channels == 1:
            assert found[path] == PerDim(axis)
        else:
            assert rows == columns
            assert channels % rows == 0


# -- the space ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_family_and_head_gets_a_space(row: Row) -> None:
    """By its labels alone; a fused projection is one node of its group. What is written is read as the same space."""
    model = row.build()
    blueprint, names = Blueprint.of(model), NodeNames.of(model)
    full = count_macs(blueprint, length=16)
    report = generate_space(blueprint, random_scores(blueprint, 0), mac_targets(full, 0.3), length=16)
    raw = config_with_space(default_space_config(blueprint, 16), blueprint, names, report.space)
    space = build_space(check_config(raw), blueprint)
    assert set(space.genes) == set(report.space.genes)
    width = raw["bootstrapNAS"]["training"]["elasticity"]["width"]
    nodes = [node for group in width["overwrite_groups"] for node in group]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) <= set(names.linears.values())
    assert all(count_macs(blueprint, found.subnet, length=16) == found.macs for found in report.subnets)


@given(st.integers(2, 10**9), st.integers(1, 10**9), st.integers(2, 40))
def test_targets_include_both_ends(full: int, lowest: int, num: int) -> None:
    full += lowest
    targets = even_targets(full, lowest, num)
    assert (targets[0], targets[-1], len(targets)) == (lowest, full, num)
    assert all(a <= b for a, b in pairwise(targets))
    steps = [b - a for a, b in pairwise(targets)]
    assert max(steps) - min(steps) < num


@given(st.integers(0, 10**6), st.floats(0.05, 0.95), st.integers(2, 6), st.booleans())
def test_every_target_is_in_the_space_that_is_written(seed: int, lowest: float, num: int, blocks: bool) -> None:
    """The lowest boundary too, whatever width_indicator the config came with."""
    scores = random_scores(TINY, seed)
    full = count_macs(TINY, length=16)
    report = generate_space(
        TINY,
        scores,
        mac_targets(full, lowest, num),
        length=16,
        multiple={},
        depth="half_blocks" if blocks else "none",
        skip_below=0.1,
    )
    raw = default_space_config(TINY, 16)
    raw["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]["width_indicator"] = 1 + seed % 6
    with torch.device("meta"):
        names = NodeNames.of(BertForSequenceClassification(tiny_bert_config()))
    written = check_config(config_with_space(uncut(check_config(raw), report.space), TINY, names, report.space))
    space = build_space(written, TINY)
    for found in report.subnets:
        space.genome(found.subnet)  # raises where it is not in the space
    smallest = min(report.subnets, key=lambda found: found.macs)
    assert count_macs(TINY, space.subnet(space.min_genome), length=16) <= smallest.macs


def test_the_search_for_a_threshold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """MACs jump where a head of equal channels goes; NNCF's bisection of floats spins there for ever."""
    calls = 0

    def counted(*arguments: Any, **settings: Any) -> int:
        nonlocal calls
        calls += 1
        return count_macs(*arguments, **settings)

    monkeypatch.setattr(space_generation, "count_macs", counted)
    scores = {key: score.round() for key, score in random_scores(TINY, 0).items()}
    distinct = len({value for score in scores.values() for value in score.tolist()})
    targets = mac_targets(count_macs(TINY, length=16), 0.1, 9)
    generate_space(TINY, scores, targets, length=16, tolerance=0)
    assert calls <= len(targets) * (math.ceil(math.log2(distinct + 1)) + 5)


@pytest.mark.parametrize(
    ("schedule", "indicators"),
    [
        ({"list_stage_descriptions": [{"train_dims": ["width", "depth"], "width_indicator": 9}]}, [9]),
        ({"list_stage_descriptions": [{"train_dims": ["width", "depth"]}]}, [-1]),
        (
            {
                "list_stage_descriptions": [
                    {"train_dims": ["width"], "width_indicator": 2},
                    {"train_dims": ["width", "depth"], "width_indicator": 3, "epochs": 4},
                ]
            },
            [2, -1],
        ),
        ({}, [1, 1, 1, -1]),  # NNCF's default stages, less the one of kernels
    ],
)
def test_width_indicator_leaves_no_generated_width_out(schedule: dict[str, Any], indicators: list[int]) -> None:
    raw = default_space_config(TINY, 16)
    raw["bootstrapNAS"]["training"]["schedule"] = schedule
    if not schedule:
        raw["bootstrapNAS"]["training"]["progressivity_of_elasticity"] = ["depth", "width"]
    report = generate_space(TINY, random_scores(TINY, 1), mac_targets(count_macs(TINY, length=16)), length=16)
    config = check_config(uncut(check_config(raw), report.space))
    assert [stage.width_indicator for stage in config.training.stages] == indicators
    assert raw["bootstrapNAS"]["training"]["schedule"] == schedule  # the input is left as it was


# -- the commands ------------------------------------------------------------------------------------------------------


def test_the_stages_need_no_config(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> None:
    files = {"train_file": tiny_task_files.train, "validation_file": tiny_task_files.validation}
    model = {"model_name_or_path": tiny_bert_dir}
    brief = {"per_device_train_batch_size": 48, "save_strategy": "no"}
    scored = succeed(
        "importance", **model, **files, max_seq_length=24, num_train_epochs=3, output_dir=tmp_path / "scores", **brief
    )
    assert "warning" not in scored.err
    ranked = {"importance_weight_dir": tmp_path / "scores"}
    succeed("search-space", **model, **ranked, target_config=tmp_path / "space.json")
    written = read_config(tmp_path / "space.json")
    assert {entry.sample_size for entry in written.document.input_info} == {(1, 24)}
    assert written.training.stages[-1].width_indicator == -1
    trained = succeed(
        "train", **model, **ranked, nncf_config=tmp_path / "space.json", num_train_epochs=1,
        output_dir=tmp_path / "supernet", **brief,
    )  # fmt: skip
    assert "warning" not in trained.err
    space = build_space(written, TINY)
    ratio = count_macs(TINY, space.subnet(space.min_genome), length=24) / count_macs(TINY, length=24)
    assert ratio <= 0.35  # the default lowest target is a fifth; the heads of the tiny model are coarse
    succeed("search-space", **model, **ranked, max_seq_length=16, target_config=tmp_path / "short.json")
    assert read_config(tmp_path / "short.json").document.input_info[0].sample_size == (1, 16)

    both = eftnas(
        "search-space", **model, **ranked, max_seq_length=16, source_config=tmp_path / "space.json", target_config="x"
    )
    assert both.status == 2
    assert "pass either --source_config, whose input_info gives the length, or --max_seq_length" in both.err


@pytest.mark.parametrize(
    ("build", "criterion", "length"),
    [
        (lambda: BertModel(tiny_bert_config()), "l1", 64),  # the positions that the tiny model has
        (lambda: BertForMaskedLM(tiny_bert_config()), "geometric_median", 64),
        (lambda: build_causal("llama"), "l2", 128),
    ],
    ids=["no head", "masked LM", "decoder"],
)
def test_weights_are_scored_without_a_task(
    tmp_path: Path, build: Callable[[], PreTrainedModel], criterion: str, length: int
) -> None:
    """Of a model as it is saved: there are no rows, and no tokenizer."""
    model = build()
    model.save_pretrained(tmp_path / "model")
    source, ranked = {"model_name_or_path": tmp_path / "model"}, {"importance_weight_dir": tmp_path / "scores"}
    scored = succeed("importance", **source, criterion=criterion, output_dir=tmp_path / "scores")
    assert f"the weights of {type(model).__name__}, as it is saved, are scored" in scored.err
    blueprint = Blueprint.of(model)
    scores, _ = load_importance(tmp_path / "scores" / "importance.safetensors", blueprint)
    found = CRITERIA[criterion](model, blueprint, [], lambda *_: torch.zeros(()))
    assert set(scores) == set(found)
    assert all(torch.equal(scores[name], found[name]) for name in found)
    for written, flags in ((length, {}), (16, {"max_seq_length": 16})):
        target = tmp_path / f"{written}.json"
        succeed("search-space", **source, **ranked, **flags, target_config=target)
        config = read_config(target)
        assert config.document.input_info[0].sample_size == (1, written)
        assert build_space(config, blueprint).num_subnets > 1


@pytest.mark.parametrize(
    "flags",
    [
        {"criterion": "wanda"},
        {},
        {"criterion": "l1", "max_train_samples": 8},
        {"criterion": "l1", "from_scratch": True},
    ],
    ids=lambda flags: " ".join(map(str, flags.values())) or "movement",
)
def test_what_looks_at_rows_needs_a_task(tmp_path: Path, tiny_bert_dir: Path, flags: dict[str, Any]) -> None:
    outcome = eftnas("importance", model_name_or_path=tiny_bert_dir, output_dir=tmp_path / "scores", **flags)
    assert outcome.status == 2
    assert f"no task: pass --task_name or --train_file (there is none to inherit: {tiny_bert_dir} has" in outcome.err


def test_a_space_of_the_hidden_size_is_trained(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles) -> None:
    """Of decoders; encoders' embeddings may have a size of their own."""
    build_causal("llama").save_pretrained(tmp_path / "llama")
    build_tokenizer().save_pretrained(tmp_path / "llama")
    files = {"train_file": tiny_task_files.train, "validation_file": tiny_task_files.validation, "max_seq_length": 24}
    model, ranked = {"model_name_or_path": tmp_path / "llama"}, {"importance_weight_dir": tmp_path / "scores"}
    succeed("importance", **model, **files, criterion="l1", output_dir=tmp_path / "scores")
    blueprint = Blueprint(AutoConfig.from_pretrained(tmp_path / "llama"), "LlamaForSequenceClassification")
    sizes: dict[bool, tuple[int, ...]] = {}
    for hidden in (False, True):
        succeed("search-space", **model, **ranked, hidden=hidden, target_config=tmp_path / f"{hidden}.json")
        space = build_space(read_config(tmp_path / f"{hidden}.json"), blueprint)
        sizes[hidden] = next((gene.choices for gene in space.genes if gene.keys == (Key("hidden"),)), ())
    assert sizes[False] == ()
    assert max(sizes[True]) == 32 > min(sizes[True])
    succeed("train", **model, **ranked, nncf_config=tmp_path / "True.json", max_train_samples=16, num_train_epochs=1,
            save_strategy="no", output_dir=tmp_path / "supernet")  # fmt: skip
    encoder = {"model_name_or_path": tiny_bert_dir, "importance_weight_dir": tmp_path / "bert"}
    succeed("importance", model_name_or_path=tiny_bert_dir, **files, criterion="l1", output_dir=tmp_path / "bert")
    refused = eftnas("search-space", **encoder, hidden=True, target_config=tmp_path / "no.json")
    assert "--hidden: the hidden size of family 'bert' is fixed" in refused.err


def test_a_config_without_depth_keeps_all_blocks(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: TaskFiles
) -> None:
    def without_depth(config: dict[str, Any]) -> None:
        training = config["bootstrapNAS"]["training"]
        training["elasticity"]["available_elasticity_dims"] = training["progressivity_of_elasticity"] = ["width"]
        training["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width"]

    files = {"train_file": tiny_task_files.train, "validation_file": tiny_task_files.validation}
    model = {"model_name_or_path": tiny_bert_dir}
    succeed("importance", **model, **files, criterion="l1", output_dir=tmp_path / "scores")
    arguments = {
        **model,
        "importance_weight_dir": tmp_path / "scores",
        "source_config": write_config(tmp_path / "config.json", without_depth),
        "skip_below": 0.9,
        "target_config": tmp_path / "space.json",
    }
    succeed("search-space", **arguments)
    assert not any(
        TINY.is_block(gene.keys[0]) for gene in build_space(read_config(tmp_path / "space.json"), TINY).genes
    )
    asked = eftnas("search-space", **{**arguments, "target_config": tmp_path / "other.json"}, depth=True)
    assert asked.status == 2
    assert "'depth' is not both in" in asked.err
