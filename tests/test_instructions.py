"""Instructions: prompts, answers, texts that models write, choices that they score."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import eftnas
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bootstrapnas.artefacts import read_json
from bootstrapnas.dims import Key
from bootstrapnas.errors import UserError
from bootstrapnas.outputs import IGNORED
from bootstrapnas.pipeline import data as pipeline_data
from bootstrapnas.pipeline.data import Rows
from bootstrapnas.pipeline.export_data import task_data
from bootstrapnas.pipeline.models import evaluate_model, load_for_task, load_tokenizer, outputs_of, save_artefact
from bootstrapnas.supernet import Supernet
from bootstrapnas.tasks import TaskSpec, build_task_spec, load_task, predictions, tokenize, tokenize_to_measure
from bootstrapnas.tasks.answers import RULES, Choice, Number, rule_of
from bootstrapnas.tasks.arithmetic import word_problems
from bootstrapnas.tasks.files import row_names
from bootstrapnas.tasks.generation import TEXT, text_of
from bootstrapnas.tasks.prompts import PROMPTS


@pytest.mark.parametrize(
    ("source", "text", "answer"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "The correct answer is False.", "false"),
        ("boolq", "It is untrue that this holds; false", "false"),
        ("boolq", "true or false? The correct answer is false", "false"),
        ("boolq", "yes", None),
        ("piqa", "solution2 is right", "solution2"),
        ("piqa", "Solution 1", "solution1"),
        ("piqa", "solution12", None),
        ("social_i_qa", "the correct answer is answer3</s>", "answer3"),
        ("social_i_qa", "Of answer1 and answer2, the correct answer is answer2", "answer2"),
        ("ARC-Easy", "answer5", "answer5"),
        ("openbookqa", "the correct answer is ending1", None),
        ("hellaswag", "the correct answer is ending4 because", "ending4"),
        ("winogrande", "The correct answer is option1, not option2", "option1"),
        ("AQuA", "A train leaves at noon. The answer is (D).", "D"),
        ("AQuA", "A man buys B shares. So (C) 12 is right", "C"),
        ("AQuA", "The answer is B", "B"),
        ("AQuA", "the answer is option E) 15", "E"),
        ("AQuA", "The answer is A train.", None),
        ("AQuA", "The answer is B because 3 is odd", "B"),
        ("AQuA", "The answer is D which equals 12", "D"),
        ("AQuA", "The answer is A because 3 is odd", "A"),
        ("AQuA", "Answer: A as A man said", "A"),
        ("AQuA", "The answer is a bit long: (E)", "E"),
        ("AQuA", "So C is right", "C"),
        ("AQuA", "A is older than B by 3 years", None),
        ("AQuA", "B gets 40 and A man gets 2", None),
        ("AQuA", "C", "C"),
        ("AQuA", "Answer: A", "A"),
        ("AQuA", "I'd say 42", None),
        ("AQuA", "", None),
        ("gsm8k", "The answer is 72.", "72"),
        ("gsm8k", "He has 1,234,567.5 coins", "1234567.5"),
        ("gsm8k", "The numbers are 1,2,3", "3"),
        ("gsm8k", "So it costs $18 in all. The answer is $18", "18"),
        ("gsm8k", "-5 degrees", "-5"),
        ("gsm8k", "It fell to -$3.50", "-3.5"),
        ("gsm8k", "10-4", "4"),
        ("gsm8k", "10 - 4 = 6", "6"),
        ("gsm8k", "\u22127", "-7"),
        ("gsm8k", "The answer is 3/4 of a cake", "0.75"),
        ("gsm8k", "The answer is 2 1/2 cups", "2.5"),
        ("gsm8k", "So it takes $-1 3/4.", "-1.75"),
        ("gsm8k", "From 12 24/2", "12"),
        ("gsm8k", "Divide by 2: 1.5 1/2", "0.5"),
        ("gsm8k", "The answer is 3 1/0", "3"),
        ("gsm8k", "The answer is 48. In May she sold 24.", "48"),
        ("gsm8k", "The answer is 220 + 90 + 60 = 370. He is 9.", "370"),
        ("gsm8k", "The answer is:\n12", "12"),
        ("gsm8k", "First 12, then 24 apples", "24"),
        ("gsm8k", "half is .5", "0.5"),
        ("gsm8k", "50% of it", "50"),
        ("gsm8k", "#### 1,000", "1000"),
        ("gsm8k", "They drive 60km/h", "60"),
        ("gsm8k", "1e3", "1000"),
        ("gsm8k", "version x2", None),
        ("gsm8k", "none", None),
        ("mawps", "The answer is 1.8333333333333335.", "1.8333333333333335"),
    ],
)
def test_answers_in_texts(source: str, text: str, answer: str | None) -> None:
    """Words, letters and numbers are found where a reader finds them."""
    assert RULES[source].find(text) == answer


def test_rules_of_rows() -> None:
    """A known data set has its rule, a row of another the one that its answer fits; what does not fit is found out."""
    assert rule_of("gsm8k", "1,024.0") == Number()
    assert rule_of("gsm8k", "many") is None
    assert rule_of("boolq", "") is None
    assert rule_of("", "") is None
    found = {
        answer: rule_of("", answer) for answer in ("true", "solution1", "answer4", "ending2", "option2", "B", "-3")
    }
    expected = ("boolq", "piqa", "openbookqa", "hellaswag", "winogrande", "AQuA", "SVAMP")
    assert list(found.values()) == [RULES[name] for name in expected]
    words = rule_of("", "Paris")
    assert words is not None
    assert words.same(words.find(" Paris \n") or "", "paris")
    assert Number().same("72.0", "72")
    assert not Number().same("72.01", "72")
    assert rule_of("", "2 1/2") == Number()
    assert Number().same("2 1/2", "2.5")
    assert Choice(("answer1", "answer2", "answer3")).choices("…?\n\nAnswer format: answer1/answer2") == (
        "answer1",
        "answer2",
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 2)), st.booleans())
def test_numbers_survive_being_written(value: float, dollars: bool) -> None:
    """Whatever way a number is written out, it is read back."""
    written = f"{value:,.2f}".replace("-", "-$" if dollars else "-", 1) if value < 0 else f"{'$' * dollars}{value:,.2f}"
    found = Number().find(f"We get 17 of them. The answer is {written}. That was question 3")
    assert found is not None
    assert float(found) == pytest.approx(value, abs=1e-9)


def test_prompts() -> None:
    """The default has no blanks but those of the words; LoNAS's has those that were published, to the letter."""
    style = PROMPTS["default"].style("commonsense", measuring=True)
    assert style == PROMPTS["default"].style("math", measuring=False)
    assert style.prompt("Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
        "### Response:\n"
    )
    assert PROMPTS["short"].training.prompt("Add.") == "### Instruction:\nAdd.\n\n### Response:\n"
    for task, measuring, indent, blanks, blanks_with_input in (
        ("commonsense", False, 20, 2, 1),
        ("math", False, 20, 2, 1),
        ("commonsense", True, 24, 1, 0),
        ("math", True, 28, 1, 0),
    ):
        style, pad = PROMPTS["lonas"].style(task, measuring=measuring), " " * indent
        assert style.prompt("Add.") == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"{' ' * blanks}\n\n{pad}### Instruction:\n{pad}Add.\n\n{pad}### Response:\n{pad}"
        )
        assert f"request.{' ' * blanks_with_input}\n\n" in style.prompt("Add.", "1")


