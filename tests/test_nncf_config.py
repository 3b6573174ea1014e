"""NNCF configs: what is read, what is refused and how, and the search space in both directions."""

from __future__ import annotations

import copy
import itertools
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from published_spaces import SPACES, PublishedSpace
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.importance import Block, MovementSettings, PerDim, assign_structures, attach, build_structure
from bootstrapnas.nncf_config import (
    NNCFConfig,
    NodeNames,
    build_space,
    check_config,
    config_with_space,
    module_path,
    read_config,
    scope_matcher,
    search_settings,
    sequence_length,
    write_config,
)
from bootstrapnas.nncf_config.elastic_space import derived_sizes
from bootstrapnas.nncf_config.schema import Width
from bootstrapnas.search import SearchSettings
from bootstrapnas.space import Gene, SearchSpace
from bootstrapnas.supernet import Supernet

TEMPLATES = sorted((Path(__file__).parents[1] / "nncf_configs" / "eftnas").glob("*.json"))  # for any BERT
LAYERS = 3
ROOT = "BertForSequenceClassification/BertModel[bert]"
STAGES = "bootstrapNAS.training.schedule.list_stage_descriptions"
ELASTICITY = "bootstrapNAS.training.elasticity"


def tiny_model(layers: int = LAYERS) -> BertForSequenceClassification:
    """A BERT of 4 heads of 8 channels and 24 FFN channels, without weights."""
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=24
    )
    with torch.device("meta"):
        return BertForSequenceClassification(config)


MODEL = tiny_model()
BLUEPRINT = Blueprint.of(MODEL)
NAMES = NodeNames.of(MODEL)


def layer(index: int) -> str:
    return f"{ROOT}/BertEncoder[encoder]/ModuleList[layer]/BertLayer[{index}]"


def qkv(index: int) -> list[str]:
    attention = f"{layer(index)}/BertAttention[attention]/BertSelfAttention[self]"
    return [f"{attention}/NNCFLinear[{name}]/linear_0" for name in ("query", "key", "value")]


def ffn(index: int) -> list[str]:
    return [f"{layer(index)}/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"]


def attention_norm(index: int) -> str:
    return f"{layer(index)}/BertAttention[attention]/BertSelfOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0"


def attention_output(index: int) -> str:
    return f"{layer(index)}/BertAttention[attention]/BertSelfOutput[output]/NNCFLinear[dense]/linear_0"


def mha_block(index: int) -> list[str]:
    before = f"{layer(index - 1)}/BertOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0"
    first = f"{ROOT}/BertEmbeddings[embeddings]/Dropout[dropout]/dropout_0"
    return [before if index else first, attention_norm(index)]


def ffn_block(index: int) -> list[str]:
    return [attention_norm(index), f"{layer(index)}/BertOutput[output]/__add___0"]


def config_of(*dims: str, width: Any = None, depth: Any = None, **stage: Any) -> dict[str, Any]:
    """A config of one stage that trains `dims`, all widths unless told otherwise."""
    elasticity: dict[str, Any] = {"available_elasticity_dims": list(dims)}
    if width is not None:
        elasticity["width"] = width
    if depth is not None:
        elasticity["depth"] = depth
    description = {"train_dims": list(dims), "width_indicator": -1, **stage}
    return {
        "bootstrapNAS": {
            "training": {
                "progressivity_of_elasticity": ["width", "depth"],
                "schedule": {"list_stage_descriptions": [description]},
                "elasticity": elasticity,
            }
        }
    }


def groups(nodes: list[list[str]], widths: list[list[int]]) -> dict[str, Any]:
    return {"overwrite_groups": nodes, "overwrite_groups_widths": widths}


def genes_of(raw: dict[str, Any], **options: Any) -> list[tuple[str, tuple[int, ...]]]:
    space = build_space(check_config(raw), BLUEPRINT, **options)
    return [(gene.name, gene.choices) for gene in space.genes]


def refused(raw: Any, message: str) -> None:
    """Reading `raw` or building its space must fail with exactly this line."""
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        build_space(check_config(raw, "c.json"), BLUEPRINT)


# -- node names --------------------------------------------------------------------------------------------------------


def test_names_of_bert() -> None:
    linears = NAMES.linears
    attention = "bert.encoder.layer.1.attention"
    assert [linears[f"{attention}.self.{name}"] for name in ("query", "key", "value")] == qkv(1)
    assert linears[f"{attention}.output.dense"] == attention_output(1)
    assert linears["bert.encoder.layer.2.intermediate.dense"] == ffn(2)[0]
    assert linears["bert.encoder.layer.2.output.dense"] == f"{layer(2)}/BertOutput[output]/NNCFLinear[dense]/linear_0"
    assert linears["bert.pooler.dense"] == f"{ROOT}/BertPooler[pooler]/NNCFLinear[dense]/linear_0"
    assert linears["classifier"] == "BertForSequenceClassification/NNCFLinear[classifier]/linear_0"
    assert NAMES.node(f"{attention}.output.LayerNorm/layer_norm_0") == attention_norm(1)
    assert NAMES.node("bert.encoder.layer.1.output/__add___0") == ffn_block(1)[1]
    assert NAMES.node("bert.embeddings.dropout/dropout_0") == mha_block(0)[0]
    words = f"{ROOT}/BertEmbeddings[embeddings]/NNCFEmbedding[word_embeddings]/embedding_0"
    assert NAMES.node("bert.embeddings.word_embeddings/embedding_0") == words
    assert len(linears) == LAYERS * 6 + 2


def test_names_of_a_head_for_questions() -> None:
    with torch.device("meta"):
        names = NodeNames.of(BertForQuestionAnswering(MODEL.config))
    assert names.linears["qa_outputs"] == "BertForQuestionAnswering/NNCFLinear[qa_outputs]/linear_0"


