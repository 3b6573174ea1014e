"""Causal language models as stateful IRs: the cache inside computes what torch's does, in any backend."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from causal_models import TEXTS, build_causal, build_tokenizer
from torch import Tensor

from bootstrapnas.artefacts import read_json
from bootstrapnas.cli import main
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import predict
from bootstrapnas.export import (
    ExportError,
    TaskMetric,
    WeightCompression,
    export_openvino,
    load_causal_ir,
    load_ir,
    predict_ir,
)
from bootstrapnas.export.causal import CausalConversion
from bootstrapnas.export.causal_runtime import describe_cache, pad_left
from bootstrapnas.outputs import INDEX, TOKENS, VOCABULARY, Output
from bootstrapnas.pipeline.export_data import text_data
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import Generation, generate, generate_by_ir
from bootstrapnas.tasks import generation as generation_module
from bootstrapnas.tasks.generation import text_of

TOKENIZER = build_tokenizer()
NEW = 12


def batch_of(texts: list[str]) -> dict[str, Tensor]:
    return dict(TOKENIZER(texts, padding=True, return_tensors="pt"))


def llama_subnet() -> torch.nn.Module:
    """Return a LLaMA of which the layers have no attention, 1 and 2 kv heads, and the second no FFN."""
    sizes = {Key("mha_block", 0): 0, Key("ffn", 0): 20, Key("kv", 1): 1, Key("ffn_block", 1): 0, Key("hidden"): 24}
    return Supernet(build_causal("llama")).extract(sizes)


def bloom_subnet() -> torch.nn.Module:
    """Return a BLOOM of which the layers have no attention and no FFN."""
    sizes = {Key("mha_block", 0): 0, Key("ffn", 0): 20, Key("ffn_block", 1): 0, Key("hidden"): 24}
    return Supernet(build_causal("bloom", n_layer=2, n_head=4, num_hidden_layers=2)).extract(sizes)


def gpt2_subnet() -> torch.nn.Module:
    """Return a GPT-2 of which the layers have no attention, 1 and 2 heads, and the second no FFN."""
    sizes = {Key("mha_block", 0): 0, Key("ffn", 0): 20, Key("head", 1): 1, Key("ffn_block", 1): 0, Key("hidden"): 24}
    return Supernet(build_causal("gpt2", n_inner=48, tie_word_embeddings=False)).extract({**sizes, Key("head", 2): 2})


def torch_greedy(model: torch.nn.Module, batch: dict[str, Tensor], tokens: int = NEW) -> list[list[int]]:
    found = model.generate(**batch, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=1)
    return found[:, batch["input_ids"].shape[1] :].tolist()


MODELS = {
    "subnet": llama_subnet,
    "tied": lambda: build_causal("qwen2", tie_word_embeddings=True, num_hidden_layers=2),
    "sliding": lambda: build_causal("mistral", sliding_window=6, num_hidden_layers=2),
    "bloom": bloom_subnet,
    "gpt2": gpt2_subnet,
}


@pytest.fixture(scope="module")
def irs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of `MODELS`. Read-only."""
    root = tmp_path_factory.mktemp("causal")
    for name, build in MODELS.items():
        export_openvino(build(), TOKENIZER, root / name, example_batches=[batch_of(TEXTS)])
    return {name: root / name for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_ir_equals_torch_prompt_by_prompt_and_token_by_token(name: str, irs: dict[str, Path]) -> None:
    model, ir = MODELS[name](), load_causal_ir(irs[name], threads=1)
    batch = batch_of(TEXTS[:3])
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    positions = {} if name == "bloom" else {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        wanted = model(**batch, **positions).logits.numpy()
    np.testing.assert_allclose(ir.prefill(ids, mask)[mask == 1], wanted[mask == 1], atol=3e-3)
    assert ir.generate_greedy(ids, mask, max_new_tokens=NEW) == torch_greedy(model, batch)
    # Row by row, without padding, the same: nothing is left of the rows before.
    alone = [ir.generate_greedy(ids[row : row + 1, mask[row] == 1], max_new_tokens=NEW)[0] for row in range(3)]
    assert alone == torch_greedy(model, batch)
    # Beams: both rows go on from the second prompt.
    ir.prefill(ids, mask)
    token = np.array([[7], [9], [7]])
    logits = ir.step(token, np.array([1, 1, 2]))
    beams = torch.tensor([1, 1, 2])
    longer = {"input_ids": torch.cat([batch["input_ids"][beams], torch.from_numpy(token)], 1)}
    longer["attention_mask"] = torch.cat([batch["attention_mask"][beams], torch.ones(3, 1, dtype=torch.long)], 1)
    if positions:
        longer["position_ids"] = (longer["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        np.testing.assert_allclose(logits[:, -1], model(**longer).logits[:, -1].numpy(), atol=3e-3)


@pytest.mark.parametrize("name", MODELS)
def test_genai_generates_what_torch_generates(name: str, irs: dict[str, Path]) -> None:
    """Also beyond a sliding window, which paged attention must find in the masks."""
    genai = pytest.importorskip("openvino_genai")
    import openvino as ov

    model = MODELS[name]()
    prompts = [batch_of([text]) for text in TEXTS[:2]]
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    for backend in ({}, {"ATTENTION_BACKEND": "SDPA"}):
        pipeline = genai.LLMPipeline(str(irs[name]), "CPU", **exact, **backend)
        for prompt in prompts:
            ids = ov.Tensor(prompt["input_ids"].numpy())
            found = pipeline.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
            assert found.tokens[0] == torch_greedy(model, prompt)[0]
    text = pipeline.generate(
        TEXTS[0], max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, apply_chat_template=False
    )
    assert text == TOKENIZER.decode(torch_greedy(model, prompts[0])[0], skip_special_tokens=True)


def test_the_cache_is_what_the_model_keeps_whatever_its_config_says(irs: dict[str, Path]) -> None:
    kept = {state["name"]: state["shape"][1::2] for state in describe_cache(load_causal_ir(irs["subnet"]))}
    assert kept == {
        f"past_key_values.{layer}.{part}present.{layer}.{part}": [heads, 8]
        for layer, heads in ((0, 1), (1, 2))
        for part in ("key", "value")
    }


def test_the_directory_is_what_pipelines_expect(irs: dict[str, Path]) -> None:
    assert {path.name for path in irs["tied"].iterdir()} == {
        *("openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json", "export.json"),
        *(f"openvino_{kind}.{end}" for kind in ("tokenizer", "detokenizer") for end in ("xml", "bin")),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    found = read_json(irs["tied"] / "export.json")
    assert found["kind"] == "causal"
    assert found["inputs"] == ["input_ids", "attention_mask", "position_ids", "beam_idx"]
    assert found["verified"]["max_rel_difference"] < 1e-5
    assert [1, 1] in found["verified"]["shapes"]
    parameters = sum(parameter.numel() for parameter in MODELS["tied"]().parameters())  # tied embeddings once
    assert found["size"] < 4 * parameters * 1.02


def test_a_model_that_goes_on_otherwise_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_causal("qwen2", num_hidden_layers=1)
    ends = [[5] * 16] * 4
    monkeypatch.setattr("bootstrapnas.export.causal._generate", lambda *arguments: ends)
    with pytest.raises(ExportError, match=r"the IR of Qwen2ForCausalLM generates \d+ as token 1 after a prompt of \d+"):
        export_openvino(model, TOKENIZER, tmp_path / "ir", example_batches=[batch_of(TEXTS)])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_told() -> None:
    model = build_causal("llama", num_hidden_layers=1)
    one_token = {"input_ids": torch.tensor([[3]])}
    with pytest.raises(UserError, match="no sequence of at least two tokens"):
        CausalConversion(model, None, [one_token])
    none = Supernet(model).extract({Key("mha_block", 0): 0})
    with pytest.raises(ExportError, match="keeps no keys and values: no layer has attention"):
        CausalConversion(none, None, [batch_of(TEXTS)])


def test_stop_tokens_end_a_row(irs: dict[str, Path]) -> None:
    ir = load_causal_ir(irs["subnet"])
    ids, mask = pad_left([TOKENIZER(text)["input_ids"] for text in TEXTS[:2]])
    free = ir.generate_greedy(ids, mask, max_new_tokens=6)
    assert ir.generate_greedy(ids, mask, max_new_tokens=6, stop=[free[0][2]])[0] == free[0][:3]
    with pytest.raises(UserError, match="call prefill first"):
        load_causal_ir(irs["tied"]).step(ids)


@pytest.mark.parametrize("most_logits", [1 << 20, 1])
def test_texts_are_what_torch_writes(
    most_logits: int, irs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a subnet whose layers differ in kv heads: prompts padded on the right, rows that end at different places."""
    monkeypatch.setattr(generation_module, "_MOST_LOGITS", most_logits)
    model, tokenizer = MODELS["subnet"](), build_tokenizer()
    tokenizer.padding_side = "right"
    batches = [
        {**tokenizer(texts, padding=True, return_tensors="pt"), INDEX: torch.tensor(rows)}
        for texts, rows in ((TEXTS[:3], [4, 0, 2]), (TEXTS[3:], [1, 3]))
    ]
    free = torch_greedy(model, batch_of(TEXTS[:3]))
    model.generation_config.eos_token_id = [1, free[1][3]]
    shutil.copytree(irs["subnet"], tmp_path / "ir")
    model.generation_config.save_pretrained(tmp_path / "ir")
    settings = Generation(max_new_tokens=NEW)
    wanted = generate(model, batches, tokenizer, settings)["text"]
    found = generate_by_ir(load_causal_ir(tmp_path / "ir"), batches, tokenizer, settings)["text"]
    assert [text_of(text) for text in found] == [text_of(text) for text in wanted]
    assert text_of(found[0]) == tokenizer.decode(free[1][:4], skip_special_tokens=True)
    assert len({len(tokenizer(text_of(text))["input_ids"]) for text in found}) > 1


def test_whole_texts_are_predicted_as_by_torch_whichever_side_is_padded(irs: dict[str, Path]) -> None:
    """What the metrics of an IR are computed from; texts before leave no trace."""
    ir, model = load_ir(irs["subnet"], threads=1), MODELS["subnet"]()
    left = batch_of(TEXTS[:3])
    moves = [-int((mask == 0).sum()) for mask in left["attention_mask"]]
    right = {
        name: torch.stack([row.roll(move) for row, move in zip(tensor, moves, strict=True)])
        for name, tensor in left.items()
    }
    outputs = (Output("logits", f"{TOKENS} {VOCABULARY}"),)
    wanted = predict(model, [{**right, INDEX: torch.arange(3)}], outputs)["logits"]
    for batch in (left, right, left):
        found = predict_ir(ir, [{**batch, INDEX: torch.arange(3)}], outputs)["logits"]
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=3e-3)
    with pytest.raises(UserError, match="beam_idx, input_ids, position_ids; the batch has labels"):
        ir.run({"labels": left["input_ids"]})


ODD = {"hidden_size": 96, "intermediate_size": 176, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8}
"""Rows of 96, 176 and 40 weights: groups of 128 divide none; 32 divides the first."""


@pytest.fixture(scope="module")
def odd_qwen() -> torch.nn.Module:
    return build_causal("qwen2", num_hidden_layers=1, tie_word_embeddings=True, **ODD)


@pytest.mark.parametrize(
    ("weight_format", "settings", "stored"),
    [
        ("int8", WeightCompression(), {("int8_asym", -1): 8}),
        ("int4", WeightCompression(), {("int4_asym", 32): 5, ("int8_asym", -1): 3}),
        ("int4", WeightCompression(sym=True, group_size=16), {("int4_sym", 16): 6, ("int8_asym", -1): 2}),
        ("int4", WeightCompression(group_size=-1, all_layers=True), {("int4_asym", -1): 8}),
        (
            "int4",
            WeightCompression(ratio=0.5, awq=True, scale_estimation=True),
            {("int4_asym", 32): 2, ("int8_asym", -1): 6},
        ),
    ],
)
def test_weights_of_any_width_are_compressed(
    weight_format: str,
    settings: WeightCompression,
    stored: dict[tuple[str, int], int],
    odd_qwen: torch.nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = export_openvino(
        odd_qwen,
        TOKENIZER,
        tmp_path / "ir",
        weight_format=weight_format,
        compression=settings,
        calibration=[batch_of([text]) for text in TEXTS],
        example_batches=[batch_of(TEXTS)],
    )
    told = "are no groups of" in capsys.readouterr().err
    assert told == (weight_format == "int4" and settings.group_size != -1)  # int8 has no groups
    found = read_json(tmp_path / "ir/export.json")
    assert result.max_rel_difference < 1e-5  # before
    assert ("group_size" in found["compression"]) == (weight_format == "int4")
    weights = found["compression"]["weights"]
    kinds = Counter((group["type"], group["group_size"]) for group in weights for _ in group["layers"])
    assert kinds == stored
    names = dict(odd_qwen.named_parameters())
    assert sum(group["parameters"] for group in weights) == sum(p.numel() for p in names.values() if p.ndim == 2)
    assert {name for group in weights for name in group["layers"]} == {n for n, p in names.items() if p.ndim == 2}
    bytes_at_most = sum(group["parameters"] * (0.5 if "int4" in group["type"] else 1) for group in weights)
    assert result.size < 1.25 * bytes_at_most + 6000
    assert found["difference"]["agreement"] > (0.9 if weight_format == "int8" else 0.2)
    ids = batch_of(TEXTS[:1])["input_ids"].numpy()
    assert len(load_causal_ir(tmp_path / "ir").generate_greedy(ids, max_new_tokens=3)[0]) == 3


def test_weights_held_as_inputs_by_outputs_are_told_by_name(tmp_path: Path) -> None:
    model = gpt2_subnet()
    export_openvino(model, None, tmp_path / "ir", weight_format="int8", example_batches=[batch_of(TEXTS)])
    weights = read_json(tmp_path / "ir/export.json")["compression"]["weights"]
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    assert {name for group in weights for name in group["layers"]} == matrices


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("all_layers", [False, True])
def test_what_would_be_int8_anyway_is_not_complained_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], all_layers: bool, tied: bool
) -> None:
    """Rows of 80 weights, in all layers but two, have no groups of 32: those of the embeddings and the last layer."""
    model = build_causal("qwen2", num_hidden_layers=1, tie_word_embeddings=tied, **{**ODD, "hidden_size": 80})
    export_openvino(
        model,
        None,
        tmp_path / "ir",
        weight_format="int4",
        compression=WeightCompression(all_layers=all_layers),
        example_batches=[batch_of(TEXTS)],
    )
    told = [line for line in capsys.readouterr().err.splitlines() if "are no groups of 128" in line]
    of_80 = next(line for line in told if "rows of 80 weights" in line)
    outer = 1 if tied else 2  # beside q, k, v, gate and up
    assert f" and {4 + outer if all_layers else 4} more stay int8: " in of_80
    assert not any("lm_head" in line or "embed_tokens" in line for line in told) or all_layers
    assert len(told) == 3


def test_a_perplexity_that_grows_too_much_leaves_nothing(odd_qwen: torch.nn.Module, tmp_path: Path) -> None:
    metric = TaskMetric("perplexity", "texts", 3, 4.0, (), lambda ir: 4.2, greater_is_better=False)
    assert metric.drop(4.2) == pytest.approx(0.05)
    with pytest.raises(ExportError, match=r"has perplexity 4\.2000, torch 4\.0000: it has grown by more than 4 %;"):
        export_openvino(
            odd_qwen,
            None,
            tmp_path / "ir",
            weight_format="int8",
            compression=WeightCompression(max_drop=0.04),
            example_batches=[batch_of(TEXTS)],
            metric=metric,
        )
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_a_language_model_without_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_causal("qwen2", num_hidden_layers=1, **ODD).bfloat16()
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    command = ["export", "--model_dir", f"{tmp_path}/model", "--calibration_file", f"{tmp_path}/texts.txt"]
    int4 = ["--weight_format", "int4", "--awq", "--calibration_samples", "2", "--output_dir", f"{tmp_path}/ir"]
    assert main([*command, *int4]) == 0
    found = read_json(tmp_path / "ir/export.json")
    assert found["compression"]["calibration_rows"] == 2
    assert found["metric"]["name"] == "perplexity"
    assert found["metric"]["rows"] == 3  # those that are not for calibration
    assert found["metric"]["ir"] != found["metric"]["torch"] > 1
    assert (tmp_path / "ir/openvino_detokenizer.xml").is_file()


def test_exports_with_and_without_calibration_are_measured_on_the_same_texts(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"{text} {number}" for number in range(8) for text in TEXTS), encoding="utf-8")
    metrics = []
    for rows in (0, 3, 8):
        data = text_data(
            build_causal("llama", num_hidden_layers=1),
            TOKENIZER,
            length=None,
            calibration_rows=rows,
            calibration_file=str(file),
            measured=True,
        )
        assert len(data.calibration) == rows
        metrics.append(data.metric)
    assert [metric.rows for metric in metrics] == [32, 32, 32]
    assert len({metric.torch for metric in metrics}) == 1
    read = [{tuple(batch["input_ids"][0].tolist()) for batch in metric.batches} for metric in metrics]
    assert read[0].isdisjoint(tuple(batch["input_ids"][0].tolist()) for batch in data.calibration)
