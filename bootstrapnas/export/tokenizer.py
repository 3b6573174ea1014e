"""A tokenizer as an OpenVINO IR, so that text can go in without Python. openvino_tokenizers is optional."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.artefacts import writing
from bootstrapnas.export.runtime import last_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "openvino_tokenizer.xml"
DETOKENIZER_FILE = "openvino_detokenizer.xml"
LONG = 4096  # words; tokenizers without a limit have an astronomical model_max_length


def save_tokenizer_ir(
    tokenizer: PreTrainedTokenizerBase, directory: Path, texts: Sequence[str], *, detokenizer: bool = False
) -> str | None:
    """Write ``openvino_tokenizer.xml`` if it tokenises `texts` as `tokenizer` does; return why not, or `None`.

    With `detokenizer` also ``openvino_detokenizer.xml``, if it turns the ids of `texts` back into the same texts as
    `tokenizer` does; either both are written or none is.

    Importing openvino_tokenizers makes every `openvino.Core` created later load its extension.
    """
    import openvino as ov

    try:
        library = importlib.import_module("openvino_tokenizers")
    except ImportError as error:
        return f"openvino_tokenizers cannot be imported ({error}); pip install 'bootstrapnas[tokenizers]'"
    kind = type(tokenizer).__name__
    try:
        converted = library.convert_tokenizer(tokenizer, truncation=not detokenizer, with_detokenizer=detokenizer)
        there, back = converted if detokenizer else (converted, None)
        if not detokenizer:
            too_long = " ".join(texts) + " a" * min(tokenizer.model_max_length, LONG)  # to see that both truncate alike
            texts = [*texts, too_long]
        core = ov.Core()
        different = _first_different(core.compile_model(there, "CPU"), tokenizer, texts, truncation=not detokenizer)
        if different is not None:
            return f"the converted {kind} splits {different[:100]!r} in another way"
        if back is not None:
            different = _first_different_back(core.compile_model(back, "CPU"), tokenizer, texts)
            if different is not None:
                return f"the converted {kind} turns ids back into something else than {different[:100]!r}"
    except Exception as error:  # whatever an unknown kind of tokenizer leads to; the model is there without it
        return f"openvino_tokenizers cannot convert {kind}: {last_line(error)}"
    with writing(directory):
        ov.save_model(there, directory / TOKENIZER_FILE)
        if back is not None:
            ov.save_model(back, directory / DETOKENIZER_FILE)
    return None


def _first_different(
    compiled: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, truncation: bool
) -> str | None:
    """Return the first text that the two turn into different ids."""
    for text in texts:
        found = compiled([text])["input_ids"][0]
        wanted = tokenizer(text, truncation=truncation)["input_ids"]
        if not np.array_equal(found, wanted):
            return text
    return None


def _first_different_back(compiled: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """Return the first text whose ids the two turn into different texts."""
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if not ids:
            continue
        found = str(compiled(np.array([ids], dtype=np.int32))[0][0])
        wanted = tokenizer.decode(ids, skip_special_tokens=True)
        if found != wanted:
            return wanted
    return None
