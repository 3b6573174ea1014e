"""LoNAS: elastic low-rank adapters on a frozen base model whose widths are elastic too, trained and searched."""
