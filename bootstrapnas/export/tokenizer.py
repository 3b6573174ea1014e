"""A tokenizer as an OpenVINO IR, so that text can go in without Python. openvino_tokenizers is optional."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bootstrapnas.export.runtime import last_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "openvino_tokenizer.xml"
LONG = 4096  # words; tokenizers without a limit have an astronomical model_max_length


def save_tokenizer_ir(tokenizer: PreTrainedTokenizerBase, directory: Path, texts: Sequence[str]) -> str | None:
    """Write ``openvino_tokenizer.xml`` if it tokenises `texts` as `tokenizer` does; return why not, or `None`.

    Importing openvino_tokenizers makes every `openvino.Core` created later load its extension.
    """
    import openvino as ov

    try:
        library = importlib.import_module("openvino_tokenizers")
    except ImportError as error:
        return f"openvino_tokenizers cannot be imported ({error})"
    try:
        ir = library.convert_tokenizer(tokenizer, truncation=True)
        too_long = " ".join(texts) + " a" * min(tokenizer.model_max_length, LONG)  # to see that both truncate alike
        different = _first_different(ov.Core().compile_model(ir, "CPU"), tokenizer, [*texts, too_long])
    except Exception as error:  # whatever an unknown kind of tokenizer leads to; the model is there without it
        return f"openvino_tokenizers cannot convert {type(tokenizer).__name__}: {last_line(error)}"
    if different is not None:
        return f"the converted {type(tokenizer).__name__} splits {different[:100]!r} in another way"
    ov.save_model(ir, directory / TOKENIZER_FILE)
    return None


def _first_different(compiled: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """Return the first text that the two turn into different ids."""
    for text in texts:
        found = compiled([text])["input_ids"][0]
        wanted = tokenizer(text, truncation=True)["input_ids"]
        if not np.array_equal(found, wanted):
            return text
    return None