def test_names_do_not_change_when_the_model_becomes_elastic_or_masked(tiny_bert: BertForSequenceClassification) -> None:
    masked = copy.deepcopy(tiny_bert)
    before = NodeNames.of(tiny_bert)
    Supernet(tiny_bert)
    assert NodeNames.of(tiny_bert) == before
    structures = assign_structures(before.linears, [])
    attach(masked, structures, MovementSettings(0, 1, 0.1), steps_per_epoch=1)
    assert NodeNames.of(masked) == before


@pytest.mark.parametrize(
    ("node", "path"),
    [
        (qkv(0)[0], "bert.encoder.layer.0.attention.self.query"),
        ("BertForSequenceClassification/NNCFLinear[classifier]/linear_0", "classifier"),
        ("BertForSequenceClassification/BertModel[bert]/__getitem___0", "bert"),
        ("BertForSequenceClassification/add_0", ""),
        (
            "PeftModelForCausalLM/LoraModel[base_model]/LlamaForCausalLM[model]/LlamaModel[model]/ModuleList[layers]/"
            "LlamaDecoderLayer[7]/LlamaAttention[self_attn]/Linear[q_proj]/ModuleDict[lora_A]/NNCFLinear[default]/"
            "linear_0",
            "model.layers.7.self_attn.q_proj.lora_A.default",
        ),
        (
            "PeftModelForCausalLM/LoraModel[base_model]/BloomForCausalLM[model]/BloomModel[transformer]/ModuleList[h]/"
            "BloomBlock[3]/BloomMLP[mlp]/Linear[dense_h_to_4h]/NNCFUserSelfLinear[self_linear]/linear_0",
            "transformer.h.3.mlp.dense_h_to_4h.base_layer",
        ),
    ],
)
def test_module_path(node: str, path: str) -> None:
    assert module_path(node) == path


def test_module_paths_and_names_are_inverse() -> None:
    for path, node in NAMES.linears.items():
        assert module_path(node) == path


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"^the model has no module 'bert.pooller'; did you mean 'bert.pooler'\?$"):
        NAMES.node("bert.pooller/linear_0")


def test_scopes() -> None:
    matches = scope_matcher(["Root/Exact[a]/linear_0", "Root/Prefix", r"{re}.*\[dense\]/linear_\d$"])
    assert matches("Root/Exact[a]/linear_0")
    assert matches("Root/Prefix[b]/linear_0")
    assert matches("Other/NNCFLinear[dense]/linear_3")
    assert matches("Today/Renamed[a]/linear_0")  # another version's names of classes
    assert not matches("Today/Renamed[a]/linear_1")
    assert not matches("Other/Root/Prefix[b]/linear_0")
    assert not matches("Other/NNCFLinear[dense]/linear_3/more")
    assert not scope_matcher([])("Root")
    with pytest.raises(UserError, match=r"^scope '\{re\}\(' is not a regular expression: "):
        scope_matcher(["{re}("])


