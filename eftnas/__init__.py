"""EFTNAS: movement-sparsity scores generate the search space; an elastic, reordered supernet is trained and searched."""