@pytest.mark.parametrize(
    ("source", "text", "answer"),
    [
        ("gsm8k", "The answer is 4.\n\n### Instruction:\n2 + 5?\n\n### Response:\nThe answer is 7.", "4"),
        ("gsm8k", "It is 4.\n    ### Instruction:\n    2 + 5?", "4"),
        ("gsm8k", "### Response:\nThe answer is 7.", None),
        ("gsm8k", "2 + 2 = 4\n#### 4", "4"),
        ("boolq", "### the correct answer is true ### Response: false", "true"),
    ],
)
def test_what_follows_another_prompt_is_no_answer(source: str, text: str, answer: str | None) -> None:
    """A model that does not end goes on with an instruction of its own, and answers that as well."""
    spec = build_task_spec("math" if source == "gsm8k" else "commonsense", train_file="rows.json")
    rows = Dataset.from_list([{"source": source, "answer": "4" if source == "gsm8k" else "true"}])
    written = {TEXT: [np.frombuffer(text.encode(), dtype=np.uint8)]}
    (found,) = predictions(spec, written, rows, rows)
    assert (found["prediction"], found["text"]) == (answer, text)


def test_word_problems() -> None:
    """The working of every problem is right, its answer found; no story is told twice, but sums that validate recur."""
    rows = word_problems()
    assert {split: len(found) for split, found in rows.items()} == {"train": 4000, "validation": 400, "test": 400}
    assert rows == word_problems()
    assert rows != word_problems(seed=1)
    every = [row for found in rows.values() for row in found]
    assert len({row["instruction"] for row in every}) == len(every)
    for row in every:
        assert Number().find(row["output"]) == row["answer"]
        for sum_of in re.findall(r"([\d +*-]+) = (\d+)", row["output"]):
            assert eval(sum_of[0]) == int(sum_of[1])
    learnt = {row["output"] for row in rows["train"] if row["source"] != "two_steps"}
    for split in ("validation", "test"):
        single = [row["output"] for row in rows[split] if row["source"] != "two_steps"]
        assert sum(output in learnt for output in single) > 0.99 * len(single)
        assert {row["source"] for row in rows[split]} == {"add", "subtract", "multiply", "two_steps"}