# -- files -------------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_comments_trailing_commas_and_byte_order_mark(tmp_path: Path) -> None:
    text = """\ufeff{
      // a comment with "quotes" and a [bracket,
      "log_dir": "http://not/a/comment", /* another
      one */ "input_info": {"sample_size": [1, 128,], "type": "long", "keyword": "input_ids"},
    }"""
    config = read_config(write(tmp_path / "c.json", text))
    assert config.raw["log_dir"] == "http://not/a/comment"
    assert sequence_length(config) == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "log_dir": "a"\n  "target_device": "CPU"\n}', "is not JSON at line 3: Expected ',' or '}', found '\"'"),
        ('{\n  // comment\n\n  "log_dir": tru\n}', "is not JSON at line 4: Expected 'e', found '\\n'"),
        ('{\n  "log_dir": "a",\n', "is not JSON at line 1: Unclosed object starting"),
        ("", "is not JSON at line 1: No JSON data found"),
        ("[1]", "must hold a JSON object, not [1]"),
    ],
)
def test_files_that_are_not_json(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "c.json", text)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path} {message}')}$"):
        read_config(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^nncf_config \S+missing.json does not exist$"):
        read_config(tmp_path / "missing.json")
    with pytest.raises(UserError, match=r"^cannot read nncf_config "):
        read_config(tmp_path)


def test_written_files_are_plain_json_with_short_lists_on_a_line(tmp_path: Path) -> None:
    raw = {"a": [[768, 512], []], "b": {"c": 2e-5, "é": True}, "d": [], "e": ["x" * 60, "y" * 60]}
    write_config(tmp_path / "c.json", raw)
    text = (tmp_path / "c.json").read_text(encoding="utf-8")
    assert json.loads(text) == raw
    assert "    [768, 512],\n    []\n" in text
    assert max(map(len, text.splitlines())) < 80


# -- what a config may say ---------------------------------------------------------------------------------------------


def training(**values: Any) -> dict[str, Any]:
    return {"bootstrapNAS": {"training": values}}


def search(**values: Any) -> dict[str, Any]:
    return {"bootstrapNAS": {"search": values}}


def movement(**values: Any) -> dict[str, Any]:
    params = {"warmup_start_epoch": 1, "warmup_end_epoch": 3, "importance_regularization_factor": 0.02}
    return {"compression": {"algorithm": "movement_sparsity", "params": params, **values}}


def structure(**values: Any) -> dict[str, Any]:
    return movement(sparse_structure_by_scopes=[{"target_scopes": "{re}.*", **values}])


def stages(*descriptions: dict[str, Any], available: list[str], **values: Any) -> dict[str, Any]:
    return training(
        elasticity={"available_elasticity_dims": available},
        schedule={"list_stage_descriptions": list(descriptions)},
        **values,
    )


STRUCTURE = "compression.sparse_structure_by_scopes[0]"
WIDTH = {"train_dims": ["width"]}
DEPTH = {"train_dims": ["depth"]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "c.json must hold a JSON object, not []"),
        ({"bootstrapNas": {}}, "c.json: unknown key bootstrapNas; did you mean 'bootstrapNAS'?"),
        (training(shedule={}), "c.json: unknown key bootstrapNAS.training.shedule; did you mean 'schedule'?"),
        (
            stages({**WIDTH, "width_indicater": 2}, available=["width"]),
            f"c.json: unknown key {STAGES}[0].width_indicater; did you mean 'width_indicator'?",
        ),
        (training(xyz=1), "c.json: unknown key bootstrapNAS.training.xyz"),
        (
            movement(ignored_scope=[]),
            "c.json: unknown key compression.ignored_scope; did you mean 'ignored_scopes'?",
        ),
        (
            training(elasticity={"width": {"min_width": "32"}}),
            f'c.json: {ELASTICITY}.width.min_width must be an integer, not "32"',
        ),
        (training(elasticity={"width": []}), f"c.json: {ELASTICITY}.width must be an object, not []"),
        (
            training(elasticity={"width": {"width_step": 0}}),
            f"c.json: {ELASTICITY}.width.width_step must be at least 1, not 0",
        ),
        (
            training(elasticity={"width": {"width_multipliers": [0.5, 2]}}),
            f"c.json: {ELASTICITY}.width.width_multipliers[1] must be at most 1, not 2",
        ),
        (
            training(elasticity={"width": {"max_num_widths": 0}}),
            f"c.json: {ELASTICITY}.width.max_num_widths must be -1 (no limit) or at least 1, not 0",
        ),
        (
            training(elasticity={"available_elasticity_dims": ["widht"]}),
            f"c.json: {ELASTICITY}.available_elasticity_dims[0] must be 'width', 'depth' or 'kernel', "
            "not \"widht\"; did you mean 'width'?",
        ),
        (
            training(algorithm="progresive_shrinking"),
            "c.json: bootstrapNAS.training.algorithm must be 'progressive_shrinking', "
            "not \"progresive_shrinking\"; did you mean 'progressive_shrinking'?",
        ),
        (training(sandwich_rule=1), "c.json: bootstrapNAS.training.sandwich_rule must be true or false, not 1"),
        (stages({}, available=["width"]), f"c.json: {STAGES}[0].train_dims is missing"),
        (stages(available=["width"]), f"c.json: {STAGES} must have at least 1 entries, not []"),
        (
            stages({**WIDTH, "epochs": 0}, available=["width"]),
            f"c.json: {STAGES}[0].epochs must be at least 1, or -1 for the command line's, not 0",
        ),
        (
            stages({**WIDTH, "epochs_lr": -2}, available=["width"]),
            f"c.json: {STAGES}[0].epochs_lr must be at least 1, or -1 for the command line's, not -2",
        ),
        (
            stages({**WIDTH, "init_lr": 0}, available=["width"]),
            f"c.json: {STAGES}[0].init_lr must be positive, or -1 for the command line's, not 0.0",
        ),
        (
            stages({**WIDTH, "width_indicator": 0}, available=["width"]),
            f"c.json: {STAGES}[0].width_indicator must be -1 (all widths) or at least 1, not 0",
        ),
        (
            stages({**WIDTH, "sample_rate": 0}, available=["width"]),
            f"c.json: {STAGES}[0].sample_rate must be at least 1, not 0",
        ),
        (
            stages(WIDTH, DEPTH, available=["width"]),
            f"c.json: {STAGES}[1].train_dims has 'depth', which available_elasticity_dims lacks",
        ),
        (
            stages(WIDTH, available=["width"], progressivity_of_elasticity=["depth"]),
            "c.json: bootstrapNAS.training.progressivity_of_elasticity lacks 'width', "
            "which available_elasticity_dims has",
        ),
        (
            stages(WIDTH, available=["width", "depth"]),
            f"c.json: {STAGES}[0].train_dims has 'width' but not 'depth', which comes before it in "
            "progressivity_of_elasticity; train both, or take it out of available_elasticity_dims",
        ),
        (
            stages({"train_dims": ["depth", "width"]}, DEPTH, available=["width", "depth"]),
            f"c.json: {STAGES}[1].train_dims drops 'width', which an earlier stage trained",
        ),
        (
            stages({**WIDTH, "init_lr": 1e-4}, available=["width"], lr_schedule={"params": {"base_lr": 1e-4}}),
            f"c.json: {STAGES}[0].init_lr contradicts lr_schedule.params.base_lr; keep one of the two",
        ),
        (
            training(lr_schedule={"params": {"num_epochs": 3}}),
            "c.json: bootstrapNAS.training.lr_schedule.params.base_lr is missing: "
            "without it every stage has a learning rate of its own",
        ),
        (
            training(compression={"algorithm": "knowledge_distillation", "type": "mse", "temperature": 2.0}),
            "c.json: bootstrapNAS.training.compression.temperature belongs to type 'softmax', not to 'mse'",
        ),
        (search(num_evals=19), "c.json: bootstrapNAS.search.population 20 exceeds num_evals 19"),
        (search(population=201), "c.json: bootstrapNAS.search.population 201 exceeds num_evals 200"),
        (
            search(algorithm="RNSGA2", aspiration_points=[[0, 0], [5600, 84]]),
            "c.json: bootstrapNAS.search.aspiration_points[1] must be [MACs in millions, metric with a minus sign], "
            "as both are minimised, not [5600, 84]",
        ),
        (
            training(elasticity={"width": {"filter_importance": "L3"}}),
            f"c.json: {ELASTICITY}.width.filter_importance must be 'L1', 'L2', 'geometric_median' or 'external', "
            'not "L3"',
        ),
        (
            training(elasticity={"width": {"filter_importance": "external"}}),
            f"c.json: {ELASTICITY}.width.filter_importance 'external' needs external_importance_path",
        ),
        (search(crossover_prob=1.5), "c.json: bootstrapNAS.search.crossover_prob must be at most 1, not 1.5"),
        (search(acc_delta=float("nan")), "c.json: bootstrapNAS.search.acc_delta must be a finite number, not NaN"),
        (
            {"compression": {"algorithm": "quantization"}},
            "c.json: compression.algorithm must be 'movement_sparsity', not \"quantization\" (and 1 more)",
        ),
        (
            movement(params={"warmup_start_epoch": 3, "warmup_end_epoch": 3, "importance_regularization_factor": 0}),
            "c.json: compression.params.warmup_start_epoch 3 is not before warmup_end_epoch 3",
        ),
        (
            movement(params={"warmup_start_epoch": 1, "warmup_end_epoch": 3}),
            "c.json: compression.params.importance_regularization_factor is missing",
        ),
        (
            structure(mode="blocks"),
            f"c.json: {STRUCTURE}.mode must be 'fine', 'block' or 'per_dim', not \"blocks\"; did you mean 'block'?",
        ),
        (structure(mode="block"), f"c.json: {STRUCTURE}.mode 'block' needs sparse_factors"),
        (
            structure(mode="per_dim", axis=0, sparse_factors=[32, 32]),
            f"c.json: {STRUCTURE}.sparse_factors belongs to mode 'block', not to 'per_dim'",
        ),
        (
            structure(mode="per_dim", axis=2),
            f"c.json: {STRUCTURE}.axis must be 0 or 1, not 2",
        ),
        (
            {"compression": [movement()["compression"]] * 2},
            "c.json: compression must have at most 1 entries, not "
            '[{"algorithm": "movement_sparsity", "params": {"warmup_st...',
        ),
        (
            {"kd_mode": "attention"},
            "c.json: kd_mode must be 'original', 'hidden_states', 'attention_relations' or "
            "'self_attention_distillation', not \"attention\"; did you mean 'attention_relations'?",
        ),
        (
            {"input_info": {"sample_size": [128]}},
            "c.json: input_info.sample_size must have at least 2 entries, not [128]",
        ),
        ({}, "c.json: bootstrapNAS.training is missing; it says what is elastic"),
    ],
)
def test_refused_with_one_line(raw: Any, message: str) -> None:
    refused(raw, message)


