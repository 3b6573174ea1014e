"""LoNAS end to end on a tiny BERT: train, evaluate, search, extract, merge, export; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_models import build_causal, build_tokenizer
from command_line import interrupted_at
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from published_configs import LONAS_SEARCH, config_of
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import lonas.train
from bootstrapnas.adapters import base_linears, merged_adapters
from bootstrapnas.artefacts import read_json
from bootstrapnas.blueprint import Blueprint
from bootstrapnas.costs import count_macs
from bootstrapnas.dims import Key, subnet_from_json
from bootstrapnas.families.adapted import Adapters
from bootstrapnas.importance import order_scores, orders, width_scores
from bootstrapnas.integers import IntegerLinear, to_integers
from bootstrapnas.pipeline.adapters import ADAPTER_FILE, merge_adapter, put_adapter, read_adapter
from bootstrapnas.pipeline.arguments import StageTrainingArguments
from bootstrapnas.pipeline.calibration import calibrated_scores
from bootstrapnas.pipeline.data import Rows, inherited_task
from bootstrapnas.pipeline.models import load_for_task, load_tokenizer
from bootstrapnas.pipeline.sampled import most_frequent
from bootstrapnas.pipeline.supernets import (
    SuperAdapter,
    build_super_adapter,
    load_super_adapter,
    load_supernet,
    read_super_adapter,
    save_super_adapter,
)
from bootstrapnas.pipeline.teacher import Lesson
from bootstrapnas.space_generation import generate_space
from lonas.cli import main

LAYERS = range(2)


def space_config(path: Path, *, ranks_only: bool = False) -> Path:
    """Write LoNAS's config for the tiny BERT: heads, shared ranks of query and value, FFN; or the ranks alone."""
    root = (
        "PeftModelForSequenceClassification/LoraModel[base_model]/BertForSequenceClassification[model]/BertModel[bert]"
    )
    layers = [f"{root}/BertEncoder[encoder]/ModuleList[layer]/BertLayer[{i}]" for i in LAYERS]
    lora = {which: f"ModuleDict[lora_{which}]/NNCFLinear[default]/linear_0" for which in "AB"}
    mha = [f"{layer}/BertAttention[attention]/BertSelfAttention[self]" for layer in layers]
    old = "NNCFUserSelfLinear[self_linear]/linear_0"
    groups = [
        [f"{a}/Linear[query]/{old}", f"{a}/Linear[query]/{lora['B']}", f"{a}/NNCFLinear[key]/linear_0",
         f"{a}/Linear[value]/{old}", f"{a}/Linear[value]/{lora['B']}"]
        for a in mha
    ]  # fmt: skip
    groups += [[f"{a}/Linear[query]/{lora['A']}", f"{a}/Linear[value]/{lora['A']}"] for a in mha]
    groups += [[f"{layer}/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"] for layer in layers]
    widths = [[64, 32]] * 2 + [[4, 2, 1]] * 2 + [[128, 96, 32]] * 2
    if ranks_only:
        groups, widths = groups[2:4], widths[2:4]
    raw = config_of(groups, widths, length=24, search=LONAS_SEARCH | {"num_evals": 8, "population": 4}, epochs=2,
                    init_lr=3e-3, epochs_lr=2, width_indicator=-1)  # fmt: skip
    raw["bootstrapNAS"]["training"] |= {"sandwich_rule": False, "frozen_layers_allowed": True}
    path.write_text(json.dumps(raw))
    return path


def run(*arguments: Any) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def train(output: Path, base: Path, files: Any, *more: Any) -> Path:
    run("train", "--model_name_or_path", base, "--train_file", files.train, "--validation_file", files.validation,
        "--max_seq_length", 24, "--lora_r", 4, "--lora_alpha", 8, "--target_modules", "query,value",
        "--output_dir", output, *more)  # fmt: skip
    return output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: Any) -> Path:
    """A super-adapter whose base was put in order, and its search. Read-only."""
    root = tmp_path_factory.mktemp("lonas")
    config = space_config(root / "config.json")
    train(root / "super", tiny_bert_dir, tiny_task_files, "--nncf_config", config, "--reorder", "l1",
          "--modules_to_save", "pooler")  # fmt: skip
    run("search", "--supernet_dir", root / "super", "--output_dir", root / "search")
    return root


def logits(model: torch.nn.Module, directory: Path) -> torch.Tensor:
    rows = Rows(inherited_task(str(directory)), load_tokenizer(str(directory)))
    batch = rows.batches("validation")[0]
    with torch.no_grad():
        return model.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits


def test_the_artefact_is_an_ordinary_adapter_of_the_base_as_it_is(trained: Path, tiny_bert_dir: Path) -> None:
    directory = trained / "super"
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=3)
    stock = PeftModel.from_pretrained(base, directory)
    supernet, _ = load_supernet(str(directory), inherited_task(str(directory)))
    torch.testing.assert_close(logits(stock, directory), logits(supernet.model, directory), rtol=1e-4, atol=1e-5)
    assert len(supernet.space) == 6
    assert {tuple(gene.choices) for gene in supernet.space.genes} == {(4, 2), (4, 2, 1), (128, 96, 32)}
    assert any(order.tolist() != sorted(order) for order in load_file(directory / "orders.safetensors").values())
    key = "bert.encoder.layer.0.attention.self.key.weight"
    assert torch.equal(dict(base.named_parameters())[key], load_file(tiny_bert_dir / "model.safetensors")[key])
    tensors = load_file(directory / "adapter_model.safetensors")
    assert max(tensor.abs().max() for name, tensor in tensors.items() if "lora_B" in name) > 0
    pooler = "bert.pooler.dense.weight"  # trained whole, as --modules_to_save says
    assert not torch.equal(
        tensors[f"base_model.model.{pooler}"], load_file(tiny_bert_dir / "model.safetensors")[pooler]
    )


