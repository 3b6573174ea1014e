"""The subcommands of ``lonas`` and the modules that run them."""

from bootstrapnas.pipeline.cli import Command

COMMANDS = {
    "search-space": Command("write a search space from the labels of a model, as an NNCF config", "lonas.search_space"),
    "train": Command("train a super-adapter (or, without a config, an ordinary LoRA) on a frozen base", "lonas.train"),
    "import-adapter": Command("take over a super-adapter of LoNAS's own code, or any LoRA", "lonas.import_adapter"),
    "eval": Command("the task metric of one subnet of a super-adapter, or of a LoRA", "lonas.evaluate"),
    "search": Command("find the Pareto-optimal subnets with NSGA-II", "bootstrapnas.pipeline.search.command"),
    "extract": Command("write one subnet as a smaller base and a smaller adapter, or merged", "lonas.extract"),
    "finetune": Command("train the adapter of an extracted subnet on, shared with no other subnet", "lonas.finetune"),
    "export": Command("convert a merged model to OpenVINO IR, verified against torch", "bootstrapnas.pipeline.export"),
    "evaluate": Command("the task metric of a model directory or an IR", "bootstrapnas.pipeline.evaluate"),
}