def test_what_has_no_effect_is_told() -> None:
    raw: dict[str, Any] = {
        "target_device": "CPU",
        "log_dir": "out",
        "input_info": {"sample_size": [1, 8], "filler": "ones"},
        **movement(compression_lr_multiplier=2),
        "bootstrapNAS": {
            "training": {
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 64},
                "progressivity_of_elasticity": ["kernel", "width"],
                "compression": {"algorithm": "knowledge_distillation"},
                "schedule": {"list_stage_descriptions": [{"train_dims": ["kernel", "width"], "bn_adapt": True}]},
                "elasticity": {
                    "available_elasticity_dims": ["kernel", "width"],
                    "kernel": {"max_num_kernels": 2},
                    "width": {**groups([ffn(0)], [[24, 8]]), "min_width": 8, "filter_importance": "L2"},
                },
            },
            "search": {
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
                "num_constraints": 0,
                "epsilon": 0.1,
                "eval_metric_name": "eval_f1",
            },
        },
    }
    overwritten = "overwrite_groups_widths lists the widths"
    no_batch_norm = "these models have no batch normalisation"
    assert dict(check_config(raw).ignored) == {
        "input_info.filler": "nothing is traced with made-up inputs",
        "bootstrapNAS.training.batchnorm_adaptation.num_bn_adaptation_samples": no_batch_norm,
        f"{STAGES}[0].train_dims[0]": "these models have no convolution kernels",
        f"{STAGES}[0].bn_adapt": no_batch_norm,
        f"{ELASTICITY}.available_elasticity_dims[0]": "these models have no convolution kernels",
        f"{ELASTICITY}.width.min_width": overwritten,
        f"{ELASTICITY}.kernel.max_num_kernels": "these models have no convolution kernels",
        "bootstrapNAS.search.epsilon": "it belongs to RNSGA2",
        "log_dir": "every stage writes to its output_dir",
        "target_device": "the exported model runs on any device of OpenVINO",
    }


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            config_of("width", depth={"fixed_skipped_blocks": [mha_block(0)]}),
            {f"{ELASTICITY}.depth": "no stage trains depth"},
        ),
        (
            config_of("depth", width=groups([ffn(0)], [[24, 8]])),
            {f"{ELASTICITY}.width": "no stage trains width"},
        ),
        (config_of("width", depth={"skipped_blocks": []}), {}),
    ],
)
def test_what_is_said_of_a_dimension_that_no_stage_trains_is_told(raw: dict[str, Any], told: dict[str, str]) -> None:
    assert dict(check_config(raw).ignored) == told


def test_rates_of_stages_beside_one_over_all_of_them_are_told() -> None:
    raw = stages({**WIDTH, "epochs_lr": 2}, available=["width"], lr_schedule={"params": {"base_lr": 1e-4}})
    told = {f"{STAGES}[0].epochs_lr": "lr_schedule gives one learning rate over all stages"}
    assert dict(check_config(raw).ignored) == told


def test_a_stage_of_kernels_alone_is_left_out() -> None:
    raw = stages({"train_dims": ["kernel"]}, WIDTH, available=["kernel", "width"])
    config = check_config(raw)
    assert [stage.train_dims for stage in config.training.stages] == [("width",)]
    assert dict(config.ignored)[f"{STAGES}[0].train_dims[0]"] == "these models have no convolution kernels"


def test_names_tells_what_the_file_itself_sets() -> None:
    config = check_config(search(seed=3))
    assert config.names("bootstrapNAS.search.seed")
    assert config.names("bootstrapNAS.search")
    assert not config.names("bootstrapNAS.search.num_evals")
    assert not config.names("bootstrapNAS.search.seed.more")


def test_search_settings_hold_what_the_file_sets() -> None:
    config = check_config(
        search(algorithm="NSGA2", num_evals=100, population=10, ref_acc=84.1, mutation_prob=0.02, num_constraints=0)
    )
    settings = SearchSettings(**search_settings(config))
    assert settings == SearchSettings("NSGA2", 100, 10, ref_acc=84.1, mutation_prob=0.02)
    assert search_settings(check_config({})) == {}
    names = [field.name for field in fields(SearchSettings)]
    assert {name: getattr(check_config({}).search, name) for name in names} == asdict(SearchSettings(ref_acc=-1.0))


