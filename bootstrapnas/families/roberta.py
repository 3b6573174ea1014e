"""RoBERTa: BERT's layers with another head."""

from dataclasses import replace

from bootstrapnas.dims import linear
from bootstrapnas.families.bert import BERT, POOLER

ROBERTA = replace(
    BERT,
    model_type="roberta",
    base="roberta",
    bare="RobertaModel",
    max_length=lambda config: (
        config.max_position_embeddings - config.pad_token_id - 1
    ),  # positions begin after padding's
    architectures={
        "RobertaModel": POOLER,
        "RobertaForSequenceClassification": {
            **linear("classifier.dense", "hidden", "hidden", applied="sequence"),
            **linear("classifier.out_proj", "label", "hidden", applied="sequence"),
        },
        "RobertaForQuestionAnswering": linear("qa_outputs", "label", "hidden"),
    },
)
