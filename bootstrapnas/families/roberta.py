"""RoBERTa and what has its code (XLM-R, CamemBERT): BERT's layers with other heads."""

from dataclasses import replace

from bootstrapnas.dims import Labels, linear, norm
from bootstrapnas.families.base import Family
from bootstrapnas.families.bert import BERT, MULTIPLE_CHOICE, POOLER, QUESTION_ANSWERING, TOKEN_CLASSIFIER, WORDS

HEADS = {
    "SequenceClassification": {
        **linear("classifier.dense", "hidden", "hidden", applied="sequence"),
        **linear("classifier.out_proj", "label", "hidden", applied="sequence"),
    },
    "QuestionAnswering": QUESTION_ANSWERING,
    "TokenClassification": TOKEN_CLASSIFIER,
    "MultipleChoice": {**POOLER, **MULTIPLE_CHOICE},
    "MaskedLM": {
        "lm_head.bias": Labels("vocab"),
        **linear("lm_head.dense", "hidden", "hidden"),
        **norm("lm_head.layer_norm", "hidden"),
        **linear("lm_head.decoder", "vocab", "hidden", tied=WORDS, tied_bias="lm_head.bias"),
    },
}


def like_roberta(model_type: str, stem: str) -> Family:
    """Return the family of a model type with RoBERTa's code, whose classes are called ``<stem>For…``."""
    return replace(
        BERT,
        model_type=model_type,
        base="roberta",
        bare=f"{stem}Model",
        # Positions begin after padding's.
        max_length=lambda config: config.max_position_embeddings - config.pad_token_id - 1,
        architectures={f"{stem}Model": POOLER, **{f"{stem}For{head}": labels for head, labels in HEADS.items()}},
    )


ROBERTA = like_roberta("roberta", "Roberta")
XLM_ROBERTA = like_roberta("xlm-roberta", "XLMRoberta")
CAMEMBERT = like_roberta("camembert", "Camembert")