@pytest.mark.parametrize(
    ("ref_acc", "acc_delta", "points"),
    [(0.45, 0.01, 1.0), (0.9, 0.0, 0.0), (0.9, 1.0, 1.0), (1.0, 1.0, 1.0), (88.5, 0.5, 0.5), (-1.0, 0.5, 0.5)],
)
def test_a_tolerated_drop_is_on_the_scale_of_the_metric_beside_it(
    ref_acc: float, acc_delta: float, points: float
) -> None:
    settings = search_settings(check_config(search(ref_acc=ref_acc, acc_delta=acc_delta)))
    assert (settings["ref_acc"], settings["acc_delta"]) == (ref_acc, points)
    assert search_settings(check_config(search(acc_delta=acc_delta)))["acc_delta"] == acc_delta


def test_aspiration_points_are_converted_from_nncfs_units() -> None:
    points = [[0, 0], [5600, -84.5], [2200.5, -0.75], [1, -1]]
    raw = search(algorithm="RNSGA2", aspiration_points=points, epsilon=0.01, weights=[0.3, 0.7])
    raw["bootstrapNAS"]["search"]["extreme_points_as_ref_points"] = True
    config = check_config(raw)
    assert config.ignored == ()
    settings = SearchSettings(**search_settings(config))
    assert settings.aspiration_points == ((0, 0), (5.6e9, -0.845), (2.2005e9, -0.75), (1e6, -1))
    assert (settings.epsilon, settings.weights, settings.extreme_points_as_ref_points) == (0.01, (0.3, 0.7), True)
    assert SearchSettings(**search_settings(check_config(search(algorithm="RNSGA2")))).aspiration_points == ((0, 0),)


def test_movement_section() -> None:
    config = check_config(movement(target_scopes="{re}.*", ignored_scopes=["a"]))
    assert config.movement.params.power == 3.0
    assert config.movement.target_scopes == ("{re}.*",)
    assert check_config({"compression": [movement()["compression"]]}).movement.target_scopes is None
    with pytest.raises(
        UserError, match=r"^c.json: compression is missing; it needs an entry of algorithm 'movement_spa"
    ):
        _ = check_config({}, "c.json").movement


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "c.json: input_info is missing; it gives the one sequence length that costs are for"),
        (
            [{"sample_size": [1, 128]}, {"sample_size": [1, 64]}],
            "c.json: input_info has inputs of 64 and 128 tokens; it gives the one sequence length that costs are for",
        ),
    ],
)
def test_sequence_length_must_be_one(inputs: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        sequence_length(check_config({"input_info": inputs}, "c.json"))


# -- widths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", SPACES, ids=lambda published: published.name)
def test_published_files_give_the_published_space(tmp_path: Path, published: PublishedSpace) -> None:
    blueprint = published.blueprint()
    root = "BertForQuestionAnswering" if published.is_squad else "BertForSequenceClassification"
    layers = range(blueprint.num_layers)
    nodes = [[node.replace("BertForSequenceClassification", root) for node in qkv(i)] for i in layers]
    nodes += [[node.replace("BertForSequenceClassification", root) for node in ffn(i)] for i in layers]
    widths = [[64 * heads for heads in sizes] for sizes in published.sizes("head")]
    widths += [list(sizes) for sizes in published.sizes("ffn")]
    text = json.dumps(
        config_of("width", width=groups(nodes, widths), width_indicator=published.width_indicator), indent=1
    )
    text = text.replace('"width_indicator"', '// stage\n"width_indicator"').replace("]\n", "],\n")  # as published
    space = build_space(read_config(write(tmp_path / "c.json", text)), blueprint)
    assert space == published.space().limited(published.width_indicator)


def test_widths_may_stand_in_any_order_and_classes_have_any_name() -> None:
    renamed = [node.replace("BertSelfAttention", "BertSdpaSelfAttention") for node in qkv(1)]
    raw = config_of("width", width=groups([renamed, ffn(0)], [[8, 32, 16], [24, 24, 5]]))
    assert genes_of(raw) == [("head[1]", (4, 2, 1)), ("ffn[0]", (24, 5))]


def test_groups_over_layers_share_one_gene() -> None:
    raw = config_of("width", width=groups([[*qkv(0), *qkv(2)]], [[32, 16]]))
    space = build_space(check_config(raw), BLUEPRINT)
    assert space.genes == (Gene((Key("head", 0), Key("head", 2)), (4, 2)),)


def test_width_indicator_limits_widths() -> None:
    raw = config_of("width", width=groups([ffn(0), ffn(1)], [[24, 16, 8], [24]]), width_indicator=2)
    assert genes_of(raw) == [("ffn[0]", (24, 16)), ("ffn[1]", (24,))]


def test_a_space_without_the_full_network_is_told() -> None:
    told: list[str] = []
    raw = config_of("width", width=groups([qkv(0), ffn(0)], [[16, 8], [24]]))
    assert genes_of(raw, warn=told.append) == [("head[0]", (2, 1)), ("ffn[0]", (24,))]
    assert told == [
        "width.overwrite_groups_widths[0]: the largest width 16 is below the full 32, "
        "so the space does not contain the full network"
    ]


@pytest.mark.parametrize(
    ("nodes", "widths", "message"),
    [
        (
            [qkv(0), qkv(1)],
            [[32, 16], [32, 12]],
            "width.overwrite_groups_widths[1]: width 12 of head[1] is not a multiple of 8, the channels of one unit",
        ),
        ([qkv(0)], [[40]], "width.overwrite_groups_widths[0]: width 40 of head[0] must be from 1 to 32"),
        ([ffn(0)], [[24, 0]], "width.overwrite_groups_widths[0]: width 0 of ffn[0] must be from 1 to 24"),
        (
            [[qkv(0)[0].replace("query", "qvery")]],
            [[32]],
            "width.overwrite_groups[0]: the model has no labelled module 'bert.encoder.layer.0.attention.self.qvery'; "
            "did you mean 'bert.encoder.layer.0.attention.self.query'?",
        ),
        (
            [[attention_output(0)]],
            [[32]],
            f"width.overwrite_groups[0]: {attention_output(0)!r} must have one elastic dimension on its output, "
            "it has none",
        ),
        (
            [qkv(0)[:1], qkv(0)[1:]],
            [[32], [32]],
            "width.overwrite_groups[1] and [0] both hold head[0]",
        ),
        (
            [[*qkv(0), *ffn(0)]],
            [[24, 16]],
            "width.overwrite_groups[0] joins units of different widths: 8 for head[0] and 1 for ffn[0] channels",
        ),
    ],
)
def test_groups_that_are_refused(nodes: list[list[str]], widths: list[list[int]], message: str) -> None:
    refused(config_of("width", width=groups(nodes, widths)), f"c.json: {ELASTICITY}.{message}")


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (
            {"overwrite_groups": [ffn(0)]},
            "width.overwrite_groups needs overwrite_groups_widths: the two lists go together",
        ),
        (
            {"overwrite_groups_widths": [[24]]},
            "width.overwrite_groups_widths needs overwrite_groups: the two lists go together",
        ),
        (
            groups([ffn(0), ffn(1)], [[24]]),
            "width.overwrite_groups has 2 groups, overwrite_groups_widths 1 lists; give one list of widths per group",
        ),
        (
            {"min_width": 48},
            "width.min_width 48 exceeds the largest width of the model, 32 channels of head[0]",
        ),
        (
            {"add_dynamic_inputs": [qkv(0)[0]]},
            f"width.add_dynamic_inputs[0]: no elastic dimension reaches the input of {qkv(0)[0]!r}",
        ),
        (
            {"add_dynamic_inputs": [attention_output(9)]},
            "width.add_dynamic_inputs[0]: the model has no labelled module "
            "'bert.encoder.layer.9.attention.output.dense'; "
            "did you mean 'bert.encoder.layer.2.attention.output.dense'?",
        ),
    ],
)
def test_width_sections_that_are_refused(width: dict[str, Any], message: str) -> None:
    refused(config_of("width", width=width), f"c.json: {ELASTICITY}.{message}")