@pytest.mark.parametrize("subnet", ["heuristic", "min", "best"])
def test_extracted_and_merged_compute_what_the_supernet_computes(trained: Path, tmp_path: Path, subnet: str) -> None:
    flags = ["--supernet_dir", trained / "super", "--search_dir", trained / "search", "--subnet", subnet]
    run("extract", *flags, "--output_dir", tmp_path / "parts")
    run("extract", *flags, "--output_dir", tmp_path / "merged", "--merge", "True")
    spec = inherited_task(str(trained / "super"))
    supernet, _ = load_supernet(str(trained / "super"), spec)
    chosen = read_json(trained / "search" / "pareto.json")["best"]["genome"]
    genomes = {"heuristic": supernet.space.heuristic_genome, "min": supernet.space.min_genome, "best": chosen}
    with supernet.activate(supernet.space.subnet(genomes[subnet])):
        expected = logits(supernet.model, trained / "super")
    parts = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "parts" / "adapter", trust_remote_code=True
    )
    torch.testing.assert_close(logits(parts, trained / "super"), expected, rtol=1e-4, atol=1e-5)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    torch.testing.assert_close(logits(merged, tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)
    one = sum(p.numel() for p in merged.parameters())
    two = sum(p.numel() for name, p in parts.named_parameters() if "original_module" not in name)
    for name, params in (("merged", one), ("parts", two)):
        costs = read_json(tmp_path / name / "subnet.json")["costs"]
        assert costs["params"] == params
        assert read_json(tmp_path / name / "stage.json")["result"] == {"macs": costs["macs"], "params": params}


def test_an_adapter_of_one_rank_needs_no_patterns(trained: Path, tmp_path: Path) -> None:
    """Programs that read one rank and one scale of an adapter get the right ones."""
    run("extract", "--supernet_dir", trained / "super", "--subnet", "heuristic", "--output_dir", tmp_path / "parts")
    config = read_json(tmp_path / "parts" / "adapter" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (2, 4, {}, {})
    places = [f"bert.encoder.layer.{layer}.attention.self" for layer in LAYERS]
    assert config["target_modules"] == [f"{place}.{name}" for place in places for name in ("query", "value")]


def test_without_a_layer_and_with_a_smaller_hidden_size(tmp_path: Path, tiny_task_files: Any) -> None:
    """Layers that are left are numbered anew, what is trained whole loses what the hidden size loses."""
    build_causal("llama").save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    targets = ["--lora_r", 4, "--target_modules", "q_proj,down_proj"]
    space = tmp_path / "space.json"
    run("search-space", "--model_name_or_path", tmp_path / "base", "--target_config", space, *targets)
    train(tmp_path / "super", tmp_path / "base", tiny_task_files, *targets, "--nncf_config", space,
          "--lora_scaling", "active", "--learning_rate", 3e-2, "--num_train_epochs", 1, "--max_train_samples", 64,
          "--modules_to_save", "embed_tokens,model.norm", "--base_dtype", "bfloat16")  # fmt: skip
    kept = load_file(tmp_path / "super" / "adapter_model.safetensors")
    beside = {name.partition(".model.")[2] for name in kept if "lora_" not in name}
    assert beside == {"model.embed_tokens.weight", "model.norm.weight", "score.weight"}
    run("eval", "--supernet_dir", tmp_path / "super")
    sizes = {"hidden": 24, "layer_block": [1, 0, 1], "self_attn.q_proj.rank": [2, 4, 1]}
    (tmp_path / "subnet.json").write_text(json.dumps(sizes))
    flags = ["--supernet_dir", tmp_path / "super", "--subnet", tmp_path / "subnet.json"]
    run("extract", *flags, "--output_dir", tmp_path / "parts")
    run("extract", *flags, "--output_dir", tmp_path / "merged", "--merge", "True")
    supernet, _ = load_supernet(str(tmp_path / "super"), inherited_task(str(tmp_path / "super")))
    with supernet.activate(subnet_from_json(sizes)):
        expected = logits(supernet.model, tmp_path / "super")
    auto = AutoModelForSequenceClassification
    base = auto.from_pretrained(tmp_path / "parts" / "base")
    assert (base.config.num_hidden_layers, base.config.pad_token_id) == (2, 1)  # its checkpoint names no padding
    assert (logits(base, tmp_path / "super") - expected).abs().max() > 0.1
    parts = PeftModel.from_pretrained(base, tmp_path / "parts" / "adapter")
    for model in (parts, auto.from_pretrained(tmp_path / "merged")):
        torch.testing.assert_close(logits(model, tmp_path / "super"), expected, rtol=1e-4, atol=1e-4)


def test_without_any_layer_that_has_an_adapter(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """The base, with what was trained whole beside adapters, is all that is left: a model of its own either way."""
    sizes = {"mha_block": [0, 0]}
    (tmp_path / "subnet.json").write_text(json.dumps(sizes))
    flags = ["--supernet_dir", trained / "super", "--subnet", tmp_path / "subnet.json"]
    run("extract", *flags, "--output_dir", tmp_path / "parts")
    assert "no layer with an adapter is left, so base/ is the whole subnet" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "adapter").exists()
    run("extract", *flags, "--output_dir", tmp_path / "merged", "--merge", "True")
    supernet, _ = load_supernet(str(trained / "super"), inherited_task(str(trained / "super")))
    with supernet.activate(subnet_from_json(sizes)):
        expected = logits(supernet.model, trained / "super")
    for path in (tmp_path / "parts" / "base", tmp_path / "merged"):
        model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True)
        torch.testing.assert_close(logits(model, trained / "super"), expected, rtol=1e-4, atol=1e-5)


def test_embeddings_that_are_the_head_too_are_trained_as_one(tmp_path: Path) -> None:
    """Stock peft, which copies modules that are trained whole, loads both uses; so does this program."""
    adapters = Adapters(("q_proj",), rank=4, alpha=8, whole=("embed_tokens",))
    models = [build_causal("llama", tie_word_embeddings=True) for _ in range(3)]
    trained, again = (build_super_adapter(model, adapters, None, {}) for model in models[:2])
    with torch.no_grad():
        trained.model.get_input_embeddings().weight.mul_(1.5)
    save_super_adapter(tmp_path, trained, SuperAdapter("", adapters), {})
    put_adapter(again.model, read_adapter(tmp_path), "it")
    ids = torch.arange(10, 26).view(2, 8)
    with torch.no_grad():
        expected = trained.model(input_ids=ids).logits
        assert torch.equal(again.model(input_ids=ids).logits, expected)
        assert not torch.allclose(models[2](input_ids=ids).logits, expected)
        with pytest.warns(UserWarning, match="tie_word_embeddings"):  # that they are copies
            stock = PeftModel.from_pretrained(models[2], tmp_path)
        torch.testing.assert_close(stock(input_ids=ids).logits, expected)


# -- going on from a LoRA ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_task_files: Any) -> Path:
    """An ordinary LoRA with a trained pooler. Read-only."""
    flags = ("--modules_to_save", "pooler", "--learning_rate", 1e-2, "--num_train_epochs", 2)
    return train(tmp_path_factory.mktemp("lora") / "lora", tiny_bert_dir, tiny_task_files, *flags)


def test_what_goes_on_from_a_lora_begins_with_what_that_computes(
    lora: Path, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any
) -> None:
    """Its units are ordered by, and its widths come from, their importance in the model with the adapter."""
    base, space = ("--model_name_or_path", tiny_bert_dir, "--adapter_dir", lora), tmp_path / "space.json"
    flags = ("--importance_batches", 4, "--ranks", "4,2", "--macs_ratios", "1,0.75", "--max_seq_length", 24)
    run("search-space", *base, *flags, "--target_config", space)
    assert "--ranks leaves out" not in capsys.readouterr().err
    run("search-space", *base, *flags, "--ranks", 2, "--target_config", tmp_path / "less.json")
    assert f"--ranks leaves out 4, the rank of {lora}: no subnet has all of it" in capsys.readouterr().err
    out, files = tmp_path / "super", (tiny_task_files.train, tiny_task_files.validation)
    run("train", *base, "--nncf_config", space, "--reorder", "gate", "--reorder_batches", 4, "--learning_rate", 0,
        "--train_file", files[0], "--validation_file", files[1], "--max_seq_length", 24, "--num_train_epochs", 1,
        "--output_dir", out)  # fmt: skip
    kept, found = load_file(lora / "adapter_model.safetensors"), load_file(out / "adapter_model.safetensors")
    assert kept.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())
    supernet, _ = load_supernet(str(out), inherited_task(str(out)))
    stock = PeftModel.from_pretrained(load_for_task(str(tiny_bert_dir), inherited_task(str(lora))), lora)
    torch.testing.assert_close(logits(stock, lora), logits(supernet.model, out), rtol=1e-4, atol=1e-5)
    assert supernet.blueprint.full[Key("attention.self.query.rank", 0)] == 4  # as the LoRA's, without a flag

    merged = merge_adapter(load_for_task(str(tiny_bert_dir), inherited_task(str(lora))), lora)
    blueprint, training = Blueprint.of(merged), StageTrainingArguments(output_dir=str(tmp_path))
    rows = Rows(inherited_task(str(lora)), load_tokenizer(str(lora)))
    scores = calibrated_scores("gate", merged, rows, 4, training)
    wanted = orders(order_scores(blueprint, scores, "sum"))
    assert {str(key): order.tolist() for key, order in wanted.items()} == {
        name: order.tolist() for name, order in load_file(out / "orders.safetensors").items()
    }
    widths = generate_space(blueprint, width_scores(blueprint, scores, "sum"), [
        int(share * count_macs(blueprint, length=24)) for share in (1, 0.75)
    ], length=24, depth="none").space  # fmt: skip
    assert set(widths.genes) < set(supernet.space.genes)
    assert any(len(set(gene.choices)) == 2 for gene in widths.genes)
    assert {gene.choices for gene in set(supernet.space.genes) - set(widths.genes)} == {(4, 2)}


