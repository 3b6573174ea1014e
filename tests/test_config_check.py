"""``bootstrapnas config check``: what a file says, alone and for a model, and what it cannot say."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_configs
import pytest
import torch
from conftest import SIGNALS, tiny_bert_config
from published_spaces import SPACES, PublishedSpace
from transformers import (
    BertConfig,
    BloomConfig,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForQuestionAnswering,
    LlamaConfig,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForTokenClassification,
)

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.cli import main
from bootstrapnas.costs import count_costs
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.nncf_config import NodeNames, config_with_space, write_config
from bootstrapnas.pipeline.config.check import _REF_ACC_OF_BERT_BASE, explain
from bootstrapnas.pipeline.config.facts import Explanation
from bootstrapnas.pipeline.config.text import ranges
from bootstrapnas.space import SearchSpace

TEMPLATES = sorted((Path(__file__).parents[1] / "nncf_configs").rglob("*.json"))
LLAMA_13B = (13824, 12096, 10368, 8640, 6912)


def write(path: Path, raw: Any) -> str:
    path.write_text(json.dumps(raw), encoding="utf-8")
    return str(path)


def published(space: PublishedSpace, **stage: Any) -> Any:
    root = "BertForQuestionAnswering" if space.is_squad else published_configs.BERT
    return published_configs.eftnas(space.sizes("head"), space.sizes("ffn"), length=space.length, root=root, **stage)


def model_dir(path: Path, config: PreTrainedConfig, *architectures: str) -> str:
    config.architectures = list(architectures)
    config.save_pretrained(path)
    return str(path)


def tiny(**changes: Any) -> Any:
    """The config of a BERT that nobody published: 3 layers of 320, FFN 1000."""
    sizes: dict[str, Any] = {"heads": [(5, 3), (5, 1), (5,)], "ffn": [(1000, 500), (1000, 30), (1000,)], **changes}
    return published_configs.eftnas(**{"width_indicator": -1, **sizes})


# -- from the file alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_published_spaces_of_eftnas(tmp_path: Path, space: PublishedSpace) -> None:
    found = explain(write(tmp_path / "c.json", published(space, width_indicator=-1)))
    assert found.model.name == {"s1": "BERT-base", "s2": "BERT-medium"}[space.name[:2]]
    assert found.effective is not None
    assert found.effective.subnets == space.space().num_subnets
    assert found.listed == found.effective
    assert found.smallest is not None
    assert found.largest is not None
    # The published figures leave out the head of question answering, 0.6 MMACs.
    assert found.smallest.macs == pytest.approx(1e6 * space.mmacs[0], abs=1.6e6)
    assert found.largest.macs == pytest.approx(1e6 * space.mmacs[1], abs=1.6e6)
    assert found.warnings == found.unknown == ()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_widths_that_the_indicator_cuts_are_told(tmp_path: Path, space: PublishedSpace) -> None:
    found = explain(write(tmp_path / "c.json", published(space, width_indicator=space.width_indicator)))
    limited = space.space().limited(space.width_indicator)
    assert found.listed is not None
    assert found.effective is not None
    assert found.effective.subnets == limited.num_subnets
    assert found.effective.log10 == pytest.approx(math.log10(limited.num_subnets), abs=0.01)
    assert found.groups is not None
    assert [group.kept for group in found.groups] == list(limited.cardinalities)
    cut = sum(len(group.channels) > group.kept for group in found.groups)
    assert (cut > 0) == (found.listed != found.effective)
    told = [w for w in found.warnings if w.startswith(f"width_indicator {space.width_indicator} keeps only")]
    assert len(told) == (cut > 0)
    assert all(
        f"{cut} of {len(found.groups)} groups" in text and "neither trained nor searched" in text for text in told
    )


@pytest.mark.parametrize(
    ("raw", "name", "groups", "log10"),
    [
        (published_configs.lonas_llama(), "LLaMA-7B", 96, 64 * math.log10(2) + 32 * math.log10(5)),
        (published_configs.lonas_llama(base="base"), "LLaMA-7B", 96, 64 * math.log10(2) + 32 * math.log10(5)),
        (published_configs.lonas_llama(40, LLAMA_13B), "LLaMA-13B", 120, 80 * math.log10(2) + 40 * math.log10(5)),
        (published_configs.lonas_llama(32, LLAMA_13B), None, 96, 64 * math.log10(2) + 32 * math.log10(5)),
        (published_configs.lonas_bloomz(), "BLOOMZ-7B1", 90, 60 * math.log10(2) + 30 * math.log10(5)),
        (published_configs.lonas_bert(), "BERT-base", 36, 12 * math.log10(2 * 3 * 3)),
    ],
)
def test_published_forms_of_lonas(tmp_path: Path, raw: Any, name: str | None, groups: int, log10: float) -> None:
    found = explain(write(tmp_path / "c.json", raw))
    assert found.model.name == name
    assert found.groups is not None
    assert len(found.groups) == groups
    assert found.effective is not None
    assert found.effective.log10 == pytest.approx(log10, abs=0.01)
    # The adapters that groups name are counted; without a family or all sizes nothing is.
    labelled = name is not None
    assert (found.smallest is not None) == labelled
    assert any(text.startswith("adapters that no group" if labelled else "costs: ") for text in found.unknown)
    assert found.search.floor == pytest.approx(raw["bootstrapNAS"]["search"]["ref_acc"] - 0.01)  # one scale for both
    assert not [text for text in found.warnings if "acc_delta" in text]


def test_ranks_written_for_every_layer_need_a_model(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", published_configs.shears())
    alone = explain(path)
    assert alone.model.sizes == {}
    assert alone.effective is None
    assert alone.groups is not None
    assert [(group.layers, group.channels) for group in alone.groups] == [(None, (32, 24, 16))] * 3
    given = explain(path, model_dir(tmp_path / "m", LlamaConfig(num_hidden_layers=4), "LlamaForCausalLM"))
    assert given.effective is not None
    assert given.effective.subnets == 3 ** (3 * 4)


def test_an_unpublished_shape_has_costs_but_no_heads_and_no_vocabulary(tmp_path: Path) -> None:
    found = explain(write(tmp_path / "c.json", tiny()))
    config = BertConfig(
        hidden_size=320, num_hidden_layers=3, num_attention_heads=5, intermediate_size=1000, num_labels=2
    )
    blueprint = Blueprint(config, "BertForSequenceClassification")
    full = count_costs(blueprint, length=128)
    classifier = 2 * 320
    assert found.model.name is None
    assert found.model.sizes == {"hidden_size": 320, "intermediate_size": 1000, "num_hidden_layers": 3}
    assert found.largest is not None
    assert found.largest.macs == full.macs - classifier
    assert found.largest.params is None
    assert found.largest.params_without_embeddings == full.params_without_embeddings - classifier - 2
    assert found.groups is not None
    assert found.groups[1].channels == (320, 64)
    assert found.groups[1].units is None


@pytest.mark.parametrize(
    ("model_class", "config", "name"),
    [
        (DistilBertForSequenceClassification, DistilBertConfig(), "DistilBERT"),
        (ElectraForQuestionAnswering, ElectraConfig(embedding_size=128), "ELECTRA-small"),
        (ModernBertForSequenceClassification, ModernBertConfig(), "ModernBERT-base"),
        (
            RobertaForTokenClassification,
            RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
            "RoBERTa-base",
        ),
    ],
)
def test_written_configs_of_other_families_tell_their_model(
    tmp_path: Path, model_class: type[PreTrainedModel], config: PreTrainedConfig, name: str
) -> None:
    """A space that this program wrote for a model is explained as for that model, without it."""
    with torch.device("meta"):
        model = model_class(config)
    blueprint = Blueprint.of(model)
    choices = [(key, (blueprint.full[key], 1)) for key in blueprint.elastic if not blueprint.is_block(key)]
    space = SearchSpace.build(blueprint, choices)
    raw = config_with_space(tiny(), blueprint, NodeNames.of(model), space)
    path = tmp_path / "c.json"
    write_config(path, raw)
    alone, given = explain(str(path)), explain(str(path), model_dir(tmp_path / "m", config))
    assert alone.model.name == name
    assert alone.smallest == given.smallest
    assert alone.largest == given.largest
    assert alone.groups == given.groups


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_files_of_the_project(path: Path) -> None:
    found = explain(str(path))
    assert all("eval_metric_name" in entry for entry in map(str, found.ignored))  # which the published ones have
    assert (found.movement_sparsity is None) == ("lonas" in path.parts)
    assert found.sequence_length


# -- for a model -------------------------------------------------------------------------------------------------------


def test_costs_for_a_model_are_those_of_the_network(tmp_path: Path, tiny_bert_dir: Path) -> None:
    raw = published_configs.eftnas([(4, 1), (3, 2)], [(128, 20), (128,)], head_dim=16, length=32, width_indicator=-1)
    found = explain(write(tmp_path / "c.json", raw), str(tiny_bert_dir))
    blueprint = Blueprint(tiny_bert_config(), "BertForSequenceClassification")
    assert found.model.labels == len(SIGNALS)
    assert found.largest is not None
    assert found.smallest is not None
    smallest = {Key("head", 0): 1, Key("head", 1): 2, Key("ffn", 0): 20}
    for costs, subnet in ((found.largest, {Key("head", 1): 3}), (found.smallest, smallest)):
        expected = count_costs(blueprint, subnet, length=32)
        assert costs.macs == expected.macs
        assert costs.params == expected.params
        assert costs.params_without_embeddings == expected.params_without_embeddings
    assert any("largest width 48 is below the full 64" in text for text in found.warnings)


def test_a_template_gets_its_groups_from_the_model(tiny_bert_dir: Path) -> None:
    found = explain(str(TEMPLATES[0].parent / "quickstart.json"), str(tiny_bert_dir))
    assert found.groups is not None
    assert [(group.name, group.layers, group.channels) for group in found.groups] == [
        ("head", (0,), (64, 32)),
        ("head", (1,), (64, 32)),
        ("ffn", (0,), (128, 96, 64, 32)),
        ("ffn", (1,), (128, 96, 64, 32)),
    ]
    assert found.blocks is not None
    assert set(found.blocks.elastic or ()) == {"mha_block[0]", "mha_block[1]", "ffn_block[0]", "ffn_block[1]"}


BASE, MEDIUM = SPACES[0], next(space for space in SPACES if space.name.startswith("s2"))
MEDIUM_CONFIG = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}


@pytest.mark.parametrize(
    ("raw", "config", "message"),
    [
        (
            published(BASE),
            BertConfig(**MEDIUM_CONFIG),
            "attention.self.query of layer 0 (bootstrapNAS.training.elasticity.width.overwrite_groups[0]) has 768 "
            "channels in the config, 512 in the model; the config is for BERT-base: 12 layers, hidden 768, FFN 3072, "
            "the model is bert: 8 layers, hidden 512, 8 heads, FFN 2048",
        ),
        (
            published(MEDIUM),
            BertConfig(),
            "overwrite_groups[0]) has 512 channels in the config, 768 in the model; the config is for BERT-medium",
        ),
        (
            published(BASE),
            BertConfig(num_hidden_layers=6),
            "attention.self.query of layer 6 (bootstrapNAS.training.elasticity.width.overwrite_groups[6]) is beyond "
            "the model's 6 layers",
        ),
        (
            published_configs.lonas_bloomz(),
            BloomConfig(hidden_size=1024, n_layer=30, n_head=16),
            "mlp.dense_h_to_4h.base_layer of layer 0 (bootstrapNAS.training.elasticity.width.overwrite_groups[30]) has "
            "16384 channels in the config, 4096 in the model",
        ),
        (published(BASE), RobertaConfig(), "is of another type; the config is for BERT-base: 12 layers"),
        (
            published_configs.lonas_llama(),
            LlamaConfig(num_hidden_layers=40, intermediate_size=13824),
            "mlp.gate_proj.base_layer of layer 0 (bootstrapNAS.training.elasticity.width.overwrite_groups[32]) has "
            "11008 channels in the config, 13824 in the model",
        ),
    ],
)
def test_a_config_for_another_model(tmp_path: Path, raw: Any, config: PreTrainedConfig, message: str) -> None:
    model = model_dir(tmp_path / "m", config)
    with pytest.raises(UserError) as caught:
        explain(write(tmp_path / "c.json", raw), model)
    assert str(caught.value).startswith(f"{tmp_path / 'c.json'} does not fit {model}: ")
    assert message in str(caught.value)


# -- traps -------------------------------------------------------------------------------------------------------------


def stage(**values: Any) -> Callable[[Any], None]:
    return lambda raw: raw["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0].update(values)


def search(**values: Any) -> Callable[[Any], None]:
    return lambda raw: raw["bootstrapNAS"]["search"].update(values)


def movement(**values: Any) -> Callable[[Any], None]:
    params = {"warmup_start_epoch": 1, "warmup_end_epoch": 3, "importance_regularization_factor": 0.02, **values}
    return lambda raw: raw.update(compression={"algorithm": "movement_sparsity", "params": params})


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (stage(width_indicator=1), "the space has one subnet: there is nothing to search"),
        (stage(epochs=4, epochs_lr=6), "stage 0: the learning rate would reach zero after 6 epochs (epochs_lr), but"),
        (search(ref_acc=1), "ref_acc 1 is read as the fraction 1.0"),
        (search(ref_acc=100, acc_delta=0), "asks for 100 %, which no subnet has"),
        (search(ref_acc=20, acc_delta=50), "not above 0"),
        (search(ref_acc=0.9, acc_delta=0.5), "acc_delta 0.5 beside ref_acc 0.9 is a fraction, 50 points of a percent"),
        (search(num_evals=500), "the space has 16 subnets, fewer than the 500 evaluations of the search"),
        (movement(warmup_start_epoch=0), "compression.params.warmup_start_epoch 0 begins with untrained scores"),
        (lambda raw: raw["bootstrapNAS"]["training"].pop("schedule"), "list_stage_descriptions is missing: NNCF's"),
    ],
)
def test_traps(tmp_path: Path, change: Callable[[Any], object], warning: str) -> None:
    raw = copy.deepcopy(tiny())
    change(raw)
    found = explain(write(tmp_path / "c.json", raw))
    assert [text for text in found.warnings if warning in text], found.warnings


def test_a_rate_over_all_stages_leaves_none_to_a_stage(tmp_path: Path) -> None:
    raw = copy.deepcopy(tiny())
    stage(epochs=4, epochs_lr=6)(raw)
    raw["bootstrapNAS"]["training"]["lr_schedule"] = {"params": {"base_lr": 1e-4}}
    found = explain(write(tmp_path / "c.json", raw))
    assert not [text for text in found.warnings if "epochs_lr" in text]
    assert [key.rpartition(".")[2] for key, _ in found.ignored] == ["epochs_lr"]


def test_values_published_for_bert_base_on_bert_medium(tmp_path: Path) -> None:
    def is_warned(space: PublishedSpace, ref_acc: float) -> bool:
        raw = published(space, width_indicator=-1, search={"ref_acc": ref_acc})
        found = explain(write(tmp_path / "c.json", raw))
        return any("is the value published for BERT-base" in text for text in found.warnings)

    assert {space.ref_acc for space in SPACES if space.model == BASE.model} == _REF_ACC_OF_BERT_BASE
    assert [is_warned(space, 92.32) for space in (BASE, MEDIUM)] == [False, True]


def test_settings_of_the_search(tmp_path: Path) -> None:
    raw = tiny(search={"num_evals": 105, "population": 20, "ref_acc": 92.32})
    found = explain(write(tmp_path / "c.json", raw)).search
    assert (found.generations, found.evaluations, found.rounded_away) == (5, 100, 5)
    assert found.floor == pytest.approx(0.9132)


@pytest.mark.parametrize(
    ("settings", "floor"),
    [
        ({}, "the largest subnet's own less 1 point (acc_delta)"),
        ({"acc_delta": 0}, "the largest subnet's own"),
        ({"ref_acc": 92.5, "acc_delta": 0.5}, "92.00% (ref_acc 92.5 less acc_delta 0.5 points)"),
    ],
)
def test_the_floor_of_the_best_subnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: Any, floor: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = words(capsys, write(tmp_path / "c.json", tiny(search=settings)))
    assert f"  - the best subnet: the fewest MACs with a metric of at least {floor}\n" in found


def test_a_teacher_a_metric_and_points_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = {"algorithm": "RNSGA2", "aspiration_points": [[5500, -80], [0, 0]], "eval_metric_name": "eval_f1"}
    raw = tiny(search=points)
    raw["bootstrapNAS"]["training"]["compression"] = {"algorithm": "knowledge_distillation", "type": "mse"}
    raw |= {"kd_teacher_model": "teacher", "kd_temperature": 2}
    found = words(capsys, write(tmp_path / "c.json", raw))
    for line in (
        "kd_teacher_model: teacher",
        "unless a teacher is named, it is the model before training: type mse, scale",
        "near 5,500 M MACs, 80.00%; 0 M MACs, 0.00%",
        "metric: eval_f1",
    ):
        assert f"  - {line}" in found, found


def test_a_file_of_scores_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw: dict[str, Any] = {}
    movement()(raw)
    found = words(capsys, write(tmp_path / "c.json", raw))
    assert "  - what is elastic: the config has no bootstrapNAS.training" in found
    assert "Search space" not in found


# -- the command -------------------------------------------------------------------------------------------------------


def words(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", "check", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_json_is_one_document_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.json", published_configs.lonas_bert())
    found = json.loads(words(capsys, path, "--json"))
    assert found.keys() == set(Explanation.__dataclass_fields__)
    assert found["groups"][12]["modules"] == [
        "attention.self.query.lora_A.default",
        "attention.self.value.lora_A.default",
    ]
    assert found["ignored"][0]["key"] == "bootstrapNAS.training.frozen_layers_allowed"
    assert found["largest"]["macs"] == 11_211_964_416


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (
            published(BASE, width_indicator=4),
            [
                "  - BERT-base, BertForSequenceClassification",
                "Elastic width: 24 groups",
                "  head (attention.self.query, key, value), 64 channels each",
                "  1         12 11 7 5 (4)    768 704 448 320 (256)",
                "  11        3072 1991 1322 799 (370)",
                "  largest        11,174          109.48                   85.65",
            ],
        ),
        (
            published_configs.lonas_llama(),
            [
                "  ffn (mlp.gate_proj.base_layer, gate_proj.lora_B, up_proj.base_layer,",
                "  rank (self_attn.q_proj.lora_A, k_proj.lora_A, v_proj.lora_A)",
                "  0-31      11008 9632 8256 6880 5504",
                "  largest         1,722,953           6,795                   6,663",
            ],
        ),
        (published_configs.shears(), ["  every     32 24 16", "  - unknown number of subnets in all"]),
    ],
)
def test_words_fit_in_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw: Any, lines: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.json", raw)
    found = words(capsys, "c.json").splitlines()
    assert found == [line.rstrip() for line in found]
    assert max(map(len, found)) <= 80
    assert len(found) < 90
    for line in lines:
        assert line in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "check", "none.json"], "nncf_config none.json does not exist"),
        (["config", "check", "cut.json"], "cut.json is not JSON at line 1: "),
        (["config", "check", "typo.json"], "typo.json: unknown key bootstrapNAS.serch; did you mean 'search'?"),
        (["config", "check", "acc.json"], "acc.json: bootstrapNAS.search: ref_acc must be a fraction, a percentage"),
        (["config", "check", "nsga3.json"], "nsga3.json: bootstrapNAS.search: there is no algorithm 'NSGA3'; did you"),
        (["config", "check", "good.json", "--model_name_or_path", "."], "config.json does not exist"),
        (["config", "check", "good.json", "--model_name_or_path", "subnet"], "subnet is an extracted subnet; give"),
        (["config", "check", "good.json", "--jsn"], "unknown flag --jsn; did you mean '--json'?; see"),
        (["config", "check", "good.json", "more"], "unexpected argument 'more'; see bootstrapnas config check --help"),
        (["config", "check"], "the following arguments are required: FILE; see bootstrapnas config check --help"),
        (["confg"], "unknown command 'confg'; did you mean 'config'?; see bootstrapnas --help"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "subnet").mkdir()
    write(tmp_path / "subnet" / "config.json", {"model_type": "bert", "subnet": {}})
    write(tmp_path / "good.json", tiny())
    (tmp_path / "cut.json").write_text('{"a"', encoding="utf-8")
    write(tmp_path / "typo.json", {"bootstrapNAS": {"serch": {}}})
    write(tmp_path / "acc.json", {"bootstrapNAS": {"search": {"ref_acc": -90}}})
    write(tmp_path / "nsga3.json", {"bootstrapNAS": {"search": {"algorithm": "NSGA3"}}})
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bootstrapnas: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path, tiny_bert_dir: Path) -> None:
    path = write(tmp_path / "c.json", published(BASE))
    given = [str(TEMPLATES[0]), "--model_name_or_path", str(tiny_bert_dir)]
    program = (
        "import sys; from bootstrapnas.cli import main\n"
        f"for arguments in {[[path], given]!r}: assert main(['config', 'check', *arguments]) == 0\n"
        "known = {'torch', 'transformers', 'nncf', 'openvino', 'datasets', 'matplotlib', 'pymoo'}\n"
        "heavy = known & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """``bootstrapnas config schema | head``."""
    program = "import sys; from bootstrapnas.cli import main; sys.exit(main(['config', 'schema']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    listed = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == listed
    assert all(
        f"\n  {name:<13}  " in listed for name in ("export", "benchmark", "latency-table", "import-nncf", "config")
    )


def test_the_package_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "bootstrapnas", "config", "check"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("bootstrapnas: error: the following arguments are required: FILE")


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""