@pytest.mark.parametrize(
    ("width", "full", "per_unit", "sizes"),
    [
        ({}, 128, 1, (128, 96, 64, 32)),
        ({}, 32, 1, (32,)),
        ({}, 20, 1, (20,)),
        ({"min_width": 50}, 128, 1, (128, 96, 64)),
        ({"width_step": 50}, 128, 1, (128, 78)),
        ({"max_num_widths": 2}, 128, 1, (128, 96)),
        ({}, 12, 64, tuple(range(12, 0, -1))),  # 736 channels cut a head of 64, and floor to 704
        ({"min_width": 96}, 3, 64, (3, 2)),  # 96 channels floor to 64, which is below
        ({"width_multipliers": [0.5, 1.0, 0.25]}, 128, 1, (128, 64, 32)),
        ({"width_multipliers": [0.7]}, 128, 1, (128, 88)),  # 89.6, floored to a multiple of 8; the maximum is added
        ({"width_multipliers": [0.1, 0.2]}, 128, 1, (128, 32)),  # both end at min_width
        ({"width_multipliers": [0.9, 0.8, 0.7], "max_num_widths": 3}, 12, 64, (12, 10, 9)),
    ],
)
def test_derived_widths(width: dict[str, Any], full: int, per_unit: int, sizes: tuple[int, ...]) -> None:
    assert derived_sizes(Width(**width), full, per_unit) == sizes


def test_groups_are_derived_from_the_model() -> None:
    raw = config_of("width", width={"min_width": 8, "width_step": 8})
    heads = [(f"head[{i}]", (4, 3, 2, 1)) for i in range(LAYERS)]
    assert genes_of(raw) == [*heads, *((f"ffn[{i}]", (24, 16, 8)) for i in range(LAYERS))]


# -- depth -------------------------------------------------------------------------------------------------------------

EFTNAS_BLOCKS = [*map(mha_block, range(LAYERS)), *map(ffn_block, range(LAYERS))]
ALL_BLOCKS = [(f"{name}[{i}]", (1, 0)) for name in ("mha_block", "ffn_block") for i in range(LAYERS)]


def test_blocks_as_published() -> None:
    assert genes_of(config_of("depth", depth={"skipped_blocks": EFTNAS_BLOCKS})) == ALL_BLOCKS


def test_blocks_are_derived_from_the_model() -> None:
    assert genes_of(config_of("depth")) == ALL_BLOCKS


def test_an_empty_list_of_blocks_skips_nothing() -> None:
    assert genes_of(config_of("depth", depth={"skipped_blocks": []})) == []


def test_blocks_that_are_always_skipped() -> None:
    listed = {"skipped_blocks": [ffn_block(2)], "fixed_skipped_blocks": [mha_block(1)]}
    assert genes_of(config_of("depth", depth=listed)) == [("ffn_block[2]", (1, 0)), ("mha_block[1]", (0,))]
    derived = genes_of(config_of("depth", depth={"fixed_skipped_blocks": [mha_block(1)]}))
    assert derived == [*(gene for gene in ALL_BLOCKS if gene[0] != "mha_block[1]"), ("mha_block[1]", (0,))]


def test_attention_and_ffn_may_be_one_block() -> None:
    raw = config_of("depth", depth={"skipped_blocks": [[mha_block(1)[0], ffn_block(1)[1]]]})
    assert genes_of(raw) == [("mha_block[1] = ffn_block[1]", (1, 0))]