def test_going_on_without_a_criterion_keeps_the_order(
    trained: Path, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any
) -> None:
    flags = ("--adapter_dir", trained / "super", "--nncf_config", trained / "config.json")
    again = train(tmp_path / "again", tiny_bert_dir, tiny_task_files, *flags)
    before, after = (load_file(directory / "orders.safetensors") for directory in (trained / "super", again))
    assert all(torch.equal(after[name], order) for name, order in before.items())
    assert before.keys() == after.keys()


def test_a_search_space_contains_the_full_model(tmp_path: Path, capsys: Any) -> None:
    """Widths are rounded to multiples of 8, which the full one need not be; the ranks fit what train defaults to."""
    build_causal("llama", intermediate_size=44).config.save_pretrained(tmp_path)
    flags = ["--model_name_or_path", str(tmp_path), "--target_config", str(tmp_path / "space.json")]
    run("search-space", *flags)
    width = read_json(tmp_path / "space.json")["bootstrapNAS"]["training"]["elasticity"]["width"]
    assert width["overwrite_groups_widths"] == [*[[44, 32, 24, 16]] * 3, *[[8, 7]] * 6]
    run("search-space", *flags, "--overwrite", "True", "--lora_r", 1)
    for ranks, rank in (("8,4.5", 8), ("16,8", 8), ("4,0", 4)):
        assert main(["search-space", *flags, "--overwrite", "True", "--lora_r", str(rank), "--ranks", ranks]) == 2
        message = f"--ranks must be whole numbers from 1 to --lora_r {rank}, not {ranks}"
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("model_type", "changes"), [("bloom", {"n_head": 4}), ("llama", {"num_key_value_heads": 1})])
def test_heads_that_cannot_be_left_out_are_told(
    model_type: str, changes: dict[str, int], tmp_path: Path, capsys: Any
) -> None:
    """BLOOM knows its heads by their numbers; where all query heads read one key-value head, it is the only one."""
    build_causal(model_type, **changes).config.save_pretrained(tmp_path)
    flags = ["--model_name_or_path", str(tmp_path), "--target_config", str(tmp_path / "space.json")]
    assert main(["search-space", *flags, "--head_shares", "1,0.5"]) == 2
    assert f"head_shares: family '{model_type}' has no heads here that can be left out" in capsys.readouterr().err
    run("search-space", *flags)


