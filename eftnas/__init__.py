"""EFTNAS: movement-sparsity scores generate the space of an elastic, reordered supernet, trained and searched."""
