"""The subcommands of ``eftnas`` and the modules that run them."""

from bootstrapnas.pipeline.cli import Command

COMMANDS = {
    "finetune": Command(
        "fine-tune a model on a task: a teacher, or an extracted subnet", "bootstrapnas.pipeline.finetune"
    ),
    "importance": Command("scores of all weights: movement-sparsity training, or a criterion", "eftnas.importance"),
    "search-space": Command("turn scores into a search space, written as an NNCF config", "eftnas.search_space"),
    "train": Command("reorder by importance and train the elastic supernet", "eftnas.train"),
    "search": Command("find the Pareto-optimal subnets with NSGA-II", "bootstrapnas.pipeline.search.command"),
    "extract": Command("write one subnet as a really smaller Hugging Face model", "bootstrapnas.pipeline.extract"),
    "export": Command("convert a model to OpenVINO IR, verified against torch", "bootstrapnas.pipeline.export"),
    "evaluate": Command("the task metric of a model directory or an IR", "bootstrapnas.pipeline.evaluate"),
    "run": Command("all stages from one recipe, resumable", "eftnas.recipe"),
}