@pytest.mark.parametrize(("depth", "blocks"), [("half_blocks", 6), ("layers", 3)])
def test_a_search_space_of_ranks_and_blocks_on_integers(
    depth: str, blocks: int, tmp_path: Path, tiny_task_files: Any, capsys: Any
) -> None:
    build_causal("llama").save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    space, targets = tmp_path / "space.json", ["--lora_r", 4, "--target_modules", "q_proj,down_proj"]
    flags = ["--model_name_or_path", tmp_path / "base", "--target_config", space, *targets, "--ffn_shares", 1]
    run("search-space", *flags, "--depth", depth)
    train(tmp_path / "super", tmp_path / "base", tiny_task_files, *targets, "--nncf_config", space, "--max_steps", 1,
          "--base_weight_format", "int4", "--num_train_epochs", 1, "--max_train_samples", 32)  # fmt: skip
    supernet, _ = load_supernet(str(tmp_path / "super"), inherited_task(str(tmp_path / "super")))
    dims = [gene.keys[0].dim for gene in supernet.space.genes if supernet.blueprint.is_block(gene.keys[0])]
    assert len(dims) == blocks
    assert ("layer_block" in dims) == (depth == "layers")
    assert len(supernet.space) == blocks + 3, "and a rank a layer, of q_proj"
    assert main(["search-space", *map(str, flags), "--overwrite", "True", "--depth", "layer"]) == 2
    assert "unknown depth 'layer' (known: half_blocks, layers, none); did you mean" in capsys.readouterr().err