def test_from_one_output_norm_to_the_next_is_the_whole_layer() -> None:
    norms = [f"{layer(index)}/BertOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0" for index in range(LAYERS)]
    listed = {"skipped_blocks": [norms[:2], mha_block(1)], "fixed_skipped_blocks": [[mha_block(0)[0], norms[0]]]}
    genes = [("layer_block[1]", (1, 0)), ("mha_block[1]", (1, 0)), ("layer_block[0]", (0,))]
    assert genes_of(config_of("depth", depth=listed)) == genes
    both = {"skipped_blocks": [[mha_block(0)[0], norms[1]]]}
    assert genes_of(config_of("depth", depth=both)) == [("layer_block[0] = layer_block[1]", (1, 0))]
    derived = [name for name, _ in genes_of(config_of("depth", depth={"fixed_skipped_blocks": [norms[:2]]}))]
    assert derived[-1] == "layer_block[1]"
    assert not {"mha_block[1]", "ffn_block[1]"} & set(derived)


def test_depth_indicator_where_blocks_follow_each_other() -> None:
    blocks = [mha_block(0), ffn_block(0), mha_block(1), ffn_block(1), ffn_block(2)]
    depth = {"skipped_blocks": blocks}
    last = [("ffn_block[0]", (1, 0)), ("ffn_block[1]", (1, 0)), ("ffn_block[2]", (1, 0))]
    told: list[str] = []
    assert genes_of(config_of("depth", depth=depth), warn=told.append) == last
    assert told == [
        f"depth.skipped_blocks: mha_block[{i}] and ffn_block[{i}] follow each other; "
        "depth_indicator 1 lets only the last 1 of them be skipped"
        for i in (0, 1)
    ]
    told.clear()
    assert len(genes_of(config_of("depth", depth=depth, depth_indicator=2), warn=told.append)) == 5
    assert told == [
        f"depth.skipped_blocks: mha_block[{i}] and ffn_block[{i}] follow each other; "
        "NNCF skips one only together with the later ones, here each is skipped on its own"
        for i in (0, 1)
    ]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            [ffn_block(0)[0], mha_block(1)[1]],
            "depth.skipped_blocks[0]: the block that ends with "
            "'bert.encoder.layer.1.attention.output.LayerNorm/layer_norm_0' starts after "
            "'bert.encoder.layer.0.output.LayerNorm/layer_norm_0', not "
            "'bert.encoder.layer.0.attention.output.LayerNorm/layer_norm_0'",
        ),
        (
            [mha_block(1)[0], f"{layer(1)}/BertOutput[output]/__add___1"],
            "depth.skipped_blocks[0]: no block of the model ends with 'bert.encoder.layer.1.output/__add___1'; "
            "did you mean 'bert.encoder.layer.1.output/__add___0'?",
        ),
        (
            [attention_output(1), ffn_block(1)[1]],
            "depth.skipped_blocks[0]: no block of the model starts after "
            "'bert.encoder.layer.1.attention.output.dense/linear_0'; "
            "did you mean 'bert.encoder.layer.1.attention.output.LayerNorm/layer_norm_0'?",
        ),
    ],
)
def test_blocks_that_are_refused(block: list[str], message: str) -> None:
    refused(config_of("depth", depth={"skipped_blocks": [block]}), f"c.json: {ELASTICITY}.{message}")


def test_not_every_block_can_be_skipped_always() -> None:
    refused(
        config_of("depth", depth={"fixed_skipped_blocks": EFTNAS_BLOCKS}),
        f"c.json: {ELASTICITY}.depth.fixed_skipped_blocks skips every block of the model: nothing would be left of it",
    )
    genes_of(config_of("depth", depth={"fixed_skipped_blocks": EFTNAS_BLOCKS[1:], "skipped_blocks": []}))


def test_a_block_cannot_be_listed_twice() -> None:
    depth = {"skipped_blocks": [mha_block(1)], "fixed_skipped_blocks": [mha_block(1)]}
    refused(
        config_of("depth", depth=depth),
        f"c.json: {ELASTICITY}.depth: mha_block[1] is in two of the skipped blocks",
    )


# -- both --------------------------------------------------------------------------------------------------------------


