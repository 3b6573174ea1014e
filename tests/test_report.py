"""Reports and model cards: what they say, and that the code in a card runs."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import build_tiny_bert
from rich.console import Console

from bootstrapnas.artefacts import write_json
from bootstrapnas.costs import Costs
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.export import Latency, LatencySettings, export_openvino
from bootstrapnas.extraction import save_subnet
from bootstrapnas.pipeline.card import write_first_card, write_searched_card
from bootstrapnas.report import (
    Row,
    build_report,
    html_page,
    markdown_table,
    model_card,
    report_json,
    terminal_table,
    write_report,
)
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec, build_task_spec

QUIET = LatencySettings(1, 128, "f32", 2, 5, "A CPU", "2026.4")
PNG = b"\x89PNG\r\n\x1a\n pretend"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def build_rows() -> list[Row]:
    full = Costs(11_174_400_000, 10_900_000_000, 109_483_778, 85_648_130, 128)
    small = Costs(5_700_000_000, 5_500_000_000, 66_000_000, 42_164_352, 128)
    return [
        Row("BERT", full, {"accuracy": 0.9232}, latency={"f32": Latency((90.0, 100.0, 110.0), QUIET)}),
        Row(
            "subnet <1|2>", small, {"accuracy": 0.9197, "f1": 0.5}, latency={"f32": Latency((45.0, 50.0, 55.0), QUIET)}
        ),
        Row("half", small, bytes_per_param=2),
    ]


def test_markdown_table_has_every_figure() -> None:
    lines = markdown_table(build_report(build_rows(), title="t")).splitlines()
    assert lines == [
        "| model | accuracy (%) | f1 (%) | MACs (M), 128 tokens | params (M) | params (M) without embeddings | "
        "size (MB) | size (MB) without embeddings | f32 latency (ms) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| BERT | 92.32 | – | 11,174 (100%) | 109.5 | 85.65 | 437.9 | 342.6 | 100 (1.00×) |",
        "| subnet <1\\|2> | 91.97 | 50.00 | 5,700 (51%) | 66 | 42.16 | 264 | 168.7 | 50 (2.00×) |",
        "| half | – | – | 5,700 (51%) | 66 | 42.16 | 132 | 84.33 | – |",
    ]


def test_predicted_latencies_are_shown_where_a_search_has_them() -> None:
    full, small, half = build_rows()
    rows = [replace(full, predicted_ms=80.0), replace(small, predicted_ms=32.0), half]
    header, _, *cells = markdown_table(build_report(rows, title="t")).splitlines()
    assert header.endswith("| f32 latency (ms) | predicted latency (ms) |")
    assert [line.split("|")[-2].strip() for line in cells] == ["80 (1.00×)", "32 (2.50×)", "–"]
    assert [row["predicted_latency_ms"] for row in report_json(build_report(rows, title="t"))["rows"]] == [80, 32, None]


def test_metrics_that_are_no_fractions_are_shown_as_they_are() -> None:
    costs = Costs(1, 1, 1, 1, 8)
    rows = [Row("model", costs, {"perplexity": 12.3456}), Row("worse", costs, {"perplexity": 12345.6})]
    text = markdown_table(build_report(rows, title="t", percent=False))
    assert "| perplexity |" in text
    assert "| 12.35 |" in text
    assert "| 12,346 |" in text


def test_a_first_card_shows_a_perplexity_as_it_is(tmp_path: Path) -> None:
    write_made(tmp_path)
    write_first_card(tmp_path, {"perplexity": 12.3456}, "A note.")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| model | perplexity | MACs" in card
    assert "| subnet | 12.35 |" in card


@pytest.mark.parametrize(("way", "told"), [("score", ", by --evaluate_by score."), (None, ".")])
def test_a_card_says_how_a_search_had_instructions_answered(way: str | None, told: str, tmp_path: Path) -> None:
    """The subnet's own task may ask another way, with another figure of the same name."""
    write_made(tmp_path)
    spec = TaskSpec.load(tmp_path / "task.json")
    searched = (
        spec
        if way is None
        else build_task_spec("commonsense", train_file="rows.json", instructions={"evaluate_by": way})
    )
    (tmp_path / "search").mkdir()
    searched.save(tmp_path / "search" / "task.json")
    write_searched_card(tmp_path, {"macs": 1, "perplexity": 2.0}, str(tmp_path / "search"))
    assert f"- The metric is the search's, on the validation split{told}\n" in (tmp_path / "README.md").read_text()


