"""DistilBERT: BERT's computation under other names, without token types and pooler."""

from bootstrapnas.dims import Dim, embedding, linear, norm
from bootstrapnas.families.base import Attention, Block, Family
from bootstrapnas.families.bert import MULTIPLE_CHOICE, QUESTION_ANSWERING, TOKEN_CLASSIFIER, WORDS

PRE_CLASSIFIER = linear("pre_classifier", "hidden", "hidden", applied="sequence")

DISTILBERT = Family(
    model_type="distilbert",
    base="distilbert",
    bare="DistilBertModel",
    stack="transformer.layer",
    num_layers="n_layers",
    dims=(
        Dim("hidden", "dim", per_layer=False, elastic=False),
        Dim("vocab", "vocab_size", per_layer=False, elastic=False),
        Dim("position", "max_position_embeddings", per_layer=False, elastic=False),
        Dim("label", "num_labels", per_layer=False, elastic=False),
        Dim("one", lambda _: 1, per_layer=False, elastic=False),
        Dim("head", "n_heads"),
        Dim("hd", lambda config: config.dim // config.n_heads, elastic=False),
        Dim("ffn", "hidden_dim"),
    ),
    embeddings={
        **embedding("embeddings.word_embeddings", "vocab", "hidden"),
        **embedding("embeddings.position_embeddings", "position", "hidden"),
        **norm("embeddings.LayerNorm", "hidden"),
    },
    layer={
        **linear("attention.q_lin", "head hd", "hidden"),
        **linear("attention.k_lin", "head hd", "hidden"),
        **linear("attention.v_lin", "head hd", "hidden"),
        **linear("attention.out_lin", "hidden", "head hd"),
        **norm("sa_layer_norm", "hidden"),
        **linear("ffn.lin1", "ffn", "hidden"),
        **linear("ffn.lin2", "hidden", "ffn"),
        **norm("output_layer_norm", "hidden"),
    },
    architectures={
        "DistilBertModel": {},
        "DistilBertForSequenceClassification": {
            **PRE_CLASSIFIER,
            **linear("classifier", "label", "hidden", applied="sequence"),
        },
        "DistilBertForQuestionAnswering": QUESTION_ANSWERING,
        "DistilBertForTokenClassification": TOKEN_CLASSIFIER,
        "DistilBertForMultipleChoice": {**PRE_CLASSIFIER, **MULTIPLE_CHOICE},
        "DistilBertForMaskedLM": {
            **linear("vocab_transform", "hidden", "hidden"),
            **norm("vocab_layer_norm", "hidden"),
            **linear("vocab_projector", "vocab", "hidden", tied=WORDS),
        },
    },
    # As in BERT, but the layer itself adds the input: attention leaves it as it is only without its LayerNorm.
    blocks=(
        Block(
            "mha_block",
            {"attention": "zero, none", "sa_layer_norm": "input"},
            nncf_start="<output_layer_norm/layer_norm_0",
            nncf_end="sa_layer_norm/layer_norm_0",
            nncf_first="embeddings.dropout/dropout_0",
        ),
        Block(
            "ffn_block",
            {"ffn": "zero"},
            nncf_start="sa_layer_norm/layer_norm_0",
            nncf_end="/__add___1",
        ),
        Block(
            "layer_block",
            {"": "input"},
            nncf_start="<output_layer_norm/layer_norm_0",
            nncf_end="output_layer_norm/layer_norm_0",
            nncf_first="embeddings.dropout/dropout_0",
        ),
    ),
    attention=(Attention("head", "hd"),),
    dropout=("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"),
    max_length=lambda config: config.max_position_embeddings,
)
