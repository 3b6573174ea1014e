"""``bootstrapnas benchmark``: models measured side by side, and the tables of that."""
