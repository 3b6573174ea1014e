"""ELECTRA: BERT's layers over embeddings that may be narrower, with heads of its own."""

from dataclasses import replace
from typing import Any

from bootstrapnas.dims import Dim, embedding, linear, norm, only_if
from bootstrapnas.families.bert import BERT, BLOCKS, DIMS, QUESTION_ANSWERING, TOKEN_CLASSIFIER, WORDS

PROJECTION = only_if(
    lambda config: config.embedding_size != config.hidden_size, linear("embeddings_project", "hidden", "embedding")
)
MHA, FFN, LAYER = BLOCKS


def first_operation(config: Any) -> str:
    """Return the last operation before the layers."""
    narrower = config.embedding_size != config.hidden_size
    return "embeddings_project/linear_0" if narrower else "embeddings.dropout/dropout_0"


ELECTRA = replace(
    BERT,
    model_type="electra",
    base="electra",
    bare="ElectraModel",
    dims=(*DIMS, Dim("embedding", "embedding_size", per_layer=False, elastic=False)),
    embeddings={
        **embedding("embeddings.word_embeddings", "vocab", "embedding"),
        **embedding("embeddings.position_embeddings", "position", "embedding"),
        **embedding("embeddings.token_type_embeddings", "type", "embedding"),
        **norm("embeddings.LayerNorm", "embedding"),
    },
    architectures={
        "ElectraModel": PROJECTION,
        "ElectraForPreTraining": {
            **PROJECTION,
            **linear("discriminator_predictions.dense", "hidden", "hidden"),
            **linear("discriminator_predictions.dense_prediction", "one", "hidden"),
        },
        "ElectraForSequenceClassification": {
            **PROJECTION,
            **linear("classifier.dense", "hidden", "hidden", applied="sequence"),
            **linear("classifier.out_proj", "label", "hidden", applied="sequence"),
        },
        "ElectraForQuestionAnswering": {**PROJECTION, **QUESTION_ANSWERING},
        "ElectraForTokenClassification": {**PROJECTION, **TOKEN_CLASSIFIER},
        "ElectraForMaskedLM": {
            **PROJECTION,
            **norm("generator_predictions.LayerNorm", "embedding"),
            **linear("generator_predictions.dense", "embedding", "hidden"),
            **linear("generator_lm_head", "vocab", "embedding", tied=WORDS),
        },
    },
    blocks=(replace(MHA, nncf_first=first_operation), FFN, replace(LAYER, nncf_first=first_operation)),
)
