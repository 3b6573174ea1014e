"""OpenVINO IR: the files compute what the model computes, and nothing else is ever left on disk."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, build_tiny_bert, tiny_bert_config
from families import Row, decoder_rows, modernbert_rows
from torch import Tensor
from transformers import LlamaConfig, MistralConfig

from bootstrapnas.artefacts import read_json
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.evaluation import predict
from bootstrapnas.export import (
    ExportError,
    IRModel,
    Latency,
    LatencySettings,
    Quantisation,
    TaskMetric,
    available_precisions,
    export_openvino,
    load_ir,
    measure_latency,
    predict_ir,
    speed_up,
)
from bootstrapnas.export.onnx import OnnxModel, export_onnx, load_onnx
from bootstrapnas.export.verification import probe_batches
from bootstrapnas.outputs import INDEX, Output
from bootstrapnas.supernet import Supernet

HETEROGENEOUS = {Key("head", 0): 3, Key("ffn", 0): 50, Key("mha_block", 1): 0, Key("ffn", 1): 97}
LAST_BLOCKS_SKIPPED = {Key("head", 0): 1, Key("ffn_block", 0): 0, Key("mha_block", 1): 0, Key("ffn_block", 1): 0}
NO_ATTENTION = {Key("mha_block", 0): 0, Key("mha_block", 1): 0}
TEXTS = ["the red lamp turns.", "some quiet old dog stays near the green bridge again.", "cat"]

WINDOWED = decoder_rows("Mistral", MistralConfig, ["SequenceClassification"], sliding_window=4)


def build_batch(rows: int, length: int, padded: int = 0, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(VOCABULARY), (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -padded:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (torch.arange(length) > length // 2).long() + ids * 0,
    }


def largest_difference(ir: IRModel | OnnxModel, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> float:
    with torch.inference_mode():
        wanted = model(**batch).logits.numpy()
    found = ir.run(batch)["logits"]
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    return float(np.abs(found - wanted).max())


def load_tokenizer(directory: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def ir_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The IR of the tiny BERT. Read-only."""
    directory = tmp_path_factory.mktemp("export") / "ir"
    export_openvino(build_tiny_bert(), None, directory, example_batches=[build_batch(2, 9)])
    return directory


@pytest.mark.parametrize("subnet", [{}, HETEROGENEOUS, LAST_BLOCKS_SKIPPED, NO_ATTENTION])
def test_ir_of_a_subnet_equals_torch_at_any_shape(subnet: dict[Key, int], tmp_path: Path) -> None:
    small = Supernet(build_tiny_bert()).extract(subnet)
    result = export_openvino(small, None, tmp_path / "ir", example_batches=[build_batch(3, 12)])
    assert result.max_abs_difference <= 1e-4
    assert result.size == (tmp_path / "ir/openvino_model.bin").stat().st_size
    ir = load_ir(tmp_path / "ir")
    for rows, length, padded in ((1, 1, 0), (1, 64, 0), (2, 5, 3), (7, 33, 20)):
        assert largest_difference(ir, small, build_batch(rows, length, padded)) <= 1e-4


