"""The 18 search spaces published with EFTNAS (Munoz et al., LREC-COLING 2024) and how they were trained, as one table.

``generate.py`` writes the NNCF configs and the recipes from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from bootstrapnas.blueprint import Blueprint
from bootstrapnas.dims import Key
from bootstrapnas.space import SearchSpace

_SHARED = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
CONFIGS = {
    "s1_bert_base": SimpleNamespace(
        **_SHARED, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, num_labels=2
    ),
    "s2_bert_medium": SimpleNamespace(
        **_SHARED, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048, num_labels=2
    ),
}
HUB_IDS = {"s1_bert_base": "bert-base-uncased", "s2_bert_medium": "google/bert_uncased_L-8_H-512_A-8"}


@dataclass(frozen=True)
class PublishedTask:
    """What the spaces of a task have in common.

    Attributes
    ----------
    title
        What people call it.
    importance_epochs
        Epochs of importance training by which the learning rate would fall to zero; it ends with the warm-up.
    teacher
        Hub id of the fine-tuned BERT-base, for both students.
    """

    title: str
    importance_epochs: int
    teacher: str


TASKS = {
    "cola": PublishedTask("CoLA", 30, "ModelTC/bert-base-uncased-cola"),
    "mrpc": PublishedTask("MRPC", 30, "Intel/bert-base-uncased-mrpc"),
    "rte": PublishedTask("RTE", 30, "textattack/bert-base-uncased-RTE"),
    "sst2": PublishedTask("SST-2", 6, "JeremiahZ/bert-base-uncased-sst2"),
    "qnli": PublishedTask("QNLI", 6, "ModelTC/bert-base-uncased-qnli"),
    "qqp": PublishedTask("QQP", 6, "JeremiahZ/bert-base-uncased-qqp"),
    "mnli": PublishedTask("MNLI", 6, "JeremiahZ/bert-base-uncased-mnli"),
    "squad": PublishedTask("SQuAD v1.1", 8, "csarron/bert-base-uncased-squad-v1"),
    "squad_v2": PublishedTask("SQuAD v2", 8, "deepset/bert-base-uncased-squad2"),
}


@dataclass(frozen=True)
class PublishedSpace:
    """One published space and its settings. Layers are separated by ``|``, the sizes of a layer by blanks.

    Attributes
    ----------
    model, task
        Keys of `CONFIGS` and `TASKS`.
    mmacs
        Multiply-accumulates of the smallest and the largest subnet in millions: widths only, all of them, without the
        head of question answering.
    warmup
        Epochs of importance training between which the threshold rises.
    lr, epochs, epochs_lr
        Of the supernet; the learning rate falls to zero after `epochs_lr`, by default `epochs`.
    width_indicator, depth_indicator
        Of the only stage.
    ref_acc, metric
        Of the search; the task's usual metric where none is named.
    heads, ffn
        Heads and FFN channels per layer.
    skipped_mha
        Layers whose attention may be skipped; None has no section on depth.
    """

    model: str
    task: str
    mmacs: tuple[int, int]
    warmup: tuple[int, int]
    lr: float
    epochs: int
    width_indicator: int
    depth_indicator: int
    ref_acc: float
    heads: str
    ffn: str
    metric: str | None = None
    epochs_lr: int | None = None
    skipped_mha: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.model}/{self.task}"

    @property
    def is_squad(self) -> bool:
        return self.task.startswith("squad")

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return 384 if self.is_squad else 128

    @property
    def architecture(self) -> str:
        return "BertForQuestionAnswering" if self.is_squad else "BertForSequenceClassification"

    def blueprint(self) -> Blueprint:
        """Return the blueprint of the model that the space is for."""
        return Blueprint(CONFIGS[self.model], self.architecture)

    def sizes(self, dim: str) -> list[tuple[int, ...]]:
        """Return the sizes of ``"head"`` or ``"ffn"`` in units, layer by layer."""
        layers = (self.heads if dim == "head" else self.ffn).split("|")
        return [tuple(map(int, layer.split())) for layer in layers]

    def space(self, *, blocks: bool = False) -> SearchSpace:
        """Return the widths as a search space, attention of all layers, then FFN; `blocks` adds the skipped ones."""
        choices = [(Key(dim, layer), s) for dim in ("head", "ffn") for layer, s in enumerate(self.sizes(dim))]
        if blocks:
            choices += [(Key("mha_block", layer), (1, 0)) for layer in self.skipped_mha or ()]
        return SearchSpace.build(self.blueprint(), choices)


# fmt: off
SPACES = (
    PublishedSpace(
        "s1_bert_base", "cola", mmacs=(4377, 11174), warmup=(6, 15),
        lr=2e-5, epochs=12, width_indicator=4, depth_indicator=1, ref_acc=56.23, metric="eval_matthews_correlation",
        heads=(
            "12 11 9 8 | 12 11 7 5 4 | 12 10 7 5 | 12 10 8 7 | 12 11 10 | 12 10 | 12 | 12 10 9 | 12 9 8 7 | 12 5 4 | "
            "12 6 | 12 6 5"
        ),
        ffn=(
            "3072 2692 2134 1588 949 | 3072 2685 2171 1609 959 | 3072 2733 2275 1762 1110 | "
            "3072 2788 2312 1739 1096 | 3072 2771 2316 1788 1158 | 3072 2797 2312 1774 1062 | "
            "3072 2797 2297 1719 1028 | 3072 2762 2245 1654 1014 | 3072 2487 1863 1261 670 | "
            "3072 2187 1469 928 436 | 3072 2037 1360 814 348 | 3072 1991 1322 799 370"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "mrpc", mmacs=(4463, 11174), warmup=(6, 15),
        lr=3e-5, epochs=20, width_indicator=5, depth_indicator=9, ref_acc=88.85, metric="eval_f1",
        heads=(
            "12 | 12 11 | 12 | 12 | 12 | 12 11 10 | 12 11 10 | 12 11 10 8 | 12 9 8 | 12 10 8 5 | 12 9 7 6 3 | "
            "12 11 8 3"
        ),
        ffn=(
            "3072 2618 2120 1524 995 | 3072 2621 2097 1520 930 | 3072 2632 2117 1526 928 | 3072 2664 2127 1494 931 | "
            "3072 2645 2139 1456 872 | 3072 2574 2019 1362 787 | 3072 2561 1955 1245 672 | 3072 2494 1791 1117 579 | "
            "3072 2391 1627 866 409 | 3072 2153 1395 692 291 | 3072 2070 1324 678 300 | 3072 1925 1206 642 308"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "rte", mmacs=(4474, 11174), warmup=(6, 15),
        lr=2e-5, epochs=16, width_indicator=5, depth_indicator=1, ref_acc=65.7,
        heads="12 9 | 12 9 7 | 12 11 9 | 12 | 12 11 | 12 11 | 12 | 12 11 10 9 | 12 11 | 12 11 | 12 10 8 | 12 11 10",
        ffn=(
            "3072 2400 1773 1159 608 | 3072 2426 1728 1119 571 | 3072 2419 1755 1155 589 | 3072 2417 1742 1108 542 | "
            "3072 2449 1748 1124 576 | 3072 2446 1768 1100 589 | 3072 2409 1730 1078 568 | 3072 2426 1739 1054 537 | "
            "3072 2407 1670 1080 562 | 3072 2376 1633 1000 453 | 3072 2247 1497 840 376 | 3072 1602 842 424 147"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "sst2", mmacs=(4341, 11174), warmup=(1, 3),
        lr=3e-5, epochs=4, width_indicator=5, depth_indicator=1, ref_acc=92.32,
        heads=(
            "12 9 6 5 | 12 6 4 | 12 6 5 4 | 12 8 6 4 3 | 12 11 9 6 4 | 12 9 6 3 | 12 11 6 3 2 | 12 8 6 5 | 12 7 4 | "
            "12 5 4 3 | 12 2 | 12 2 1"
        ),
        ffn=(
            "3072 3040 2727 2227 1585 | 3072 3036 2712 2190 1570 | 3072 3046 2795 2362 1775 | "
            "3072 3042 2791 2314 1717 | 3072 3043 2764 2296 1679 | 3072 3038 2768 2215 1580 | "
            "3072 3032 2786 2268 1621 | 3072 3034 2694 2114 1406 | 3072 2994 2506 1896 1188 | "
            "3072 2924 2236 1585 930 | 3072 2868 2158 1501 828 | 3072 2812 1966 1301 654"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "qnli", mmacs=(4458, 11174), warmup=(1, 3),
        lr=2e-5, epochs=6, width_indicator=5, depth_indicator=1, ref_acc=90.66,
        heads=(
            "12 10 9 8 | 12 7 5 | 12 8 6 5 | 12 11 9 | 12 10 9 | 12 11 8 | 12 11 9 7 | 12 8 7 | 12 9 8 7 | 12 7 5 | "
            "12 8 6 | 12 10 9 8 7"
        ),
        ffn=(
            "3072 2810 2272 1708 1104 | 3072 2787 2272 1716 1066 | 3072 2806 2338 1776 1126 | "
            "3072 2810 2281 1740 1102 | 3072 2818 2310 1714 1067 | 3072 2794 2233 1637 1023 | "
            "3072 2773 2212 1642 1048 | 3072 2760 2205 1670 1061 | 3072 2690 2123 1548 984 | "
            "3072 2568 1925 1367 772 | 3072 2402 1751 1132 609 | 3072 2064 1194 584 205"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "qqp", mmacs=(4483, 11174), warmup=(1, 3),
        lr=2e-5, epochs=4, width_indicator=5, depth_indicator=1, ref_acc=90.71, metric="eval_accuracy",
        heads=(
            "12 7 6 5 | 12 4 | 12 7 5 | 12 6 4 3 | 12 8 4 | 12 8 4 | 12 7 4 3 | 12 6 4 | 12 6 3 1 | 12 8 3 | "
            "12 5 3 | 12 8"
        ),
        ffn=(
            "3072 3018 2460 1675 | 3072 3024 2488 1666 | 3072 3020 2530 1787 | 3072 3007 2549 1791 | "
            "3072 3018 2543 1772 | 3072 2982 2500 1751 | 3072 2974 2452 1709 | 3072 2980 2403 1590 | "
            "3072 2936 2100 1320 | 3072 2721 1524 762 | 3072 1957 756 348 | 3072 483 197 115"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "mnli", mmacs=(4433, 11174), warmup=(1, 3),
        lr=2e-5, epochs=4, width_indicator=5, depth_indicator=1, ref_acc=84.1,
        heads=(
            "12 6 4 | 12 5 4 | 12 6 4 3 | 12 8 5 | 12 10 3 | 12 9 6 | 12 9 2 | 12 8 4 | 12 10 4 | 12 5 4 | 12 3 | "
            "12 4"
        ),
        ffn=(
            "3072 3044 2448 1542 | 3072 3032 2465 1611 | 3072 3038 2606 1891 | 3072 3026 2589 1877 | "
            "3072 3024 2564 1825 | 3072 2994 2527 1790 | 3072 3002 2438 1678 | 3072 2985 2318 1544 | "
            "3072 2969 2035 1223 | 3072 2664 1277 628 | 3072 1988 692 345 | 3072 1040 408 213"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "squad", mmacs=(14158, 35333), warmup=(1, 4),
        lr=3e-5, epochs=3, width_indicator=5, depth_indicator=1, ref_acc=88.5,
        heads="12 9 | 12 7 | 12 8 7 | 12 8 7 | 12 10 8 | 12 8 6 | 12 7 | 12 7 | 12 8 | 12 6 | 12 4 3 | 12 5",
        ffn=(
            "3072 2830 2096 1169 | 3072 2815 2099 1170 | 3072 2876 2189 1284 | 3072 2825 2144 1218 | "
            "3072 2804 2115 1205 | 3072 2760 2017 1130 | 3072 2651 1869 1030 | 3072 2628 1809 976 | "
            "3072 2441 1559 794 | 3072 1950 964 401 | 3072 1554 785 404 | 3072 1030 617 422"
        ),
    ),
    PublishedSpace(
        "s1_bert_base", "squad_v2", mmacs=(14149, 35333), warmup=(1, 4),
        lr=3e-5, epochs=5, width_indicator=5, depth_indicator=1, ref_acc=77.9,
        heads="12 9 | 12 8 7 | 12 9 | 12 9 | 12 11 10 9 | 12 8 7 | 12 9 | 12 8 | 12 9 | 12 5 | 12 6 | 12 6",
        ffn=(
            "3072 3058 2684 1908 966 | 3072 3050 2674 1898 1052 | 3072 3041 2670 1940 1040 | "
            "3072 3043 2662 1926 1007 | 3072 3037 2580 1807 989 | 3072 3018 2521 1759 938 | "
            "3072 3006 2363 1554 789 | 3072 3009 2291 1421 693 | 3072 2995 2078 1175 517 | 3072 2913 1500 653 280 | "
            "3072 2844 1287 665 332 | 3072 2472 1138 752 505"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "cola", mmacs=(1600, 3355), warmup=(6, 15),
        lr=2e-5, epochs=12, width_indicator=5, depth_indicator=1, ref_acc=56.23, metric="eval_matthews_correlation",
        heads="8 7 6 5 | 8 5 4 3 | 8 6 5 3 | 8 6 5 | 8 7 | 8 5 | 8 5 4 | 8 7 5",
        ffn=(
            "2048 1885 1496 1146 904 | 2048 1896 1543 1160 878 | 2048 1876 1488 1135 885 | 2048 1868 1490 1150 910 | "
            "2048 1898 1575 1210 944 | 2048 1910 1596 1208 943 | 2048 1853 1489 1156 896 | 2048 1506 1051 725 524"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "mrpc", mmacs=(1591, 3355), warmup=(2, 5),
        lr=3e-5, epochs=8, width_indicator=9, depth_indicator=9, ref_acc=88.85, metric="eval_f1",
        heads="8 7 | 8 | 8 | 8 | 8 | 8 7 | 8 6 | 8",
        ffn=(
            "2048 1533 1216 790 439 | 2048 1569 1286 774 416 | 2048 1569 1279 776 396 | 2048 1598 1313 801 446 | "
            "2048 1566 1278 829 452 | 2048 1586 1281 789 447 | 2048 1579 1285 824 441 | 2048 1429 1180 783 465"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "rte", mmacs=(1610, 3355), warmup=(6, 15),
        lr=2e-5, epochs=16, width_indicator=4, depth_indicator=1, ref_acc=65.7, skipped_mha=(),
        heads="8 | 8 | 8 | 8 | 8 7 | 8 7 | 8 7 6 4 | 8 6",
        ffn=(
            "2048 1744 1404 968 599 | 2048 1775 1443 1010 613 | 2048 1733 1373 921 562 | 2048 1736 1387 957 561 | "
            "2048 1766 1387 904 545 | 2048 1760 1371 927 486 | 2048 1678 1262 799 445 | 2048 1475 1039 673 409"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "sst2", mmacs=(1515, 3355), warmup=(1, 3),
        lr=3e-5, epochs=8, width_indicator=4, depth_indicator=1, ref_acc=92.32,
        heads="8 7 5 3 | 8 6 2 | 8 5 4 2 | 8 6 5 4 | 8 5 4 3 | 8 7 2 1 | 8 5 3 | 8 3 2",
        ffn=(
            "2048 2047 1999 1656 1323 | 2048 2001 1663 1319 | 2048 1982 1549 1194 | 2048 2047 1962 1545 1182 | "
            "2048 2045 1953 1531 1137 | 2048 2044 1909 1382 996 | 2048 2035 1843 1248 843 | 2048 2018 1680 1027 684"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "qnli", mmacs=(1664, 3355), warmup=(1, 3),
        lr=2e-5, epochs=8, width_indicator=4, depth_indicator=1, ref_acc=90.66, skipped_mha=(7,),
        heads="8 6 5 | 8 5 2 1 | 8 7 6 | 8 7 6 | 8 5 4 2 | 8 4 3 | 8 5 3 | 8 1",
        ffn=(
            "2048 1966 1614 1341 | 2048 1967 1655 1382 | 2048 1929 1539 1266 | 2048 2046 1914 1517 1206 | "
            "2048 2045 1885 1503 1201 | 2048 2044 1839 1330 1017 | 2048 2032 1678 1096 741 | 2048 2018 1591 991 656"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "qqp", mmacs=(1568, 3355), warmup=(1, 3),
        lr=2e-5, epochs=6, width_indicator=4, depth_indicator=1, ref_acc=90.71, metric="eval_accuracy",
        heads="8 6 3 | 8 4 3 2 | 8 6 2 | 8 6 4 | 8 6 2 | 8 5 3 2 | 8 5 4 3 | 8 2",
        ffn=(
            "2048 2047 1972 1561 | 2048 2046 1976 1505 | 2048 2047 1886 1406 | 2048 2040 1849 1341 | "
            "2048 2041 1811 1235 | 2048 2033 1700 1041 | 2048 2036 1407 650 | 2048 1990 817 349"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "mnli", mmacs=(1671, 3355), warmup=(1, 3),
        lr=2e-5, epochs=6, width_indicator=9, depth_indicator=9, ref_acc=84.1, skipped_mha=(1,),
        heads="8 5 4 | 8 3 | 8 3 2 | 8 7 4 3 | 8 4 | 8 7 3 | 8 5 3 | 8 5 4",
        ffn=(
            "2048 2034 1728 1378 | 2048 2034 1723 1378 | 2048 2024 1630 1307 | 2048 2010 1585 1255 | "
            "2048 2008 1555 1233 | 2048 2003 1429 1096 | 2048 1982 1209 885 | 2048 1723 696 475"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "squad", mmacs=(5111, 10871), warmup=(1, 4),
        lr=3e-5, epochs=4, width_indicator=5, depth_indicator=1, ref_acc=88.5, epochs_lr=6, metric="eval_f1",
        heads="8 6 5 | 8 3 2 | 8 6 | 8 6 | 8 | 8 6 | 8 5 | 8 6",
        ffn=(
            "2048 1829 1322 734 | 2048 1810 1300 721 | 2048 1734 1239 785 | 2048 1603 1108 669 | "
            "2048 1641 1125 672 | 2048 1449 994 625 | 2048 1322 942 637 | 2048 890 597 412"
        ),
    ),
    PublishedSpace(
        "s2_bert_medium", "squad_v2", mmacs=(5188, 10871), warmup=(1, 4),
        lr=3e-5, epochs=5, width_indicator=5, depth_indicator=1, ref_acc=77.9,
        heads="8 6 | 8 3 | 8 6 | 8 7 | 8 7 | 8 6 | 8 7 | 8 7",
        ffn=(
            "2048 1731 1200 610 | 2048 1679 1120 544 | 2048 1634 1152 631 | 2048 1510 1091 653 | "
            "2048 1505 1046 591 | 2048 1309 902 549 | 2048 1182 799 508 | 2048 936 694 485"
        ),
    ),
)
# fmt: on
