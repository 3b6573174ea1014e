"""The registry of model families. To add one: a file of data beside these and a line here."""

from typing import Any

from bootstrapnas.errors import UserError, listed, near_miss
from bootstrapnas.families.base import Family
from bootstrapnas.families.bert import BERT
from bootstrapnas.families.bloom import BLOOM
from bootstrapnas.families.distilbert import DISTILBERT
from bootstrapnas.families.electra import ELECTRA
from bootstrapnas.families.gemma import GEMMA
from bootstrapnas.families.gpt2 import GPT2
from bootstrapnas.families.gpt_neox import GPT_NEOX
from bootstrapnas.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from bootstrapnas.families.mobilebert import MOBILEBERT
from bootstrapnas.families.modernbert import MODERNBERT
from bootstrapnas.families.opt import OPT
from bootstrapnas.families.phi3 import PHI3
from bootstrapnas.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

ENCODERS = (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ELECTRA, MOBILEBERT, MODERNBERT)
DECODERS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, PHI3, BLOOM, GPT2, GPT_NEOX, OPT)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*ENCODERS, *DECODERS)}


def family_of(config: Any) -> Family:
    """Return the family of a Hugging Face config.

    Raises
    ------
    UserError
        If no family has labels for ``config.model_type``.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise UserError(
            f"no axis labels for model type {config.model_type!r} (known: {listed(FAMILIES)})"
            f"{near_miss(config.model_type, FAMILIES)}; a family is one file of data in bootstrapnas/families, "
            "see CONTRIBUTING.md"
        ) from None


__all__ = ["DECODERS", "FAMILIES", "Family", "family_of"]
