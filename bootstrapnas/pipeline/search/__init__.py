"""The stage ``search``: what it improves and keeps within bounds, how it evaluates, its finalists."""