@pytest.mark.parametrize(
    ("row", "side"),
    [
        *((row, "right") for row in (*modernbert_rows(["SequenceClassification", ""]), *WINDOWED)),
        *((row, "left") for row in decoder_rows("Llama", LlamaConfig, ["TokenClassification"])),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_padding_that_may_attend_to_nothing_harms_no_text(row: Row, side: str, tmp_path: Path) -> None:
    """Beyond all windows, or before a text that is read from left to right."""
    model = row.build()
    ids = torch.arange(2, 34).view(2, 16)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    if side == "left":
        mask = mask.flip(1)
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    export_openvino(model, None, tmp_path / "ir", example_batches=[batch])
    with torch.no_grad():
        (wanted,) = (value.numpy() for name, value in model(**batch).items() if name in ("logits", "last_hidden_state"))
    (found,) = load_ir(tmp_path / "ir").run(batch).values()
    assert np.isfinite(found).all()
    texts = mask.numpy() == 1 if found.ndim == 3 else slice(None)
    np.testing.assert_allclose(found[texts], wanted[texts], atol=1e-4)


def test_fp16_halves_the_file_and_is_near(ir_dir: Path, tmp_path: Path) -> None:
    model = build_tiny_bert()
    result = export_openvino(
        model, None, tmp_path / "ir", weight_format="fp16", example_batches=[build_batch(2, 9), build_batch(1, 30)]
    )
    assert 1e-7 < result.max_abs_difference <= 1e-2  # rounded weights cannot agree exactly
    full_size = (ir_dir / "openvino_model.bin").stat().st_size
    assert 0.45 < result.size / full_size < 0.55
    assert largest_difference(load_ir(tmp_path / "ir"), model, build_batch(4, 20, 3)) <= 1e-2


def calibration(rows: int = 12) -> list[dict[str, Tensor]]:
    return [build_batch(1, 5 + row, seed=row) for row in range(rows)]


UNEVEN = {Key("head", 0): 1, Key("ffn", 0): 1, Key("head", 1): 3, Key("ffn", 1): 97}


@pytest.mark.parametrize("subnet", [UNEVEN, LAST_BLOCKS_SKIPPED])
def test_a_subnet_of_any_widths_is_quantised(subnet: dict[Key, int], tmp_path: Path) -> None:
    small = Supernet(build_tiny_bert()).extract(subnet)
    result = export_openvino(
        small,
        None,
        tmp_path / "ir",
        example_batches=[build_batch(3, 12)],
        quantisation=Quantisation(),
        calibration=calibration(),
    )
    assert result.max_abs_difference <= 1e-4 < result.difference.absolute
    assert result.difference.relative < 0.5
    # Biases, scales and norms stay in float, which counts in something so tiny.
    assert result.size < 0.5 * 4 * small.num_parameters()
    found = read_json(tmp_path / "ir/export.json")
    assert found["quant_mode"] == "int8"
    assert found["difference"]["absolute"] == result.difference.absolute
    products = found["quantisation"]["operations"]
    assert products["quantised"] >= sum(parameter.dim() == 2 for parameter in small.parameters()) - 3  # embeddings
    ir = load_ir(tmp_path / "ir")
    for rows, length, padded in ((1, 1, 0), (2, 5, 3), (4, 33, 20)):
        assert np.isfinite(largest_difference(ir, small, build_batch(rows, length, padded)))


def test_int8_weights_take_a_quarter_and_stay_near(ir_dir: Path, tmp_path: Path) -> None:
    model = build_tiny_bert()
    result = export_openvino(model, None, tmp_path / "ir", weight_format="int8", example_batches=[build_batch(2, 9)])
    assert result.max_abs_difference <= 1e-4 < result.difference.absolute < 1e-1
    assert result.size < 0.35 * (ir_dir / "openvino_model.bin").stat().st_size


def test_the_metric_is_measured_and_bounds_what_quantisation_may_lose(tmp_path: Path) -> None:
    model, rows = Supernet(build_tiny_bert()).extract(LAST_BLOCKS_SKIPPED), build_batch(8, 12)
    batches = [{**rows, INDEX: torch.arange(8)}]
    wanted = np.stack(predict(model, batches)["logits"])

    def closeness(ir: IRModel) -> float:
        apart = np.stack(predict_ir(ir, batches)["logits"]) - wanted
        return float(1 - np.abs(apart).max() / np.abs(wanted).max())

    metric = TaskMetric("closeness", "validation", 8, 1.0, batches, closeness)
    crude = [{name: tensor[:, :1] for name, tensor in build_batch(1, 3).items()}]  # ranges of one token
    settings = {"example_batches": [build_batch(3, 12)], "metric": metric, "calibration": crude}
    plain = export_openvino(model, None, tmp_path / "f32", **settings)
    found = read_json(tmp_path / "f32/export.json")["metric"]
    assert found.pop("ir") == plain.metric == pytest.approx(1, abs=1e-5)
    assert found == {"name": "closeness", "torch": 1.0, "precision": "f32", "split": "validation", "rows": 8}
    worse = export_openvino(model, None, tmp_path / "ir", quantisation=Quantisation(), **settings)
    assert worse.metric is not None
    drop = (1 - worse.metric) / 2
    kept = export_openvino(model, None, tmp_path / "kept", quantisation=Quantisation(max_drop=drop), **settings)
    assert kept.metric is not None
    assert kept.metric >= 1 - drop
    operations = [read_json(tmp_path / name / "export.json")["quantisation"]["operations"] for name in ("ir", "kept")]
    assert operations[1]["quantised"] < operations[0]["quantised"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_format": "int4"}, "with weight_format int4: an encoder .* use weight_format int8, or quant_mode"),
        ({"weight_format": "int8", "quantisation": Quantisation()}, "weight_format must not be int8"),
        ({"quantisation": Quantisation()}, "needs calibration data: there are no rows"),
        ({"quantisation": Quantisation(), "calibration": [{"input_ids": torch.ones(1, 3)}]}, "batch 0 lacks attention"),
        (
            {"quantisation": Quantisation(max_drop=0.1), "calibration": [build_batch(1, 3)]},
            "needs a task and its validation rows",
        ),
        (
            {"quantisation": Quantisation(ignored=("attention",)), "calibration": [build_batch(1, 3)]},
            "'attention' matches the beginning of no operation's name, such as __module",
        ),
    ],
)
def test_quantisation_refuses(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export_openvino(build_tiny_bert(), None, tmp_path / "ir", example_batches=[build_batch(2, 9)], **settings)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "mixd"}, "unknown preset 'mixd', known: mixed, performance; did you mean 'mixed'?"),
        ({"smooth_quant_alpha": 2.0}, "smooth_quant_alpha must lie from 0 to 1, or be -1, not 2"),
        ({"max_drop": -0.5}, "the largest drop of the metric must not be negative, is -0.5"),
        ({"ignored": ("(",)}, "ignored operations: '(' is no regular expression"),
    ],
)
def test_settings_of_quantisation_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Quantisation(**settings)
    assert message in str(caught.value)


