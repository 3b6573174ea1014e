"""Mistakes that users of LoNAS make on a tiny language model: one line each, and nothing is lost."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from causal_models import build_tokenizer
from command_line import call, refused
from safetensors.torch import load_file, save_file
from tiny_llama import TARGETS, lonas, write_model, write_rows

import lonas.extract as lonas_extract
from bootstrapnas.artefacts import read_json
from bootstrapnas.extraction import adapter_beside
from bootstrapnas.pipeline.search import finalists

CONFIG = f"--nncf_config space.json {TARGETS}"
FILES = "--task_name commonsense --dataset_path train.json --validation_file val.json"
DATA = f"{FILES} --max_seq_length 128 --evaluate_by score"
TRAIN = f"train --model_name_or_path base {DATA} --lora_r 8 --max_steps 1 --output_dir new"
SPACE = "search-space --model_name_or_path base --lora_r 8 --target_config new"
EVAL = "eval --supernet_dir super"
EXTRACT = "extract --supernet_dir super --output_dir new"
IMPORT = f"import-adapter {DATA.replace('dataset_path', 'train_file')} --output_dir new --adapter_dir"
LINEARS = (
    "mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"
)
WIDTHS = "bootstrapNAS.training.elasticity.width.overwrite_groups_widths"


def write_altered(source: str, target: str, **changes: Any) -> None:
    """Copy a super-adapter that says something else of itself."""
    shutil.copytree(source, target)
    file = Path(target) / "super_adapter.json"
    file.write_text(json.dumps({**read_json(file), **changes}))
    header = read_json(f"{target}/stage.json")
    header["files"]["super_adapter.json"] = file.stat().st_size
    Path(f"{target}/stage.json").write_text(json.dumps(header))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of good and bad artefacts, also the working directory. Read-only."""
    root = tmp_path_factory.mktemp("world")
    with chdir(root):
        write_model("base")
        write_model("other", 1, ffn=64)
        write_rows("train.json", 8)
        write_rows("val.json", 4)
        write_rows("no_output.json", 8, output=None)
        write_rows("number.json", 8, output=7)
        write_rows("no_answer.json", 4, answer=None)
        write_rows("answer9.json", 4, answer="answer9")
        write_rows("word.json", 4, source="gsm8k", answer="four")
        Path("broken.json").write_text("[{]")
        targets = f"{TARGETS} --max_seq_length 128 --target_config space.json"
        lonas(f"search-space --model_name_or_path base --lora_r 8 --ranks 8,4 --ffn_shares 1,0.5 {targets}")
        for name, wrong in (("nsga3.json", {"algorithm": "NSGA3"}), ("f1.json", {"eval_metric_name": "eval_f1"})):
            config = read_json("space.json")
            config["bootstrapNAS"]["search"] |= wrong
            Path(name).write_text(json.dumps(config))
        lonas(f"{TRAIN.replace('new', 'super')} {CONFIG}")
        lonas(f"{TRAIN.replace('new', 'plain')} --target_modules q_proj")
        lonas(f"{EXTRACT.replace('new', 'parts')} --subnet heuristic")
        held = TRAIN.replace("--validation_file val.json", "--val_set_size {}")
        lonas(f"{held.format(2).replace('new', 'held')} {CONFIG}")
        lonas(f"{held.format(0).replace('new', 'all')} {CONFIG}")
        write_altered("super", "orphan", base=str(root / "nowhere"))
        write_altered("plain", "integers", weight_format="int8")
        for name in ("copied", "cut", "pickle"):
            Path(name).mkdir()
            shutil.copy("super/adapter_config.json", name)
        shutil.copy("super/adapter_model.safetensors", "copied")
        whole = Path("super/adapter_model.safetensors").read_bytes()
        Path("cut/adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
        Path("pickle/adapter_model.bin").write_bytes(b"garbage")
        yield root


MISTAKES: list[tuple[str, str]] = [
    # adapters
    (
        f"{TRAIN} --target_modules q_pro,v_proj",
        f"target module 'q_pro' is no linear layer of llama, which has {LINEARS}; did you mean 'q_proj'?",
    ),
    (
        f"{SPACE} --target_modules embed_tokens",
        f"target module 'embed_tokens' is no linear layer of llama, which has {LINEARS}",
    ),
    (f"{TRAIN} --target_modules q_proj --lora_r 0", "the rank of adapters must be at least 1, not 0"),
    (
        f"{TRAIN} --target_modules q_proj --lora_alpha 0",
        "the alpha of adapters must be above 0, not 0: else they add nothing",
    ),
    (
        f"{TRAIN} --target_modules q_proj --lora_dropout 1.5",
        "the dropout of adapters must be at least 0 and below 1, not 1.5",
    ),
    (
        f"{TRAIN.replace('--lora_r 8', '--lora_r 4')} {CONFIG}",
        f"space.json: {WIDTHS}[2]: width 8 of self_attn.q_proj.rank[0] must be from 1 to 4, the rank of the adapters",
    ),
    (
        f"{TRAIN} {CONFIG.replace('space.json', 'nsga3.json')}",
        "nsga3.json: bootstrapNAS.search: there is no algorithm 'NSGA3'; did you mean 'NSGA2'?; known are NSGA2, "
        "RNSGA2, random",
    ),
    (
        f"{TRAIN} {CONFIG.replace('space.json', 'f1.json')}",
        "f1.json: bootstrapNAS.search.eval_metric_name: task commonsense has no metric 'eval_f1'; it has: accuracy, "
        "accuracy_norm, average",
    ),
    # adapters to go on from
    (
        f"{TRAIN.replace('--lora_r 8', '--lora_r 4')} --adapter_dir plain",
        "--lora_r 4: the adapters in plain have 8",
    ),
    (f"{TRAIN} --adapter_dir plain {TARGETS}", f"{TARGETS}: the adapters in plain have q_proj"),
    (
        f"{TRAIN} --adapter_dir plain --base_weight_format int8",
        "--base_weight_format int8: the adapters in plain were trained on a base in floating point",
    ),
    (
        f"{TRAIN.replace('base ', 'other ')} --adapter_dir plain",
        "other is not the base model that the adapter in plain was trained on: it has changed",
    ),
    (
        f"{TRAIN} --adapter_dir copied",
        "copied is not the output of the stage train: it has no stage.json; lonas import-adapter takes over an adapter",
    ),
    (f"{SPACE} --importance gate", "--importance needs --adapter_dir, of which model it tells the importance of units"),
    (
        f"{SPACE} --adapter_dir plain",
        "--lora_r says nothing with --adapter_dir: the adapters and the importance of units decide",
    ),
    (
        f"{SPACE.replace('--lora_r 8', '')} --adapter_dir plain --importance gat",
        "unknown importance criterion 'gat' (…); did you mean 'gate'?",
    ),
    (
        f"{SPACE.replace('--lora_r 8', '')} --adapter_dir integers",
        "--adapter_dir integers: widths of a base in int8 stay whole",
    ),
    (f"{SPACE.replace('--lora_r 8', '')} --adapter_dir plain --macs_ratios 2", "--macs_ratios must lie above 0 and …"),
    (f"{SPACE} --ranks 16,8", "--ranks must be whole numbers from 1 to --lora_r 8, not 16,8"),
    (f"{SPACE} --ranks 8,0", "--ranks must be whole numbers from 1 to --lora_r 8, not 8,0"),
    (f"{SPACE} --ffn_shares 2", "--ffn_shares must lie above 0 and at most 1, not 2"),
    (
        f"{TRAIN} {CONFIG} --base_weight_format int4",
        "space.json: a group varies ffn[0] (48, 24), but widths of a base in int4 stay as they are: leave the group "
        "out, or --base_weight_format",
    ),
    (
        f"{IMPORT} super --nncf_config space.json --model_name_or_path other",
        "other is not the base model that the adapter in super was trained on: it has changed",
    ),
    (
        f"{IMPORT} copied --nncf_config space.json --model_name_or_path other",
        "the adapter in copied is of another base: model.layers.0.mlp.up_proj.lora_B.default.weight has shape (48, 8), "
        "the model (64, 8)",
    ),
    (f"{IMPORT} base", "base holds no adapter: it has no adapter_config.json"),
    (f"{IMPORT} cut", "cut/adapter_model.safetensors is corrupt: …"),
    (
        f"{IMPORT.replace('new', 'super')} super --model_name_or_path base --overwrite_output_dir",
        "output_dir super holds the stage's own input super (adapter); choose another",
    ),
    (f"{IMPORT} pickle", "pickle/adapter_model.bin is neither safetensors nor a file of tensors by torch.save: …"),
    (
        "eval --supernet_dir orphan",
        "the base model of the adapter in orphan is gone: there is no {root}/nowhere; --model_name_or_path tells where "
        "it is now",
    ),
    (
        "extract --supernet_dir orphan --output_dir new --subnet max",
        "the base model of the adapter in orphan is gone: there is no {root}/nowhere; --model_name_or_path tells where "
        "it is now",
    ),
    # rows
    (
        f"{TRAIN.replace('train.json', 'no_output.json')} {CONFIG}",
        "{root}/no_output.json has no column 'output' (row 2); found: instruction, input, answer, source",
    ),
    (
        f"{TRAIN.replace('train.json', 'number.json')} {CONFIG}",
        "{root}/number.json: row 2 has no text in column 'output', but 7",
    ),
    (
        f"{TRAIN.replace('train.json', 'broken.json')} {CONFIG}",
        "{root}/broken.json, line 1: not JSON (Expecting property name enclosed in double quotes)",
    ),
    (
        f"{TRAIN.replace('val.json', 'no_answer.json')} {CONFIG}",
        "{root}/no_answer.json has no column 'answer' (row 2); found: instruction, input, output, source",
    ),
    (
        f"{TRAIN.replace('val.json', 'answer9.json')} {CONFIG}",
        "{root}/answer9.json: row 2 has the answer 'answer9', which is none of the data set openbookqa",
    ),
    (
        f"{TRAIN.replace('val.json', 'word.json')} {CONFIG}",
        "{root}/word.json: row 2 has the answer 'four', which is none of the data set gsm8k",
    ),
    # rows to validate on
    (
        TRAIN.replace("--max_seq_length 128 --evaluate_by score", "--max_seq_length 4 --evaluate_by loss"),
        "task commonsense: 4 of 4 rows have a prompt of 4 tokens or more; raise --max_seq_length",
    ),
    (
        "search --supernet_dir held --val_set_size 3 --output_dir new",
        "--val_set_size 3 would be other rows than those held out of the training of held (--val_set_size 2), which "
        "has learnt some of them; --max_eval_samples takes fewer of the same",
    ),
    (
        "eval --supernet_dir held --task_name commonsense --train_file train.json --max_seq_length 128",
        "a tenth of the rows would be other rows than those held out of the training of held (--val_set_size 2), which "
        "has learnt some of them; --max_eval_samples takes fewer of the same",
    ),
    ("eval --supernet_dir super --val_set_size 2", "--val_set_size 2: there are rows to validate on already (…"),
    ("eval --supernet_dir super --val_set_size -1", "val_set_size must be at least 0, not -1"),
    (
        "search --supernet_dir all --output_dir new",
        "task commonsense has no rows to validate on: --val_set_size 0 held none out; pass --validation_file",
    ),
    (
        f"{TRAIN.replace('--validation_file val.json', '--val_set_size 0')} {CONFIG} --eval_strategy epoch",
        "task commonsense has no rows to validate on: --val_set_size 0 held none out; pass --validation_file",
    ),
    # measures
    (
        f"{EVAL} --num_beams 4",
        "--num_beams is for --evaluate_by generate: task commonsense is measured by score here, for which nothing is "
        "written",
    ),
    (
        "search --supernet_dir super --output_dir new --evaluate_by loss --max_new_tokens 8",
        "--max_new_tokens is for --evaluate_by generate: task commonsense is measured by loss here, for which nothing "
        "is written",
    ),
    # subnets and what is made of them
    (f"{EVAL} --split tset", "--split must be one of validation, validation_mismatched, test, train, not 'tset'"),
    (f"{EVAL} --subnet 9", "choosing from a search needs --search_dir"),
    (
        "eval --supernet_dir copied",
        "copied is not the output of the stage train: it has no stage.json; lonas import-adapter takes over an adapter",
    ),
    (
        "eval --supernet_dir plain --subnet min",
        "--subnet min: plain is an ordinary LoRA, which has no subnets",
    ),
    (
        "extract --supernet_dir plain --output_dir new",
        "plain is an ordinary LoRA, which has no subnets to extract: it is an adapter of its base as it is; --merge "
        "True adds it to the base's weights",
    ),
    (
        "extract --supernet_dir plain --output_dir new --merge True --max_macs_ratio 0.5",
        "--max_macs_ratio 0.5: plain is an ordinary LoRA, which has no subnets",
    ),
    (
        "extract --supernet_dir plain --output_dir new --merge True --search_dir search",
        "--search_dir search: plain is an ordinary LoRA, which has no subnets",
    ),
    (f"{EXTRACT} --subnet min --merged_dtype float16", "--merged_dtype is for --merge True"),
    (
        f"{EXTRACT} --subnet min --merge True --merged_dtype bflaot16",
        "unknown --merged_dtype 'bflaot16' (known: bfloat16, float16, float32); did you mean 'bfloat16'?",
    ),
    (
        "search --supernet_dir plain --output_dir new",
        "plain holds an ordinary LoRA without a search space: it was trained without --nncf_config",
    ),
    (
        "eval --supernet_dir orphan --model_name_or_path other",
        "other is not the base model that the adapter in orphan was trained on: it has changed",
    ),
    (
        f"{EXTRACT} --subnet mni",
        "--subnet 'mni' is neither best, max, min, heuristic, frequent, lowest_loss, nor an index, nor a file; did you "
        "mean 'min'?",
    ),
    (
        "export --model_dir parts --output_dir new",
        "parts is no model directory: it holds a base (base/) beside its adapter (adapter/); lonas extract --merge "
        "True makes one model of both",
    ),
    (
        "export --model_dir parts/adapter --output_dir new",
        "parts/adapter is no model directory: it holds an adapter, to be merged into its base first",
    ),
    (
        "evaluate --model_dir super",
        "super is no model directory: it holds an adapter, to be merged into its base first",
    ),
]


def test_an_encoder_writes_no_answers(world: Path, tiny_bert_dir: Path) -> None:
    refused(
        f"{TRAIN.replace('path base', f'path {tiny_bert_dir}')} --target_modules query",
        f"{tiny_bert_dir} is no model for the task commonsense, which needs AutoModelForCausalLM: of its model "
        "type, bert, there are BertForMaskedLM, BertForMultipleChoice, BertForQuestionAnswering, "
        "BertForSequenceClassification, BertForTokenClassification, BertModel",
        world,
        "lonas",
    )


def test_a_latency_table_needs_a_search_space(world: Path) -> None:
    refused(
        "latency-table --supernet_dir plain --output_file new",
        "plain holds an ordinary LoRA without a search space: it was trained without --nncf_config",
        world,
        "bootstrapnas",
    )


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line_and_nothing_is_lost(world: Path, command: str, message: str) -> None:
    refused(command, message.replace("{root}", str(world)), world, "lonas")


def test_a_base_may_have_moved(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macs_as_ms: object
) -> None:
    monkeypatch.setattr(finalists, "MAX_SECONDS", 1.0)
    found = [
        lonas(f"eval --supernet_dir {name}")
        for name in ("super", f"orphan --model_name_or_path {Path('base').absolute()}")
    ]
    assert found[0] == found[1]
    moved = "--supernet_dir orphan --model_name_or_path base"
    flags = "--num_evals 3 --population 2 --measure_finalists 1 --latency_length 16"
    lonas(f"search {moved} {flags} --output_dir {tmp_path}/search")
    measured = f"latency-table {moved} --length 16 --output_file {tmp_path}/table.json"
    assert call(shlex.split(measured), "bootstrapnas").status == 0
    assert read_json(tmp_path / "table.json")["states"]
    for merge in (False, True):
        flags = f"--subnet heuristic --merge {merge} --output_dir {tmp_path}"
        lonas(f"extract {moved} {flags}/{merge}")
        lonas(f"extract --supernet_dir super {flags}/{merge}_there")
        name = "model.safetensors" if merge else "base/model.safetensors"
        assert (tmp_path / str(merge) / name).read_bytes() == (tmp_path / f"{merge}_there" / name).read_bytes()


# -- what looks like a mistake and is none -----------------------------------------------------------------------------


def test_what_was_trained_on_all_rows_is_measured_on_others(world: Path, tmp_path: Path) -> None:
    assert read_json("all/eval_results.json") == {}
    own = json.loads(lonas("eval --supernet_dir all --validation_file val.json"))
    assert own.keys() >= {"accuracy", "accuracy_norm"}
    assert "accuracy" in json.loads(lonas("eval --supernet_dir held --validation_file val.json"))
    assert lonas("eval --supernet_dir held --val_set_size 2") == lonas("eval --supernet_dir held")
    lonas(f"extract --supernet_dir all --subnet max --merge True --output_dir {tmp_path}/merged")
    lonas(f"export --model_dir {tmp_path}/merged --no_metric --output_dir {tmp_path}/ir")


def test_a_base_may_be_exported_without_its_adapter(world: Path, tmp_path: Path) -> None:
    """Programs that apply adapters themselves want that; whoever does not is told."""
    outcome = call(shlex.split(f"export --model_dir parts/base --output_dir {tmp_path} --no_metric"), "lonas")
    assert outcome.status == 0, outcome.err
    told = (
        f"warning: parts/base is a base without its adapter, which is in {world}/parts/adapter: lonas extract --merge"
    )
    assert told in " ".join(outcome.err.split())
    assert adapter_beside("base") is None  # that of super, but it lies there by itself


@pytest.mark.parametrize("missing", [("pad_token",), ("pad_token", "eos_token")], ids=" and ".join)
def test_a_tokenizer_may_lack_special_tokens(world: Path, tmp_path: Path, missing: tuple[str, ...]) -> None:
    base = tmp_path / "base"
    shutil.copytree("base", base)
    tokenizer = build_tokenizer()
    for name in missing:
        setattr(tokenizer, name, None)
    tokenizer.save_pretrained(base)
    writing = f"{TRAIN.replace('path base', f'path {base}').replace('new', str(tmp_path / 'super'))} {CONFIG}"
    lonas(f"{writing.replace('score', 'generate')} --max_new_tokens 2")
    found = {
        size: json.loads(lonas(f"eval --supernet_dir {tmp_path}/super --evaluate_by score --eval_batch_size {size}"))
        for size in (1, 4)
    }
    assert found[1] == found[4]  # padding changes nothing


def test_a_base_of_several_dtypes_is_what_it_would_be_in_one(world: Path, tmp_path: Path) -> None:
    shutil.copytree("base", tmp_path / "base")
    tensors = load_file("base/model.safetensors")
    rounded = {name: tensor.bfloat16() if "mlp" in name else tensor for name, tensor in tensors.items()}
    save_file(rounded, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    train = f"{TRAIN.replace('path base', f'path {tmp_path}/base')} {CONFIG}"
    lonas(train.replace("new", str(tmp_path / "mixed")))
    save_file(
        {name: tensor.float() for name, tensor in rounded.items()},
        tmp_path / "base" / "model.safetensors",
        metadata={"format": "pt"},
    )
    lonas(train.replace("new", str(tmp_path / "float")))
    found = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("mixed", "float")]
    assert all((tensor == found[1][name]).all() for name, tensor in found[0].items())


def test_a_step_may_draw_a_subnet_without_any_adapter(world: Path, tmp_path: Path) -> None:
    """The smallest one skips all layers, and nothing else of a language model is trained."""
    lonas(
        f"search-space --model_name_or_path base --lora_r 8 {TARGETS} --depth layers --max_seq_length 128 "
        f"--target_config {tmp_path}/space.json"
    )
    train = f"{TRAIN} --nncf_config {tmp_path}/space.json {TARGETS} --sampling sandwich --save_strategy no"
    lonas(train.replace("new", f"{tmp_path}/super"))
    learnt = load_file(tmp_path / "super" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in learnt.items() if "lora_B" in name)
    assert read_json(tmp_path / "super" / "eval_results.json").keys() == {"accuracy_max", "accuracy_min"}


def test_rows_are_tokenised_once_for_order_and_training(world: Path, tmp_path: Path) -> None:
    """What is wrong with them is told once."""
    train = f"{TRAIN} {CONFIG} --reorder wanda --save_strategy no".replace("new", f"{tmp_path}/super")
    outcome = call(shlex.split(train.replace("--max_seq_length 128", "--max_seq_length 80")), "lonas")
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("the responses of 8 of 8 rows are cut") == 1


def test_an_interrupted_merge_is_no_model_and_is_resumed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = f"{EXTRACT} --subnet heuristic --merge True"
    lonas(merge.replace("new", "whole"))

    def save_half(directory: Path, model: Any, *_: Any) -> None:
        model.save_pretrained(directory)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lonas_extract, "save_artefact", save_half)
        assert call(shlex.split(merge), "lonas").status == 130
    for command in ("evaluate --model_dir new", "export --model_dir new --output_dir ir"):
        outcome = call(shlex.split(command), "lonas")
        assert (outcome.status, outcome.err.splitlines()[-1]) == (
            2,
            "lonas: error: new is unfinished: run its extract stage again, it resumes",
        )
    other = call(shlex.split(f"{EXTRACT} --subnet heuristic"), "lonas")
    assert "output_dir new holds another run (merge: True there, False here)" in other.err
    lonas(merge)
    assert Path("new/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    shutil.rmtree("new")
    shutil.rmtree("whole")