# -- models ------------------------------------------------------------------------------------------------------------

CHOICES = ("answer1", "answer2", "answer3")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as of commonsense: 24 training rows and 9 test rows, and 4 of hellaswag in its own format."""
    directory = tmp_path_factory.mktemp("instructions")
    for split, count in (("train", 24), ("test", 9)):
        rows = [
            {
                "instruction": f"Please choose the correct answer to the question: what is {number}?\n\n"
                f"Answer1: a Answer2: b{' Answer3: c' * (number % 2)}\n\n"
                f"Answer format: {'/'.join(CHOICES[: 2 + number % 2])}",
                "input": "",
                "output": f"the correct answer is {CHOICES[number % 2]}",
                "answer": CHOICES[number % 2],
                "source": ("openbookqa", "ARC-Easy")[number % 3 == 0],
            }
            for number in range(count)
        ]
        (directory / f"{split}.json").write_text(json.dumps(rows))
    (directory / "hellaswag").mkdir()
    lines = [json.dumps({"ctx": f"He runs {n}", "endings": ["a", "b", "c", "d"], "label": n}) for n in range(4)]
    (directory / "hellaswag" / "validation.jsonl").write_text("\n".join(lines))
    return directory


@pytest.fixture(scope="session")
def adapted_dir(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """A tiny LLaMA trained on these rows from scratch by the command, measured by what it writes. Read-only."""
    from transformers import LlamaConfig

    directory = tmp_path_factory.mktemp("adapted")
    LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512,
    ).save_pretrained(directory / "config")  # fmt: skip
    outcome = eftnas(
        "finetune", task_name="commonsense", dataset_dir=files, model_name_or_path=directory / "config",
        from_scratch=True, output_dir=directory / "model", train_on_inputs=False, max_steps=90, learning_rate=0.01,
        per_device_train_batch_size=8, val_set_size=4, max_new_tokens=10,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    return directory / "model"


def load(directory: Path, **changes: Any) -> tuple[TaskSpec, PreTrainedModel, PreTrainedTokenizerBase]:
    """Return task, model and tokenizer of a directory, with changes to how instructions are treated."""
    spec = TaskSpec.load(directory / "task.json")
    assert spec.instructions is not None
    spec = replace(spec, instructions=replace(spec.instructions, **changes), metric="")
    return spec, load_for_task(str(directory), spec), load_tokenizer(str(directory))


def test_rows_of_a_group_of_data_sets(files: Path) -> None:
    """Rows are held out; a data set in a directory of its own joins the test, in words; the accuracy is by data set."""
    data = load_task(build_task_spec("commonsense", dataset_dir=files, val_set_size=5))
    assert (len(data.train), len(data.validation)) == (19, 5)
    assert not set(data.train["instruction"]) & set(data.validation["instruction"])
    assert data.test is not None
    assert data.test["source"][-5:] == ["openbookqa", *["hellaswag"] * 4]
    assert data.test["answer"][-1] == "ending4"
    places = [f"8 of {files / 'test.json'}", f"0 of {files / 'hellaswag' / 'validation.jsonl'}"]
    assert row_names(data.test)[8:10] == places
    assert data.test["instruction"][-1] == (
        "Please choose the correct ending to complete the given sentence: He runs 3\n\nEnding1: a Ending2: b "
        "Ending3: c Ending4: d\n\nAnswer format: ending1/ending2/ending3/ending4"
    )
    spec = build_task_spec("commonsense", train_file=files / "train.json", dataset_dir=files)
    tested = load_task(spec).test
    assert tested is not None
    assert tested.to_dict() == data.test.to_dict(), "as LLM-Adapters has them: one file to train on, others to test"


def test_a_file_in_its_own_format_calibrates(files: Path, adapted_dir: Path) -> None:
    spec, model, tokenizer = load(adapted_dir)
    file = files / "hellaswag" / "validation.jsonl"
    data = task_data(spec, model, tokenizer, calibration_rows=2, calibration_file=str(file), measured=False)
    texts = [tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) for batch in data.calibration]
    assert len(texts) == 2
    assert all("Please choose the correct ending to complete the given sentence: He runs" in text for text in texts)


def test_what_is_learnt(adapted_dir: Path) -> None:
    """Prompt tokens are those of measuring; of the labels the response alone counts; the end is learnt unless cut."""
    spec, _, tokenizer = load(adapted_dir)
    rows = Rows(spec, tokenizer)
    train, probes = tokenize(rows.rows("validation"), tokenizer, spec), rows.features("validation")
    for learnt, probe, row in zip(train, probes, rows.rows("validation"), strict=True):
        prompt = len(probe["input_ids"])
        assert learnt["input_ids"][:prompt] == probe["input_ids"]
        assert learnt["labels"] == [*[IGNORED] * prompt, *learnt["input_ids"][prompt:]]
        assert tokenizer.decode(learnt["input_ids"][prompt:]) == row["output"] + tokenizer.eos_token
        assert tokenizer.decode(probe["input_ids"][1:]) == PROMPTS["default"].training.prompt(row["instruction"])
    assert spec.instructions is not None
    whole = replace(spec, instructions=replace(spec.instructions, train_on_inputs=True))
    assert tokenize(rows.rows("validation"), tokenizer, whole)["labels"][:] == train["input_ids"][:]
    cut = replace(spec, max_seq_length=max(probes["length"]) + 2)
    assert max(tokenize(rows.rows("validation"), tokenizer, cut)["length"]) == cut.max_seq_length
    with pytest.raises(UserError, match="4 of 4 rows have a prompt of 20 tokens or more; raise --max_seq_length"):
        tokenize(rows.rows("validation"), tokenizer, replace(spec, max_seq_length=20))


def test_predictions_are_of_the_rows_whose_prompts_fit(adapted_dir: Path) -> None:
    """Measured by the loss of the responses: the others have nothing to foretell."""
    spec, _, tokenizer = load(adapted_dir)
    assert spec.instructions is not None
    data = load_task(spec).train
    lengths = tokenize_to_measure(data, tokenizer, spec)["length"]
    loss = replace(
        spec, max_seq_length=max(lengths), instructions=replace(spec.instructions, evaluate_by="loss"), metric=""
    )
    features = tokenize_to_measure(data, tokenizer, loss)
    ones = [np.ones(length) for length in features["length"]]
    said = predictions(loss, {"loss": ones, "hit": ones}, data, features)
    fit = [name for name, length in zip(row_names(data), lengths, strict=True) if length < loss.max_seq_length]
    assert [entry["index"] for entry in said] == fit
    assert 0 < len(fit) < len(data)


def test_scoring_names_rows_as_their_file_does(adapted_dir: Path, tmp_path: Path) -> None:
    """Also where only some rows of it were taken."""
    rows = [
        {"instruction": "i", "input": "", "output": "o", "answer": str(number), "source": "gsm8k"}
        for number in range(40)
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    spec = build_task_spec(
        "math", dataset_dir=tmp_path, val_set_size=20, max_validation_samples=1, instructions={"evaluate_by": "score"}
    )
    with pytest.raises(UserError, match=r"task math: row ([1-9]\d*) asks for .\1., which is no choice"):
        Rows(spec, load_tokenizer(str(adapted_dir))).features("validation")


@pytest.mark.parametrize("num_beams", [1, 3])
def test_batches_write_what_single_prompts_write(adapted_dir: Path, num_beams: int) -> None:
    """Left padding, the cache and the order by length change nothing, neither does a second time."""
    spec, model, tokenizer = load(adapted_dir, num_beams=num_beams)
    rows = Rows(spec, tokenizer, batch_size=5)
    outputs = outputs_of(model, rows, rows.batches("test"))
    said = [text_of(array) for array in outputs["text"]]
    model.train()
    again = outputs_of(model, rows, Rows(spec, tokenizer, batch_size=2).batches("test"))
    assert model.training
    assert said == [text_of(array) for array in again["text"]]
    if num_beams > 1:
        return
    model.eval()
    ids = rows.features("test")["input_ids"][0]
    prompt = len(ids)
    while len(ids) < prompt + 10 and ids[-1] != tokenizer.eos_token_id:
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    assert said[0] == tokenizer.decode(ids[prompt:], skip_special_tokens=True)


def test_scores_are_log_likelihoods(adapted_dir: Path) -> None:
    """Of each choice the sum over its own tokens after the prompt, whatever choices share a forward pass."""
    spec, model, tokenizer = load(adapted_dir, evaluate_by="score")
    rows = Rows(spec, tokenizer, batch_size=4)
    features = rows.features("test")
    assert len(features) < sum(len(choices) for choices in features["choices"]), "choices share features"
    found = evaluate_model(model, rows, "test")
    right, by_length = [], []
    for row in rows.rows("test"):
        rule = rule_of(row["source"], row["answer"])
        assert rule is not None
        prompt = tokenizer(PROMPTS["default"].training.prompt(row["instruction"]))["input_ids"]
        losses = []
        said = [
            tokenizer(f"the correct answer is {name}", add_special_tokens=False)["input_ids"]
            for name in rule.choices(row["instruction"])
        ]
        for tokens in said:
            ids = torch.tensor([[*prompt, *tokens]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
            each = -logits.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            shared = next(n for n in range(len(tokens)) if len({tuple(other[: n + 1]) for other in said}) > 1)
            losses.append(float(each[shared:].sum()))
        names = rule.choices(row["instruction"])
        right.append(names[int(np.argmin(losses))] == row["answer"])
        by_length.append(
            names[int(np.argmin([x / len(n) for x, n in zip(losses, names, strict=True)]))] == row["answer"]
        )
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["accuracy_norm"] == pytest.approx(np.mean(by_length))
    sets = ("ARC-Easy", "openbookqa", "hellaswag")
    assert found["average"] == pytest.approx(np.mean([found[f"accuracy_{name}"] for name in sets]))


@pytest.mark.parametrize("way", ["score", "loss"])
def test_of_prompts_no_outputs_are_computed_that_batches_must_make_room_for(
    adapted_dir: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    spec, model, tokenizer = load(adapted_dir, evaluate_by=way)
    expected = evaluate_model(model, Rows(spec, tokenizer), "test")
    monkeypatch.setattr(pipeline_data, "_MOST_LOGITS", 400 * len(tokenizer))
    rows = Rows(spec, tokenizer)
    whole, tail = ([batch["input_ids"] for batch in rows.batches("test", tail=tail)] for tail in (False, True))
    assert len(tail) < len(whole)
    assert max(ids.numel() for ids in whole) <= 400 < max(ids.numel() for ids in tail)
    assert evaluate_model(model, rows, "test") == pytest.approx(expected, rel=1e-5)


def test_an_active_subnet_answers_as_the_extracted_one(adapted_dir: Path) -> None:
    """Written with half-blocks left out and fewer heads, text by text, and scored."""
    subnet = {Key("mha_block", 0): 0, Key("kv", 1): 1, Key("ffn", 0): 16}
    for way in ("generate", "score"):
        spec, model, tokenizer = load(adapted_dir, evaluate_by=way)
        rows = Rows(spec, tokenizer, batch_size=4)
        supernet = Supernet(model)
        with supernet.activate(subnet):
            active = outputs_of(model, rows, rows.batches("test"))
        extracted = outputs_of(supernet.extract(subnet), rows, rows.batches("test"))
        assert active.keys() == extracted.keys()
        for name, arrays in active.items():
            for first, second in zip(arrays, extracted[name], strict=True):
                np.testing.assert_allclose(first, second, atol=1e-4)


def test_the_command_measures_each_way(adapted_dir: Path, tmp_path: Path) -> None:
    """By what is written, by choices and by the loss of the responses; each with its metrics."""
    written = json.loads((adapted_dir / "eval_results.json").read_text())
    assert list(written)[:2] == ["accuracy", "average"]
    path = tmp_path / "said.jsonl"
    printed = json.loads(eftnas("evaluate", model_dir=adapted_dir, split="test", predict=path).out)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert printed["accuracy"] == pytest.approx(np.mean([entry["right"] for entry in entries]), abs=1e-6)
    assert all(RULES[entry["source"]].find(entry["text"]) == entry["prediction"] for entry in entries)
    assert printed["accuracy"] > 0, "it learnt to answer"
    scored = json.loads(eftnas("evaluate", model_dir=adapted_dir, split="test", evaluate_by="score").out)
    assert list(scored)[:3] == ["accuracy", "average", "accuracy_norm"]
    few = {"split": "test", "evaluate_by": "score", "max_eval_samples": 4, "predict": path}
    eftnas("evaluate", model_dir=adapted_dir, **few)
    fewer = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(fewer) == 4 < len(entries)
    answers = {entry["index"]: (entry["source"], entry["answer"]) for entry in entries}
    assert len(answers) == len(entries)
    assert all(answers[entry["index"]] == (entry["source"], entry["answer"]) for entry in fewer)
    loss = json.loads(eftnas("evaluate", model_dir=adapted_dir, evaluate_by="loss").out)
    assert list(loss) == ["perplexity", "loss", "token_accuracy"]


def test_an_ir_answers_as_torch_does(adapted_dir: Path, tmp_path: Path) -> None:
    """Of fewer and uneven kv heads; by what it writes, by choices and by the loss; `export` records each."""
    spec, model, tokenizer = load(adapted_dir, num_beams=4)
    half, torch_said, ir_said = tmp_path / "half", tmp_path / "torch.jsonl", tmp_path / "ir.jsonl"
    save_artefact(half, Supernet(model).extract({Key("kv", 1): 2, Key("ffn", 0): 16}), tokenizer, spec)
    for way, metric in (("generate", "accuracy"), ("score", "accuracy"), ("loss", "perplexity")):
        flags = {"evaluate_by": way, "max_eval_samples": 3}
        outcome = eftnas("export", model_dir=half, output_dir=tmp_path / way, **flags)
        assert outcome.status == 0, outcome.err
        assert f"export: measuring {metric} of the torch model on 3 rows" in " ".join(outcome.err.split())
        exported = read_json(tmp_path / way / "export.json")["metric"]
        assert (exported["name"], exported["rows"]) == (metric, 3)
        assert exported["ir"] == pytest.approx(exported["torch"], rel=1e-4)
        by_ir = eftnas("evaluate", ir_dir=tmp_path / way, split="test", predict=ir_said)
        greedily = {"num_beams": 1} if way == "generate" else {}
        by_torch = eftnas("evaluate", model_dir=half, split="test", evaluate_by=way, predict=torch_said, **greedily)
        assert json.loads(by_ir.out) == pytest.approx(json.loads(by_torch.out), rel=1e-4)
        assert ("an IR writes greedily" in by_ir.err) == (way == "generate")
        if way != "loss":
            assert ir_said.read_text() == torch_said.read_text()
        if way == "generate":
            assert json.loads(by_ir.out)["accuracy"] > 0
            assert all(json.loads(line)["text"] for line in ir_said.read_text().splitlines())
    outcome = eftnas("evaluate", ir_dir=tmp_path / "generate", num_beams=2)
    assert (outcome.status, "an IR writes greedily: --num_beams must be 1, not 2" in outcome.err) == (2, True)


def test_what_integers_cost_in_answers_is_recorded(adapted_dir: Path, tmp_path: Path) -> None:
    flags = {"weight_format": "int4", "group_size": 16, "all_layers": True}
    outcome = eftnas("export", model_dir=adapted_dir, output_dir=tmp_path / "ir", **flags)
    assert outcome.status == 0, outcome.err
    found = read_json(tmp_path / "ir" / "export.json")
    assert found["metric"]["name"] == "accuracy"
    printed = json.loads(eftnas("evaluate", ir_dir=tmp_path / "ir", split="validation").out)
    assert printed["accuracy"] == pytest.approx(found["metric"]["ir"], abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "row", "message"),
    [
        ({}, {"answer": "answer9"}, "row 0 has the answer 'answer9', which is none of the data set openbookqa"),
        ({}, {"answer": ""}, "row 0 has the answer '', which says nothing; --evaluate_by loss needs none"),
        ({}, {"output": None}, "row 0 has no text in column 'output'"),
        ({"evaluate_by": "score"}, {"source": "gsm8k", "answer": "4"}, "row 0 asks for '4', which is no choice"),
        ({"evaluate_by": "scores"}, {}, "unknown --evaluate_by 'scores'; did you mean 'score'?"),
        ({"prompt_style": "alpaca"}, {}, "unknown --prompt_style 'alpaca'; known: default, lonas, short"),
        ({"num_beams": 0}, {}, "num_beams must be positive"),
        ({"doc_stride": 4}, {}, "--doc_stride is for question answering, which task commonsense is not"),
        ({"metric": "perplexity"}, {}, "has no metric 'perplexity'; it has: accuracy, average"),
        ({"val_set_size": 2, "validation_file": "{file}"}, {}, "there are rows to validate on already"),
        ({"task_name": "builtin-text"}, {}, "--train_file is for the task files"),
    ],
)
def test_mistakes(flags: dict[str, Any], row: dict[str, Any], message: str, tmp_path: Path, adapted_dir: Path) -> None:
    """Each is told in a line that names the row."""
    base = {"instruction": "Choose.", "output": "answer1", "answer": "answer1", "source": "openbookqa"}
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**base, **row}) + "\n")
    source: dict[str, Any] = {"task_name": "commonsense", "train_file": tmp_path / "train.jsonl"}
    source |= {"validation_file": tmp_path / "validation.jsonl", "model_name_or_path": adapted_dir}
    filled = {name: value.format(file=tmp_path / "validation.jsonl") if isinstance(value, str) else value
              for name, value in flags.items()}  # fmt: skip
    outcome = eftnas("finetune", **{**source, **filled}, output_dir=tmp_path / "out", max_steps=1)
    assert outcome.status == 2
    assert message in " ".join(outcome.err.split()), outcome.err
