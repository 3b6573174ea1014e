"""BERT: post-norm encoder; the unit of attention is the head."""

from bootstrapnas.dims import Dim, Labels, embedding, linear, norm
from bootstrapnas.families.base import Attention, Block, Family

DIMS = (
    Dim("hidden", "hidden_size", per_layer=False, elastic=False),
    Dim("vocab", "vocab_size", per_layer=False, elastic=False),
    Dim("position", "max_position_embeddings", per_layer=False, elastic=False),
    Dim("type", "type_vocab_size", per_layer=False, elastic=False),
    Dim("label", "num_labels", per_layer=False, elastic=False),
    Dim("one", lambda _: 1, per_layer=False, elastic=False),
    Dim("head", "num_attention_heads"),
    Dim("hd", lambda config: config.hidden_size // config.num_attention_heads, elastic=False),
    Dim("ffn", "intermediate_size"),
)
LAYER = {
    **linear("attention.self.query", "head hd", "hidden"),
    **linear("attention.self.key", "head hd", "hidden"),
    **linear("attention.self.value", "head hd", "hidden"),
    **linear("attention.output.dense", "hidden", "head hd"),
    **norm("attention.output.LayerNorm", "hidden"),
    **linear("intermediate.dense", "ffn", "hidden"),
    **linear("output.dense", "hidden", "ffn"),
    **norm("output.LayerNorm", "hidden"),
}
EMBEDDINGS = {
    **embedding("embeddings.word_embeddings", "vocab", "hidden"),
    **embedding("embeddings.position_embeddings", "position", "hidden"),
    **embedding("embeddings.token_type_embeddings", "type", "hidden"),
    **norm("embeddings.LayerNorm", "hidden"),
}
POOLER = linear("pooler.dense", "hidden", "hidden", applied="sequence")
WORDS = "embeddings.word_embeddings.weight"
TOKEN_CLASSIFIER = linear("classifier", "label", "hidden")
QUESTION_ANSWERING = linear("qa_outputs", "label", "hidden")
MULTIPLE_CHOICE = linear("classifier", "one", "hidden", applied="sequence")
MASKED_LM = {
    **linear("cls.predictions.transform.dense", "hidden", "hidden"),
    **norm("cls.predictions.transform.LayerNorm", "hidden"),
    "cls.predictions.bias": Labels("vocab"),
    **linear("cls.predictions.decoder", "vocab", "hidden", tied=WORDS, tied_bias="cls.predictions.bias"),
}
# As published (EFTNAS): skipping attention drops its LayerNorm too, skipping the FFN keeps the layer's final LayerNorm.
# Of a layer that is skipped as a whole nothing is left.
BLOCKS = (
    Block(
        "mha_block",
        {"attention": "input, none"},
        nncf_start="<output.LayerNorm/layer_norm_0",
        nncf_end="attention.output.LayerNorm/layer_norm_0",
        nncf_first="embeddings.dropout/dropout_0",
    ),
    Block(
        "ffn_block",
        {"intermediate": "input", "output.dense": "zero"},
        nncf_start="attention.output.LayerNorm/layer_norm_0",
        nncf_end="output/__add___0",
    ),
    Block(
        "layer_block",
        {"": "input"},
        nncf_start="<output.LayerNorm/layer_norm_0",
        nncf_end="output.LayerNorm/layer_norm_0",
        nncf_first="embeddings.dropout/dropout_0",
    ),
)

BERT = Family(
    model_type="bert",
    base="bert",
    bare="BertModel",
    stack="encoder.layer",
    num_layers="num_hidden_layers",
    dims=DIMS,
    embeddings=EMBEDDINGS,
    layer=LAYER,
    architectures={
        "BertModel": POOLER,
        "BertForSequenceClassification": {**POOLER, **linear("classifier", "label", "hidden", applied="sequence")},
        "BertForQuestionAnswering": QUESTION_ANSWERING,
        "BertForTokenClassification": TOKEN_CLASSIFIER,
        "BertForMultipleChoice": {**POOLER, **MULTIPLE_CHOICE},
        "BertForMaskedLM": MASKED_LM,
    },
    blocks=BLOCKS,
    attention=(Attention("head", "hd"),),
    dropout=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    max_length=lambda config: config.max_position_embeddings,
)