def write_made(directory: Path, **more: Any) -> None:
    """Write what a card tells of a subnet, of a LLaMA."""
    costs = {"macs": 1, "nncf_macs": 1, "params": 1, "params_without_embeddings": 1, "length": 8}
    made = {"sizes": {}, "costs": costs, "full_costs": costs, "supernet": {"id": "made"}, "chosen_by": "best"}
    write_json(directory / "subnet.json", made | more)
    write_json(directory / "config.json", {"architectures": ["LlamaForCausalLM"]})
    TaskSpec("text", ("text",), (), "language_modelling", "perplexity", 8, "").save(directory / "task.json")


ADDED = "Its adapter was added to the weights."


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({}, ["Its part of every weight was copied; nothing was trained after that."]),
        ({"finetuned": {"teacher": None}}, ["Its part of every weight was copied.", "It was fine-tuned on the task."]),
        ({"super_adapter": {"base": "a/model", "reordered": False}}, ["Its part of every weight was copied.", ADDED]),
        (
            {
                "super_adapter": {"base": "a/model", "reordered": True},
                "finetuned": {"adapter": {"path": "a"}, "teacher": None},
            },
            ["Its part of every weight was copied.", "Its adapter was fine-tuned on the task.", ADDED],
        ),
        (
            {"super_adapter": {"base": "a/model", "reordered": True}, "finetuned": {"teacher": {"id": "teacher"}}},
            ["Its part of every weight was copied.", ADDED, "It was fine-tuned on the task, distilled from `teacher`."],
        ),
    ],
)
def test_a_card_tells_how_a_subnet_was_made(more: dict[str, Any], steps: list[str], tmp_path: Path) -> None:
    """Only what was put in order keeps what is most important; the weights of a super-adapter are those of its base."""
    write_made(tmp_path, **more)
    write_first_card(tmp_path, {}, "")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    told = card.partition("## How it was made\n\n")[2].partition("\n\n")[0].splitlines()
    assert told[2:] == [f"{number}. {step}" for number, step in enumerate(steps, 3)]
    adapted = more.get("super_adapter")
    assert f'base_model: "{"a/model" if adapted else "made"}"' in card
    assert ("its layers keep the most important" in card) == (not adapted or adapted["reordered"])
    assert ("by importance" in told[0]) == (not adapted or adapted["reordered"])
    assert ("super-adapter (`made`) was trained on the frozen `a/model`" in told[0]) == bool(adapted)


def test_report_json_is_exact(tmp_path: Path) -> None:
    path = write_report(build_report(build_rows(), title="t", notes=["A note."]), tmp_path)[0]
    found = json.loads(path.read_text())
    assert found["format"] == 1
    assert found["reference"] == "BERT"
    assert [row["name"] for row in found["rows"]] == ["BERT", "subnet <1|2>", "half"]
    row = found["rows"][1]
    assert row["metrics"] == {"accuracy": 0.9197, "f1": 0.5}
    assert row["macs"] == 5_700_000_000
    assert row["size_without_embeddings_mb"] == pytest.approx(168.657408)
    assert row["latency"]["f32"]["median_ms"] == 50
    assert row["latency"]["f32"]["settings"]["precision"] == "f32"
    assert row["speed_up"] == {"f32": 2.0}
    assert found["rows"][2]["speed_up"] == {}
    assert found["notes"][0] == "A note."
    assert "openvino" in found["versions"]


def test_report_markdown_links_to_the_picture(tmp_path: Path) -> None:
    (tmp_path / "pareto.png").write_bytes(PNG)
    report = build_report(build_rows(), title="Title", notes=["A note."])
    (tmp_path / "out").mkdir()
    paths = write_report(report, tmp_path / "out", picture=tmp_path / "pareto.png")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    text = paths[1].read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n| model |")
    assert "![Title](../pareto.png)" in text
    assert "- A note.\n- f32 latency: median of 3 interleaved runs, OpenVINO 2026.4, 2 threads of A CPU" in text


def test_html_is_whole_escaped_and_self_contained() -> None:
    tags: list[str] = []
    open_tags: list[str] = []
    texts: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            if tag not in ("meta", "img"):
                open_tags.append(tag)
            for name, value in attributes:
                assert name not in ("href", "onload")
                assert name != "src" or (value or "").startswith("data:image/png;base64,")

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_data(self, data: str) -> None:
            texts.append(data)

    page = html_page(build_report(build_rows(), title="A & B", notes=["<b>no tag</b>"]), picture=PNG)
    Checker().feed(page)
    assert open_tags == []
    assert tags.count("tr") == 4
    assert "b" not in tags
    assert {"subnet <1|2>", "50 (2.00×)", "A & B", "<b>no tag</b>"} <= set(texts)
    assert base64.b64encode(PNG).decode() in page
    assert "http" not in page