def test_eval_prints_metric_and_costs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for subnet in ("max", "min"):
        capsys.readouterr()
        run("eval", "--supernet_dir", trained / "super", "--subnet", subnet)
        found[subnet] = json.loads(capsys.readouterr().out)
    assert found["min"]["costs"]["params"] < found["max"]["costs"]["params"]
    capsys.readouterr()
    run("eval", "--supernet_dir", trained / "super", "--max_seq_length", 20)  # the config counts costs for 24 tokens
    assert json.loads(capsys.readouterr().out)["costs"]["length"] == 24
    sampled = read_json(trained / "super" / "sampled.json")["subnets"]
    steps = 2 * -(-96 // 32)
    assert sum(entry["times"] for entry in sampled) == steps, "one a step"
    chosen = min(sampled, key=lambda entry: entry["loss"])["genome"]
    supernet, _ = load_supernet(str(trained / "super"), inherited_task(str(trained / "super")))
    often = most_frequent(trained / "super", supernet.space)
    for name, genome in (("lowest_loss", tuple(chosen)), ("frequent", often)):
        run("eval", "--supernet_dir", trained / "super", "--subnet", name)
        costs = supernet.count(supernet.space.subnet(genome), length=24)
        assert json.loads(capsys.readouterr().out)["costs"]["params"] == costs.params
    run("eval", "--supernet_dir", trained / "super", "--subnet", "min", "--merge_adapters", "True")
    assert json.loads(capsys.readouterr().out) == found["min"]
    results = read_json(trained / "super" / "eval_results.json")
    assert results == {f"accuracy_{name}": pytest.approx(found[name]["accuracy"]) for name in ("max", "min")}


def test_a_merged_subnet_is_exported_and_evaluated(trained: Path, tmp_path: Path, capsys: Any) -> None:
    flags = ["--supernet_dir", trained / "super", "--subnet", "heuristic"]
    run("extract", *flags, "--output_dir", tmp_path / "merged", "--merge", "True")
    run("export", "--model_dir", tmp_path / "merged", "--output_dir", tmp_path / "ir")
    capsys.readouterr()
    run("eval", *flags)
    expected = json.loads(capsys.readouterr().out)["accuracy"]
    run("evaluate", "--ir_dir", tmp_path / "ir")
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(expected)


def test_training_with_the_largest_subnet_as_teacher(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any
) -> None:
    flags = ["--nncf_config", space_config(tmp_path / "c.json"), "--kd_own", "True"]
    train(tmp_path / "own", tiny_bert_dir, tiny_task_files, *flags)
    train(tmp_path / "none", tiny_bert_dir, tiny_task_files, *flags[:2])
    taught, alone = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("own", "none"))
    assert not any(torch.equal(taught[name], tensor) for name, tensor in alone.items())
    same = {"model_name_or_path": tiny_bert_dir, "train_file": tiny_task_files.train, "output_dir": tmp_path / "no",
            "validation_file": tiny_task_files.validation, "kd_own": True}  # fmt: skip
    for more, message in (
        ({}, "--kd_own needs --nncf_config"),
        ({"kd_teacher_model": tiny_bert_dir}, "--kd_own and --kd_teacher_model both name a teacher"),
        ({"kd_own": False, "draw_per": "batch"}, "--draw_per needs --nncf_config: an ordinary LoRA has no subnets"),
        ({"kd_own": False, "draw_per": "bach"}, "unknown --draw_per 'bach' (known: batch, step); did you mean 'batch'"),
        ({"kd_own": False, "sampling": "sandwich"}, "--sampling needs --nncf_config"),
    ):
        given = [str(part) for name, value in {**same, **more}.items() for part in (f"--{name}", value)]
        assert main(["train", *given]) == 2
        assert message in capsys.readouterr().err


class StoppedError(Exception):
    """Training would begin now."""


TEACHER = "bootstrapNAS.training.compression"
MSE = {"algorithm": "knowledge_distillation", "type": "mse", "scale": 2.0}


@pytest.mark.parametrize(
    ("document", "training", "flags", "distillation", "told"),
    [
        (
            {"kd_teacher_model": "tiny", "kd_temperature": 3.0},
            {"compression": MSE},
            (),
            (3.0, 0.1, 0.9, False),
            f"{TEACHER} has no effect: the teacher is ",
        ),
        ({}, {"compression": MSE}, (), (1.0, 1.0, 2.0, True), ""),
        (
            {"kd_teacher_model": "tiny", "kd_temperature": 3.0},
            {},
            ("--kd_own", "True"),
            (3.0, 0.1, 0.9, False),
            "kd_teacher_model has no effect: with --kd_own the largest subnet is the teacher",
        ),
    ],
)
def test_the_config_says_what_the_adapter_learns_from(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch,
    document: dict[str, Any], training: dict[str, Any], flags: tuple[str, ...], distillation: tuple[Any, ...],
    told: str,
) -> None:  # fmt: skip
    lessons = []

    def caught(*arguments: Any, **options: Any) -> Any:
        lessons.extend(argument for argument in arguments if isinstance(argument, Lesson))
        raise StoppedError

    monkeypatch.setattr(lonas.train, "build_trainer", caught)
    path = space_config(tmp_path / "c.json")
    raw = json.loads(path.read_text())
    raw |= {name: str(tiny_bert_dir) if value == "tiny" else value for name, value in document.items()}
    raw["bootstrapNAS"]["training"] |= training
    path.write_text(json.dumps(raw))
    with pytest.raises(StoppedError):
        train(tmp_path / "super", tiny_bert_dir, tiny_task_files, "--nncf_config", path, *flags)
    (lesson,) = lessons
    found = lesson.distillation
    assert (found.temperature, found.task_weight, found.teacher_weight, found.squared) == distillation
    assert lesson.in_place == bool(flags)
    assert ("teacher_logits" in lesson.rows.column_names) == (not flags)
    assert told in capsys.readouterr().err