def test_onnx_of_a_subnet_equals_torch_at_any_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Supernet(build_tiny_bert()).extract(LAST_BLOCKS_SKIPPED)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        result = export_onnx(small, None, tmp_path / "onnx", example_batches=[build_batch(3, 12)])
    assert [str(each.message) for each in shown] == []
    assert result.max_abs_difference <= 1e-4
    assert names_in(tmp_path / "onnx") == ["config.json", "export.json", "model.onnx"]
    onnx = load_onnx(tmp_path / "onnx")
    for rows, length, padded in ((1, 1, 0), (1, 64, 0), (7, 33, 20)):
        assert largest_difference(onnx, small, build_batch(rows, length, padded)) <= 1e-4
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"cut")
    with pytest.raises(UserError, match="it is damaged or no ONNX model"):
        load_onnx(tmp_path / "onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"ONNX needs onnx, onnxruntime, onnxscript: pip install 'bootstrapnas\[onnx\]'"
    ):
        export_onnx(small, None, tmp_path / "new", example_batches=[build_batch(3, 12)])
    assert not (tmp_path / "new").exists()


def test_export_json_records_what_was_verified(tmp_path: Path) -> None:
    result = export_openvino(build_tiny_bert(), None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    found = read_json(tmp_path / "ir/export.json")
    assert found["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert found["outputs"] == ["logits"]
    assert found["weight_format"] == "fp32"
    assert found["verified"]["tolerance"] == 1e-4
    assert found["verified"]["max_abs_difference"] == result.max_abs_difference
    assert {tuple(shape) for shape in found["verified"]["shapes"]} == {(2, 9), (1, 9), (2, 5)}
    assert {"torch", "transformers", "openvino"} <= set(found["versions"])


def test_question_answering_and_features_have_their_outputs(tmp_path: Path) -> None:
    from transformers import BertForQuestionAnswering, BertModel

    config = tiny_bert_config()
    config.num_labels = 2
    for cls, names in (
        (BertForQuestionAnswering, ("start_logits", "end_logits")),
        (BertModel, ("last_hidden_state", "pooler_output")),
    ):
        torch.manual_seed(0)
        model = cls(config).eval()
        export_openvino(model, None, tmp_path / cls.__name__, example_batches=[build_batch(2, 9)])
        ir = load_ir(tmp_path / cls.__name__)
        assert ir.outputs == names
        batch = build_batch(3, 17, 4)
        found = ir.run(batch)
        with torch.inference_mode():
            wanted = model(**batch)
        for name in names:
            np.testing.assert_allclose(found[name], wanted[name].numpy(), atol=1e-4)
        with pytest.raises(UserError, match="no output logits"):
            predict_ir(ir, [{**batch, INDEX: torch.arange(3)}])


def test_inputs_are_those_that_the_tokenizer_makes(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = tiny_bert_config()
    sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 66, "type_vocab_size": 1, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(**sizes, hidden_size=config.hidden_size, num_attention_heads=4, intermediate_size=64)
    ).eval()
    batch = build_batch(2, 9)
    del batch["token_type_ids"]
    result = export_openvino(model, None, tmp_path / "ir", example_batches=[batch | {"labels": torch.zeros(2)}])
    assert result.inputs == load_ir(tmp_path / "ir").inputs == ("input_ids", "attention_mask")


def test_the_tokenizer_comes_along(tiny_bert_dir: Path, tmp_path: Path) -> None:
    import openvino as ov

    pytest.importorskip("openvino_tokenizers")
    tokenizer = load_tokenizer(tiny_bert_dir)
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    result = export_openvino(build_tiny_bert(), tokenizer, tmp_path / "ir", example_batches=[batch])
    assert result.tokenizer_ir
    assert load_tokenizer(tmp_path / "ir")(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    converted = ov.Core().compile_model(tmp_path / "ir/openvino_tokenizer.xml", "CPU")
    found = converted(TEXTS)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(found[name], batch[name].numpy())


@pytest.mark.parametrize("full", ["openvino_model.xml", "openvino_tokenizer.xml"])
def test_a_disk_that_is_full_in_the_end_is_told_and_leaves_nothing(
    full: str, tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino as ov

    pytest.importorskip("openvino_tokenizers")
    save = ov.save_model

    def fail(model: Any, path: Path, **settings: Any) -> None:
        save(model, path, **settings)
        if path.name == full:
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(ov, "save_model", fail)
    tokenizer = load_tokenizer(tiny_bert_dir)
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        export_openvino(build_tiny_bert(), tokenizer, tmp_path / "ir", example_batches=[batch])
    assert not list(tmp_path.iterdir())


def test_without_openvino_tokenizers_the_export_says_so_and_succeeds(
    tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)  # what makes an import fail
    tokenizer = load_tokenizer(tiny_bert_dir)
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    result = export_openvino(build_tiny_bert(), tokenizer, tmp_path / "ir", example_batches=[batch])
    assert not result.tokenizer_ir
    assert not (tmp_path / "ir/openvino_tokenizer.xml").exists()
    assert (tmp_path / "ir/tokenizer.json").is_file()
    assert "openvino_tokenizers" in read_json(tmp_path / "ir/export.json")["tokenizer_note"]
    assert "warning: no openvino_tokenizer.xml" in capsys.readouterr().err


def test_config_keeps_the_subnet_and_names_no_python_file(tmp_path: Path) -> None:
    small = Supernet(build_tiny_bert()).extract(HETEROGENEOUS)
    small.config.auto_map = {"AutoModelForSequenceClassification": "modeling_subnet.X"}
    export_openvino(small, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    config = read_json(tmp_path / "ir/config.json")
    assert config["model_type"] == "bert"
    assert config["subnet"]["sizes"]["head"] == [3, 4]
    assert "auto_map" not in config


def test_a_difference_above_the_tolerance_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"differs from torch by .* more than the tolerance 0") as caught:
        export_openvino(build_tiny_bert(), None, tmp_path / "ir", example_batches=[build_batch(2, 9)], tolerance=0.0)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


def test_wrong_weights_in_the_saved_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    model = build_tiny_bert()
    weights = model.classifier.weight.detach().numpy()
    save = ov.save_model

    def save_and_damage(ir: ov.Model, path: Path, *, compress_to_fp16: bool) -> None:
        save(ir, path, compress_to_fp16=compress_to_fp16)
        content = path.with_suffix(".bin").read_bytes()
        assert content.count(weights.tobytes()) == 1
        path.with_suffix(".bin").write_bytes(content.replace(weights.tobytes(), (1.5 * weights).tobytes()))

    monkeypatch.setattr(ov, "save_model", save_and_damage)
    with pytest.raises(ExportError, match="differs from torch"):
        export_openvino(model, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    assert names_in(tmp_path) == []


def test_not_a_number_is_a_difference(tmp_path: Path) -> None:
    model = build_tiny_bert()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(ExportError, match="differs from torch by nan"):
        export_openvino(model, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    assert names_in(tmp_path) == []


def test_a_shape_baked_in_by_tracing_is_found(tmp_path: Path) -> None:
    class Baked(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.shape[1])  # a constant to the tracer

    model = build_tiny_bert()
    model.classifier = torch.nn.Sequential(model.classifier, Baked())
    model.bert.embeddings.dropout = Baked()
    with pytest.raises(ExportError, match="differs from torch"):
        export_openvino(model, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])


def test_what_cannot_be_converted_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconvertible(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("no tracing\nplease")
            return x

    model = build_tiny_bert()
    model.dropout = Unconvertible()
    with pytest.raises(ExportError, match="cannot convert BertForSequenceClassification") as caught:
        export_openvino(model, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_second_export_replaces_the_first_even_while_that_runs(tmp_path: Path) -> None:
    first, second = build_tiny_bert(0), build_tiny_bert(1)
    batch = build_batch(2, 9)
    export_openvino(first, None, tmp_path / "ir", example_batches=[batch])
    running = load_ir(tmp_path / "ir")
    export_openvino(second, None, tmp_path / "ir", example_batches=[batch])
    assert largest_difference(running, first, batch) <= 1e-4
    assert largest_difference(load_ir(tmp_path / "ir"), second, batch) <= 1e-4
    assert names_in(tmp_path) == ["ir"]


def test_a_directory_that_is_no_export_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no export"):
        export_openvino(build_tiny_bert(), None, tmp_path, example_batches=[build_batch(2, 9)])
    with pytest.raises(UserError, match="is a file"):
        export_openvino(build_tiny_bert(), None, tmp_path / "notes.txt", example_batches=[build_batch(2, 9)])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_model_and_the_process_are_left_as_they_were(tmp_path: Path) -> None:
    model = build_tiny_bert()
    model.train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    level, filters = logging.getLogger("transformers").level, list(warnings.filters)
    export_openvino(model, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (logging.getLogger("transformers").level, warnings.filters) == (level, filters)


def test_conversion_says_nothing_even_where_every_warning_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        export_openvino(build_tiny_bert(), None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    assert [str(each.message) for each in shown] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight_format": "fp61"},
            "unknown weight_format 'fp61', known: fp16, fp32, int4, int8; did you mean 'fp16'?",
        ),
        ({"example_batches": []}, "example_batches is empty"),
        ({"example_batches": [{"attention_mask": torch.ones(1, 3)}]}, "example batch 0 lacks input_ids"),
        (
            {"example_batches": [build_batch(2, 9), {"input_ids": torch.ones(1, 3)}]},
            "example batch 1 lacks attention_mask",
        ),
        (
            {"example_batches": [{key: value * 0 for key, value in build_batch(2, 9).items()}]},
            "hold no rows with tokens to attend to",
        ),
    ],
)
def test_unusable_arguments_are_told(change: dict[str, object], message: str, tmp_path: Path) -> None:
    settings = {"example_batches": [build_batch(2, 9)], **change}
    with pytest.raises(UserError) as caught:
        export_openvino(build_tiny_bert(), None, tmp_path / "ir", **settings)
    assert message in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_model_in_half_precision_is_exported_and_left_so(tmp_path: Path) -> None:
    model = build_tiny_bert().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_openvino(model, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert largest_difference(load_ir(tmp_path / "ir"), model.float(), build_batch(3, 14, 2)) <= 1e-4
    with pytest.raises(UserError, match=r"bfloat16 or float16; .* has parameters in torch\.float64"):
        export_openvino(model.double(), None, tmp_path / "no", example_batches=[build_batch(2, 9)])


def test_probes_differ_in_batch_length_and_padding() -> None:
    batch = build_batch(3, 8)
    probes = list(probe_batches(batch))
    assert [tuple(probe["input_ids"].shape) for probe in probes] == [(3, 8), (1, 8), (3, 4), (3, 8)]
    assert probes[3]["attention_mask"].sum(dim=1).tolist() == [6, 6, 6]
    assert batch["attention_mask"].all()
    batch["attention_mask"][1] = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])  # padded on the left: its first half is empty
    assert [len(probe["input_ids"]) for probe in probe_batches(batch)] == [3, 1, 2, 3]


def test_predict_ir_gives_what_predict_gives(ir_dir: Path) -> None:
    batches = [
        {**build_batch(2, 7, seed=1), INDEX: torch.tensor([3, 0])},
        {**build_batch(2, 13, 4, seed=2), INDEX: torch.tensor([1, 2])},
    ]
    found, wanted = predict_ir(load_ir(ir_dir), batches)["logits"], predict(build_tiny_bert(), batches)["logits"]
    assert len(found) == 4
    np.testing.assert_allclose(np.stack(found), np.stack(wanted), atol=1e-4)


def test_outputs_of_tokens_come_in_order_and_without_padding(tmp_path: Path) -> None:
    from transformers import BertForQuestionAnswering

    config = tiny_bert_config()
    config.num_labels = 2
    torch.manual_seed(0)
    model = BertForQuestionAnswering(config).eval()
    export_openvino(model, None, tmp_path / "ir", example_batches=[build_batch(2, 9)])
    outputs = (Output("start_logits", "tokens"), Output("end_logits", "tokens"))
    batches = [
        {**build_batch(2, 7, 3, seed=1), INDEX: torch.tensor([2, 0])},
        {**build_batch(1, 13, seed=2), INDEX: torch.tensor([1])},
    ]
    found = predict(model, batches, outputs)
    assert [len(row) for row in found["start_logits"]] == [7, 13, 4]
    alone = {name: tensor[:1, :4] for name, tensor in batches[0].items() if name != INDEX}
    with torch.inference_mode():
        np.testing.assert_allclose(found["end_logits"][2], model(**alone).end_logits[0], atol=1e-5)
    by_ir = predict_ir(load_ir(tmp_path / "ir"), batches, outputs)
    for name, rows in found.items():
        for row, other in zip(rows, by_ir[name], strict=True):
            np.testing.assert_allclose(row, other, atol=1e-4)


def test_ir_takes_numpy_and_says_what_a_batch_lacks(ir_dir: Path) -> None:
    ir = load_ir(ir_dir, threads=1)
    batch = build_batch(2, 7)
    by_numpy = ir.run({name: tensor.numpy() for name, tensor in batch.items()})
    np.testing.assert_array_equal(by_numpy["logits"], ir.run(batch)["logits"])
    del batch["token_type_ids"]
    with pytest.raises(UserError, match="needs token_type_ids; the batch has attention_mask, input_ids"):
        ir.run(batch)


def test_load_ir_computes_in_the_precision_asked_for(ir_dir: Path) -> None:
    assert available_precisions()[0] == load_ir(ir_dir).precision == "f32"
    if "bf16" in available_precisions():
        shorter = load_ir(ir_dir, "bf16")
        assert shorter.precision == "bf16"
        assert 1e-6 < largest_difference(shorter, build_tiny_bert(), build_batch(2, 9)) < 1e-1
    with pytest.raises(UserError, match=r"unknown precision 'fp32', known: bf16, f16, f32; did you mean 'f32'\?"):
        load_ir(ir_dir, "fp32")
    with pytest.raises(UserError, match="threads must be at least 1"):
        load_ir(ir_dir, threads=0)


def test_load_ir_refuses_a_precision_that_the_cpu_lacks(ir_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootstrapnas.export.runtime.available_precisions", lambda device: ("f32",))
    with pytest.raises(UserError, match="does not compute in bf16, only in f32"):
        load_ir(ir_dir, "bf16")


@pytest.mark.parametrize("file", ["openvino_model.xml", "openvino_model.bin"])
def test_a_missing_or_cut_ir_is_told_in_one_line(file: str, ir_dir: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "ir"
    shutil.copytree(ir_dir, damaged)
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cannot load .*openvino_model\.xml, it is damaged") as caught:
        load_ir(damaged)
    assert "\n" not in str(caught.value)
    (damaged / file).unlink()
    with pytest.raises(UserError, match=f"holds no OpenVINO IR: {file} does not exist"):
        load_ir(damaged)


def test_latency_measures_all_models_in_the_same_way(ir_dir: Path, tmp_path: Path) -> None:
    small = Supernet(build_tiny_bert()).extract(LAST_BLOCKS_SKIPPED)
    export_openvino(small, None, tmp_path / "small", example_batches=[build_batch(2, 9)])
    found = measure_latency({"full": ir_dir, "small": tmp_path / "small"}, batch=2, length=32, repeats=7, threads=1)
    assert list(found) == ["full", "small"]
    assert found["full"].settings == found["small"].settings
    settings = found["full"].settings
    assert (settings.batch, settings.length, settings.precision, settings.threads) == (2, 32, "f32", 1)
    assert settings.cpu
    for latency in found.values():
        assert len(latency.samples_ms) == 7
        assert 0 < min(latency.samples_ms) <= latency.median_ms <= latency.p90_ms <= max(latency.samples_ms)
        assert latency.to_json()["repeats"] == 7
    assert speed_up(found["full"], found["small"]) > 0


def test_latency_stops_in_time(ir_dir: Path) -> None:
    found = measure_latency({"a": ir_dir, "b": ir_dir}, length=8, repeats=10**9, max_seconds=0.2)
    assert len(found["a"].samples_ms) == len(found["b"].samples_ms) < 10**6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 65}, "has 64 positions: length must not be 65"),
        ({"length": 0}, "length must be positive, not 0"),
        ({"repeats": 0}, "repeats must be positive, not 0"),
        ({"warmup": -1}, "warmup must not be negative"),
    ],
)
def test_latency_refuses(change: dict[str, int], message: str, ir_dir: Path) -> None:
    with pytest.raises(UserError, match=message):
        measure_latency({"full": ir_dir}, **{"length": 8, **change})


def test_latency_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no IR to measure"):
        measure_latency({}, length=8)


def test_figures_of_a_latency() -> None:
    settings = LatencySettings(1, 8, "f32", 1, 0, "cpu", "2026")
    slow, fast = Latency((8.0, 10.0, 12.0, 40.0, 10.0), settings), Latency((4.0, 5.0, 6.0, 20.0, 5.0), settings)
    assert slow.median_ms == 10
    assert slow.p90_ms == pytest.approx(28.8)
    assert slow.spread == pytest.approx(0.2)
    assert speed_up(slow, fast) == 2
    with pytest.raises(UserError, match="cannot be compared"):
        speed_up(slow, Latency(fast.samples_ms[:3], settings))