def test_terminal_table_fits_into_80_columns() -> None:
    output = io.StringIO()
    Console(file=output, width=80, color_system=None).print(terminal_table(build_report(build_rows(), title="[t]")))
    text = output.getvalue()
    assert "[t]" in text
    (line,) = [line for line in text.splitlines() if "MACs (M), 128 tokens" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "MACs (M), 128 tokens",
        "11,174 (100%)",
        "5,700 (51%)",
        "5,700 (51%)",
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_a_busy_machine_is_noted() -> None:
    rows = build_rows()
    assert not any("busy" in note for note in build_report(rows, title="t").notes)
    noisy = Latency((40.0, 50.0, 90.0), QUIET)
    rows[1] = Row("noisy", rows[1].costs, latency={"f32": noisy})
    (note,) = [note for note in build_report(rows, title="t").notes if "busy" in note]
    assert note.endswith("noisy in f32 50%.")


def test_rows_that_cannot_be_compared_are_refused() -> None:
    rows = build_rows()
    with pytest.raises(UserError, match="at least one row"):
        build_report([], title="t")
    with pytest.raises(UserError, match="two rows of the report have the name 'BERT'"):
        build_report([rows[0], rows[0]], title="t")
    with pytest.raises(UserError, match="MACs at different lengths cannot be compared: 8, 128 tokens"):
        build_report([rows[0], Row("short", Costs(1, 1, 1, 1, 8))], title="t")
    other = Latency((1.0, 1.0, 1.0), LatencySettings(1, 64, "f32", 2, 5, "A CPU", "2026.4"))
    with pytest.raises(UserError, match="cannot be compared"):
        build_report([rows[0], Row("other", rows[0].costs, latency={"f32": other})], title="t")


@pytest.mark.parametrize(
    "subnet", [{Key("head", 0): 2, Key("mha_block", 1): 0}, {Key("ffn", 0): 64, Key("ffn", 1): 64}]
)
def test_the_code_of_a_model_card_runs(subnet: dict[Key, int], tiny_bert_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    supernet = Supernet(build_tiny_bert())
    small = supernet.extract(subnet)
    remote_code = "subnet" in small.config.to_dict()
    assert remote_code == (Key("mha_block", 1) in subnet)  # both kinds are tried
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    save_subnet(small, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    batch = dict(tokenizer(["a red lamp.", "cat"], padding=True, return_tensors="pt"))
    export_openvino(small, tokenizer, tmp_path / "ir", example_batches=[batch])
    card = model_card(
        "A subnet",
        base_model="bert-base-uncased",
        auto_class="AutoModelForSequenceClassification",
        remote_code=remote_code,
        steps=["Importance by movement sparsity.", "Search by NSGA-II."],
        sizes=small.config.to_dict().get("subnet", {}).get("sizes"),
        report=build_report(build_rows(), title="t"),
        ir="ir",
    )
    snippets = CODE.findall(card)
    assert len(snippets) == 2
    for snippet in snippets:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "PYTHONPATH": "",
        }
        code = f"{snippet}\nassert tuple(logits.shape) == (1, 3), logits.shape"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)


def test_model_card_says_how_it_was_made() -> None:
    text = model_card(
        "A subnet",
        base_model="org/model",
        auto_class="AutoModelForQuestionAnswering",
        remote_code=True,
        steps=["First.", "Second."],
        sizes={"head": [12, None], "mha_block": [1, 0], "ffn_block": [1, 1], "hidden": 64},
    )
    assert text.startswith(
        '---\nbase_model: "org/model"\nlibrary_name: transformers\ntags: [bootstrapnas, subnet]\n---\n'
    )
    assert "1. First.\n2. Second." in text
    assert "| layer | head | mha_block |\n| ---: | ---: | ---: |\n| 0 | 12 | 1 |\n| 1 | all | 0 |" in text
    assert "- hidden: 64" in text
    assert "trust_remote_code=True" in text
    assert "start_logits" in text
    assert "OpenVINO" not in text


def test_the_card_of_a_language_model_generates() -> None:
    card = model_card(
        "t", base_model="m", auto_class="AutoModelForCausalLM", remote_code=True, steps=["Once."], ir="ir"
    )
    for snippet, call in zip(CODE.findall(card), ("model.generate(**tokenizer(", "pipeline.generate("), strict=True):
        compile(snippet, "card", "exec")
        assert call in snippet


def test_model_card_names_no_local_path_as_base_model(tmp_path: Path) -> None:
    text = model_card("t", base_model=str(tmp_path), auto_class="AutoModel", remote_code=False, steps=["Once."])
    assert "base_model:" not in text
    assert "trust_remote_code" not in text


def test_model_card_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(UserError, match="no model card for AutoModelForVision"):
        model_card("t", base_model="m", auto_class="AutoModelForVision", remote_code=False, steps=[])