def test_orders_that_the_config_asks_for_are_told_to_have_no_effect(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any
) -> None:
    path = space_config(tmp_path / "c.json")
    raw = json.loads(path.read_text())
    raw["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]["reorg_weights"] = True
    raw["bootstrapNAS"]["training"]["elasticity"]["width"]["filter_importance"] = "L2"
    path.write_text(json.dumps(raw))
    few = ["--max_train_samples", 16, "--num_train_epochs", 1]
    train(tmp_path / "super", tiny_bert_dir, tiny_task_files, "--nncf_config", path, *few)
    said = capsys.readouterr().err
    width = "bootstrapNAS.training.elasticity.width"
    for keys in ("reorg_weights and reorg_interval have", f"{width}.filter_importance has"):
        assert f"{keys} no effect: --reorder orders the units of the base model, once" in said


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_a_base_of_integers(
    weight_format: str, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any
) -> None:
    config = space_config(tmp_path / "ranks.json", ranks_only=True)
    integers = ["--base_weight_format", weight_format]
    directory = train(tmp_path / "super", tiny_bert_dir, tiny_task_files, "--nncf_config", config, *integers)
    spec = inherited_task(str(directory))
    supernet, _ = load_supernet(str(directory), spec)
    model = supernet.model
    inside = [m for m in model.modules() if isinstance(m, IntegerLinear)]
    assert [layer.bits for layer in inside] == [int(weight_format[-1])] * 12  # 6 a layer; neither pooler nor classifier
    run("search", "--supernet_dir", directory, "--output_dir", tmp_path / "search")
    best = read_json(tmp_path / "search" / "pareto.json")["best"]["genome"]
    flags = ["--supernet_dir", directory, "--search_dir", tmp_path / "search", "--subnet", "best"]
    run("extract", *flags, "--output_dir", tmp_path / "parts")
    assert f"before training rounded them to {weight_format}" in capsys.readouterr().err
    run("extract", *flags, "--output_dir", tmp_path / "merged", "--merge", "True")
    with supernet.activate(supernet.space.subnet(best)):
        expected = logits(model, directory)
    with supernet.activate(supernet.space.subnet(best)), merged_adapters(supernet):
        torch.testing.assert_close(logits(model, directory), expected, rtol=1e-4, atol=1e-4)
    auto = AutoModelForSequenceClassification
    merged = auto.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, directory), expected, rtol=1e-4, atol=1e-4)
    base = auto.from_pretrained(tmp_path / "parts" / "base")
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(base.get_parameter(name), load_file(tiny_bert_dir / "model.safetensors")[name])
    parts = PeftModel.from_pretrained(base, tmp_path / "parts" / "adapter")
    assert not torch.equal(logits(parts, directory), expected)
    to_integers(parts.base_model.model, base_linears(supernet.blueprint), weight_format)
    torch.testing.assert_close(logits(parts, directory), expected, rtol=1e-4, atol=1e-5)