def test_only_what_the_stage_trains_is_elastic_and_blocks_always_skipped_are_so_in_every_stage() -> None:
    widths, depth = groups([ffn(0)], [[24, 16, 8]]), {"skipped_blocks": [mha_block(1)]}
    raw = config_of("width", "depth", width=widths, depth=depth)
    first = {"train_dims": ["width"], "width_indicator": 2}
    raw["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"].insert(0, first)
    assert genes_of(raw) == [("ffn[0]", (24, 16, 8)), ("mha_block[1]", (1, 0))]
    assert genes_of(raw, stage=0) == [("ffn[0]", (24, 16))]
    depth["fixed_skipped_blocks"] = [ffn_block(2)]
    assert genes_of(raw)[2:] == genes_of(raw, stage=0)[1:] == [("ffn_block[2]", (0,))]
    del raw["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][1]
    assert genes_of(raw) == [("ffn[0]", (24, 16))]


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Any space of the tiny model: widths shared between layers or not, blocks free, fixed or kept."""
    genes: list[Gene] = []
    for dim, full in (("head", 4), ("ffn", 24)):
        owners = [draw(st.integers(0, LAYERS)) for _ in range(LAYERS)]  # layers of one owner share a gene; 0: no gene
        for owner in set(owners) - {0}:
            keys = tuple(Key(dim, index) for index, found in enumerate(owners) if found == owner)
            sizes = draw(st.sets(st.integers(1, full - 1), max_size=4)) | {full}
            genes.append(Gene(keys, tuple(sorted(sizes, reverse=True))))
    blocks = list(itertools.product(("mha_block", "ffn_block"), range(LAYERS)))
    found = [draw(st.sampled_from([(), (1, 0), (0,)])) for _ in blocks]
    assume(set(found) != {(0,)})  # a config that skips every block is refused
    genes += [Gene((Key(*block),), choices) for block, choices in zip(blocks, found, strict=True) if choices]
    return SearchSpace(tuple(draw(st.permutations(genes))))


TEMPLATE = {
    "input_info": {"sample_size": [1, 16]},
    **movement(ignored_scopes=["{re}.*pooler.*"]),
    **config_of("width", "depth", width={"min_width": 8, **groups([ffn(0)], [[24]])}, depth_indicator=1),
}


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_a_space_survives_being_written_and_read(tmp_path_factory: pytest.TempPathFactory, space: SearchSpace) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    before = copy.deepcopy(TEMPLATE)
    written = config_with_space(TEMPLATE, BLUEPRINT, NAMES, space)
    write_config(path, written)
    config = read_config(path)
    assert set(build_space(config, BLUEPRINT).genes) == set(space.genes)
    assert before == TEMPLATE
    for section in ("input_info", "compression"):
        assert config.raw[section] == TEMPLATE[section]
    assert config.ignored == ()
    assert config.raw["bootstrapNAS"]["training"]["schedule"] == TEMPLATE["bootstrapNAS"]["training"]["schedule"]
    assert config_with_space(config.raw, BLUEPRINT, NAMES, build_space(config, BLUEPRINT)) == written


def test_a_written_config_is_nncfs() -> None:
    space = SearchSpace.build(
        BLUEPRINT,
        [(Key("ffn", 0), (24, 8)), (Key("mha_block", 0), (1, 0)), (Key("head", 2), (4, 1)), (Key("head", 0), (4, 3))],
    )
    written = config_with_space(config_of("width", "depth"), BLUEPRINT, NAMES, space)
    assert written["bootstrapNAS"]["training"]["elasticity"] == {
        "available_elasticity_dims": ["width", "depth"],
        "width": {
            "overwrite_groups": [qkv(0), qkv(2), ffn(0)],
            "overwrite_groups_widths": [[32, 24], [32, 8], [24, 8]],
            "add_dynamic_inputs": [attention_output(0), attention_output(2)],
        },
        "depth": {"skipped_blocks": [mha_block(0)]},
    }
    assert check_config(written).ignored == ()


def test_blocks_that_would_be_a_chain_are_listed_backwards() -> None:
    space = SearchSpace.build(BLUEPRINT, [(Key("mha_block", 1), (1, 0)), (Key("ffn_block", 1), (1, 0))])
    written = config_with_space(config_of("depth"), BLUEPRINT, NAMES, space)
    listed = written["bootstrapNAS"]["training"]["elasticity"]["depth"]["skipped_blocks"]
    assert listed == [ffn_block(1), mha_block(1)]


def test_a_written_config_of_roberta() -> None:
    with torch.device("meta"):
        model = RobertaForSequenceClassification(RobertaConfig(**{**MODEL.config.to_dict(), "model_type": "roberta"}))
    blueprint = Blueprint.of(model)
    space = build_space(check_config(config_of("width", "depth", width={"min_width": 8})), blueprint)
    written = config_with_space(config_of("width", "depth"), blueprint, NodeNames.of(model), space)
    assert build_space(check_config(written), blueprint) == space
    first = written["bootstrapNAS"]["training"]["elasticity"]["depth"]["skipped_blocks"][0][0]
    assert first == (
        "RobertaForSequenceClassification/RobertaModel[roberta]/RobertaEmbeddings[embeddings]/Dropout[dropout]/dropout_0"
    )


def gene_space(*genes: Gene) -> SearchSpace:
    return SearchSpace(genes)


@pytest.mark.parametrize(
    ("dims", "space", "message"),
    [
        (
            ["width"],
            gene_space(Gene((Key("ffn_block", 1),), (1, 0))),
            f"the space varies ffn_block[1], but 'depth' is not both in {ELASTICITY}.available_elasticity_dims "
            "and in train_dims of the last stage",
        ),
        (
            ["depth"],
            gene_space(Gene((Key("ffn", 1),), (24, 8))),
            f"the space varies ffn[1], but 'width' is not both in {ELASTICITY}.available_elasticity_dims "
            "and in train_dims of the last stage",
        ),
        (
            ["width"],
            gene_space(Gene((Key("head", 0), Key("ffn", 0)), (4, 2))),
            "NNCF cannot express head[0] = ffn[0]: their units differ in channels",
        ),
        (
            ["depth"],
            gene_space(Gene((Key("ffn_block", 0), Key("mha_block", 1)), (1, 0))),
            "NNCF cannot express ffn_block[0] = mha_block[1]: the blocks do not follow each other",
        ),
        (
            ["depth"],
            gene_space(Gene((Key("mha_block", 0), Key("ffn_block", 1)), (1, 0))),
            "NNCF cannot express mha_block[0] = ffn_block[1]: the blocks do not follow each other",
        ),
    ],
)
def test_spaces_that_cannot_be_written(dims: list[str], space: SearchSpace, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        config_with_space(config_of(*dims), BLUEPRINT, NAMES, space)


# -- the files of the project ------------------------------------------------------------------------------------------


def structures_of(config: NNCFConfig) -> dict[str, Any]:
    section = config.movement
    rules = [
        (scope_matcher(entry.target_scopes), build_structure(entry.mode, entry.sparse_factors, entry.axis))
        for entry in section.sparse_structure_by_scopes
    ]
    return assign_structures(NAMES.linears, rules, scope_matcher(section.ignored_scopes))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates(path: Path) -> None:
    config = read_config(path)
    assert config.ignored == ()
    assert sequence_length(config) > 0
    SearchSettings(**search_settings(config))
    space = build_space(config, Blueprint(BertConfig(), "BertForSequenceClassification"))
    assert {gene.keys[0].dim for gene in space.genes} == {"head", "ffn", "mha_block", "ffn_block"}
    structures = structures_of(config)
    assert structures.pop("bert.encoder.layer.0.intermediate.dense") == PerDim(0)
    assert structures.pop("bert.encoder.layer.0.output.dense") == PerDim(1)
    attention = "bert.encoder.layer.0.attention"
    for module in ("self.query", "self.key", "self.value", "output.dense"):
        assert structures.pop(f"{attention}.{module}") == Block(32, 32)
    assert all(module.startswith("bert.encoder.layer.") for module in structures)