def test_without_a_config_it_is_an_ordinary_lora(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any
) -> None:
    flags = ["--num_train_epochs", 1, "--learning_rate", 1e-3, "--lora", "--do_test", "True"]
    flags += ["--evaluation_strategy", "epoch", "--warmup_ratio", 0.06]  # names that Hugging Face's flags once had
    published = ["--cache_dir", "cache", "--pad_to_max_length", "--model_revision", "main", "--max_predict_samples", 5]
    train(tmp_path / "lora", tiny_bert_dir, tiny_task_files, *flags, *published)
    told = capsys.readouterr().err
    assert "--do_test has no effect: lonas eval measures a subnet" in told
    settings = read_json(tmp_path / "lora" / "stage.json")["settings"]
    assert settings.items() >= {"eval_strategy": "epoch", "warmup_steps": 0.06}.items()
    assert "--cache_dir has no effect: the environment variable HF_HOME says where" in told
    assert "--pad_to_max_length has no effect: a batch is as long as its longest row" in told
    train(tmp_path / "lora", tiny_bert_dir, tiny_task_files, *flags)
    assert "finished already" in capsys.readouterr().err, "they do not decide what comes out"
    assert set(read_json(tmp_path / "lora" / "eval_results.json")) >= {"accuracy"}
    run("eval", "--supernet_dir", tmp_path / "lora")
    run("extract", "--supernet_dir", tmp_path / "lora", "--merge", "True", "--output_dir", tmp_path / "merged")
    auto = AutoModelForSequenceClassification
    stock = PeftModel.from_pretrained(auto.from_pretrained(tiny_bert_dir, num_labels=3), tmp_path / "lora")
    merged, base = auto.from_pretrained(tmp_path / "merged"), auto.from_pretrained(tiny_bert_dir)
    torch.testing.assert_close(logits(merged, tmp_path / "merged"), logits(stock, tmp_path / "lora"))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(merged.get_parameter(name), base.get_parameter(name))
    costs = read_json(tmp_path / "merged" / "subnet.json")["costs"]
    assert costs["params"] == sum(p.numel() for p in merged.parameters())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target_modules", "qeury"], "target module 'qeury' is no linear layer of bert"),
        (["--target_modules", "query"], "takes 'bert.encoder.layer.0.attention.self.value' to have an adapter, but it"),
        (
            ["--target_modules", "query,key,value"],
            "takes 'bert.encoder.layer.0.attention.self.key' to have no adapter, but it has one (--target_modules)",
        ),
        (["--modules_to_save", "poler"], "'poler' is no module outside the layers of BertForSequenceClassification"),
        (["--modules_to_save", "intermediate"], "'intermediate' is no module outside the layers"),
        (["--lora_r", "2"], "width 4 of attention.self.query.rank[0] must be from 1 to 2"),
        (["--base_dtype", "bf16"], "unknown --base_dtype 'bf16'"),
        (["--base_weight_format", "int5"], "unknown weight format 'int5' (known: int4, int8); did you mean"),
        (["--base_weight_format", "int4"], "a group varies head[0] (4, 2), but widths of a base in int4 stay as they"),
        (["--base_weight_format", "int4", "--reorder", "l1"], "--reorder is for elastic widths"),
        (["--reorder", "wnada"], "unknown importance criterion 'wnada'"),
        (["--lora_scaling", "rank"], "unknown scaling 'rank' of adapters"),
        (["--task_type", "maths"], "unknown --task_type 'maths'"),
        (["--task_type", "glue"], "--task_type glue needs the --task_name"),
        (["--cutoff_len", "16"], "--max_seq_length 24 contradicts 16"),
        (
            ["--lora_weights", "old"],
            "--lora_weights: lonas import-adapter --adapter_dir old takes over an adapter that is",
        ),
        (["--model_revision", "v2"], "--model_revision: the hub's main revision is loaded; download v2 (hf download"),
    ],
)
def test_bad_flags_are_told_in_a_line(
    flags: list[str], message: str, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any
) -> None:
    arguments = {
        "--model_name_or_path": tiny_bert_dir, "--train_file": tiny_task_files.train, "--lora_r": 4,
        "--validation_file": tiny_task_files.validation, "--max_seq_length": 24, "--target_modules": "query,value",
        "--nncf_config": space_config(tmp_path / "c.json"), "--output_dir": tmp_path / "out",
    }  # fmt: skip
    arguments |= dict(zip(flags[::2], flags[1::2], strict=True))
    assert main(["train", *(str(part) for pair in arguments.items() for part in pair)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_adapter_of_old_peft_is_taken_over(
    trained: Path, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any
) -> None:
    source = tmp_path / "published"
    source.mkdir()
    torch.save(load_file(trained / "super" / "adapter_model.safetensors"), source / "adapter_model.bin")
    old = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "lora_dropout": 0.1,
           "init_lora_weights": True, "rank_pattern": {},
           "modules_to_save": ["pooler", "classifier", "score"]}  # fmt: skip
    (source / "adapter_config.json").write_text(json.dumps(old))
    data = ["--train_file", tiny_task_files.train, "--validation_file", tiny_task_files.validation]
    flags = ["--adapter_dir", source, "--nncf_config", trained / "config.json", "--max_seq_length", 24, *data]
    run("import-adapter", *flags, "--model_name_or_path", tiny_bert_dir, "--output_dir", tmp_path / "taken")
    spec = inherited_task(str(tmp_path / "taken"))
    taken, _ = load_supernet(str(tmp_path / "taken"), spec)
    ours, _ = load_supernet(str(trained / "super"), spec)
    torch.testing.assert_close(logits(taken.model, tmp_path / "taken"), logits(ours.model, trained / "super"))
    assert taken.space == ours.space
    again = tmp_path / "integers"  # the config varies widths
    arguments = [*flags[:2], *flags[4:], "--model_name_or_path", tiny_bert_dir, "--output_dir", again]
    run("import-adapter", *arguments, "--base_dtype", "bfloat16", "--base_weight_format", "int8")
    model = load_super_adapter(str(again), spec, None).model
    assert sum(isinstance(module, IntegerLinear) for module in model.modules()) == 12
    about = read_super_adapter(again)
    assert (about.weight_format, about.base_dtype) == ("int8", "bfloat16")
    assert main(["import-adapter", *map(str, flags), "--model_name_or_path", str(tiny_bert_dir), "--output_dir",
                 str(tmp_path / "no"), "--base_weight_format", "int8"]) == 2  # fmt: skip
    assert "but widths of a base in int8 stay as they are" in " ".join(capsys.readouterr().err.split())
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3', not LORA"),
        ({"target_modules": ".*query"}, "target_modules must list layers by name"),
        ({"r": 2}, "is of another base: bert.encoder.layer.0.attention.self.query.lora_A.default.weight has shape (4,"),
        ({"rank_pattern": {"query": 2}}, "one rank and one scale, but rank_pattern is set"),
        ({"alora_invocation_tokens": [1, 2]}, "one rank and one scale, but alora_invocation_tokens is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changed the base model's weights as well"),
    ):
        (source / "adapter_config.json").write_text(json.dumps(old | change))
        arguments = [*flags[:2], *flags[4:], "--model_name_or_path", tiny_bert_dir, "--output_dir", tmp_path / "no"]
        assert main(["import-adapter", *map(str, arguments)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        shutil.rmtree(tmp_path / "no", ignore_errors=True)
    (source / "adapter_config.json").write_text(json.dumps(old | {"base_model_name_or_path": "bert-base-uncased"}))
    arguments = [*flags, "--model_name_or_path", tiny_bert_dir, "--output_dir", tmp_path / "taken"]
    assert main(["import-adapter", *map(str, arguments)]) == 2, "another adapter lies there now"
    told = " ".join(capsys.readouterr().err.split())
    assert f"names bert-base-uncased as its base model: {tiny_bert_dir} must be the same" in told
    assert "holds another run (adapter:" in told


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_keeps_the_dtype_of_its_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    """An adapter of stock peft, of a language model in half precision: nothing needs more room than before."""
    build_causal("llama").to(dtype).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(build_causal("llama"), config).save_pretrained(tmp_path / "peft")
    rows = [{"instruction": f"{i} + 1 = ?", "output": f"It is {i + 1}.", "answer": str(i + 1)} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model, space = ["--model_name_or_path", tmp_path / "base"], tmp_path / "space.json"
    run("search-space", *model, "--target_config", space, "--lora_r", 4, "--target_modules", "q_proj,down_proj")
    run("import-adapter", "--adapter_dir", tmp_path / "peft", *model, "--nncf_config", space, "--task_name", "math",
        "--train_file", tmp_path / "rows.jsonl", "--validation_file", tmp_path / "rows.jsonl", "--max_seq_length", 120,
        "--output_dir", tmp_path / "super")  # fmt: skip
    for subnet in ("max", "min"):
        flags = ["--supernet_dir", tmp_path / "super", "--subnet", subnet]
        run("extract", *flags, "--output_dir", tmp_path / subnet)
        found = load_file(tmp_path / subnet / "base" / "model.safetensors")
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        assert {t.dtype for t in load_file(tmp_path / subnet / "adapter" / ADAPTER_FILE).values()} == {torch.float32}
        run("extract", *flags, "--merge", "True", "--output_dir", tmp_path / f"{subnet}_merged")
        merged = load_file(tmp_path / f"{subnet}_merged" / "model.safetensors")
        assert {tensor.dtype for tensor in merged.values()} == {dtype}
    whole = load_file(tmp_path / "base" / "model.safetensors")
    kept = load_file(tmp_path / "max" / "base" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in whole.items())


KINDS = ["super-adapter", "super-adapter, a draw a batch", "super-adapter that goes on", "LoRA, best epoch"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_ends_with_the_same_tensors(
    kind: str, tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    flags = ["--save_strategy", "steps", "--save_steps", 4, "--seed", 3]
    elastic, apart = kind.startswith("super-adapter"), kind.endswith("batch")
    # 96 rows, two epochs: 6 windows each, or 5 of which the last holds 4 batches instead of 5.
    flags += ["--per_device_train_batch_size", 4 if apart else 16]
    flags += ["--draw_per", "batch", "--gradient_accumulation_steps", 5] if apart else []
    if elastic:
        flags += ["--nncf_config", space_config(tmp_path / "c.json"), "--reorder", "l1"]
        if kind.endswith("goes on"):
            flags += ["--adapter_dir", train(tmp_path / "lora", tiny_bert_dir, tiny_task_files, "--max_steps", 3)]
    else:
        flags += ["--num_train_epochs", 2, "--learning_rate", 2e-2, "--load_best_model_at_end", "True"]
        flags += ["--eval_strategy", "steps", "--eval_steps", 4]
    whole = train(tmp_path / "whole", tiny_bert_dir, tiny_task_files, *flags)
    with interrupted_at(6), pytest.raises(AssertionError, match="130"):
        train(tmp_path / "cut", tiny_bert_dir, tiny_task_files, *flags)
    (checkpoint,) = (tmp_path / "cut").glob("checkpoint-*")
    kept = load_file(checkpoint / "trained.safetensors")
    assert kept
    assert all("lora_" in name or name.startswith("classifier.") for name in kept)
    assert not (checkpoint / "model.safetensors").exists()
    torch.manual_seed(99)  # what the process did before does not count
    monkeypatch.setattr(
        "bootstrapnas.pipeline.calibration.find_criterion", None
    )  # on another machine it might find other orders
    cut = train(tmp_path / "cut", tiny_bert_dir, tiny_task_files, *flags)
    assert "train: resuming from checkpoint-4" in capsys.readouterr().err
    found, wanted = (load_file(directory / "adapter_model.safetensors") for directory in (cut, whole))
    assert [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)] == []
    assert (cut / "eval_results.json").read_text() == (whole / "eval_results.json").read_text()
    sampled = [directory / "sampled.json" for directory in (cut, whole)]
    assert [path.is_file() for path in sampled] == [elastic] * 2
    if elastic:
        assert sampled[0].read_bytes() == sampled[1].read_bytes()
        drawn = read_json(whole / "sampled.json")["subnets"]
        assert sum(entry["times"] for entry in drawn) == (2 * 96 // 4 if apart else 2 * 96 // 16)
        assert all(0.9 < entry["loss"] < 1.5 for entry in drawn), "near ln 3, whatever the window"
    assert not list(cut.glob("checkpoint-*"))


def test_a_base_in_half_precision(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any) -> None:
    """Adapters and the head, which follows what the base computes, are trained and kept in float32."""
    flags = ["--nncf_config", space_config(tmp_path / "c.json"), "--lora_dropout", 0, "--dropout", 0, "--reorder", "l1"]
    flags += ["--max_train_samples", 64]
    whole, half = (
        load_file(train(tmp_path / name, tiny_bert_dir, tiny_task_files, *flags, *more) / "adapter_model.safetensors")
        for name, more in (("whole", []), ("half", ["--base_dtype", "bfloat16"]))
    )
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    ups = [
        torch.cat([tensor.flatten() for name, tensor in found.items() if "lora_B" in name]) for found in (whole, half)
    ]
    assert not torch.equal(*ups)
    assert torch.cosine_similarity(*ups, dim=0) > 0.95  # from zero, along the same way


def test_checkpointed_activations_give_the_same_adapter(
    tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any
) -> None:
    flags = ["--nncf_config", space_config(tmp_path / "c.json"), "--lora_dropout", 0, "--dropout", 0]
    flags += ["--max_train_samples", 64]
    plain, checked = (
        load_file(train(tmp_path / name, tiny_bert_dir, tiny_task_files, *flags, *more) / "adapter_model.safetensors")
        for name, more in (("plain", []), ("checked", ["--gradient_checkpointing", "True"]))
    )
    assert any(tensor.count_nonzero() for name, tensor in plain.items() if "lora_B" in name)
    for name, tensor in plain.items():
        torch.testing.assert_close(checked[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_changed_base_is_refused(tmp_path: Path, tiny_bert_dir: Path, tiny_task_files: Any, capsys: Any) -> None:
    shutil.copytree(tiny_bert_dir, tmp_path / "base")
    train(tmp_path / "lora", tmp_path / "base", tiny_task_files, "--max_steps", 1)
    config = read_json(tmp_path / "base" / "config.json")
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    assert main(["eval", "--supernet_dir", str(tmp_path / "lora")]) == 2
    assert "is not the base model that the adapter in" in capsys.readouterr().err
