"""What each key of an NNCF config does here, for docs and editors. What has no effect carries the reason instead."""

from typing import Final

EFFECTS: Final = {
    "Document.editor_schema": "Where an editor finds the schema of these files; not read here.",
    "Document.kd_teacher_model": "The teacher of `train`, as `--kd_teacher_model`.",
    "Document.kd_mode": "What student and teacher are compared by, as `--kd_mode`: see [training.md](training.md).",
    "Document.kd_temperature": "Temperature of the distillation in `train`, as `--kd_temperature`.",
    "Document.movement_sparsity_total_epochs": "As `--num_train_epochs` of `importance`: the length of its "
    "learning-rate schedule. Training ends with the warm-up.",
    "InputInfo.sample_size": "Shape [batch, tokens]. The tokens are the length that costs are counted for; all entries "
    "must agree.",
    "InputInfo.type": "Checked; `float` or `long`. Costs need the length alone.",
    "InputInfo.keyword": "Checked. Costs need the length alone.",
    "Training.algorithm": "Only `progressive_shrinking`.",
    "Training.progressivity_of_elasticity": "The order in which stages may add dimensions; stages are checked against "
    "it.",
    "Training.sandwich_rule": "`true`: the largest, a random and the smallest subnet a step; `false`: one random. "
    "Without it `--sampling` decides (sandwich).",
    "KnowledgeDistillation.algorithm": "Only `knowledge_distillation`: without `--kd_teacher_model`, the teacher of "
    "`train` is the model as it was before training, in evaluation mode; its term is added to the whole task loss.",
    "KnowledgeDistillation.type": "`softmax`: as `--kd_mode original`; `mse`: mean squared error of the outputs.",
    "KnowledgeDistillation.scale": "Weight of the term.",
    "KnowledgeDistillation.temperature": "Temperature of both softmaxes.",
    "StageDescription.train_dims": "What is elastic from this stage on: `width`, `depth`. `kernel` is named in a "
    "warning and left out.",
    "StageDescription.epochs": "Length of the stage; -1: `--num_train_epochs`.",
    "StageDescription.depth_indicator": "Of blocks that follow each other in `skipped_blocks`, only the last so many "
    "may be skipped.",
    "StageDescription.width_indicator": "Only the largest so many widths of each group may be taken; -1: all. The last "
    "stage's holds in the search too.",
    "StageDescription.reorg_weights": "Units are put in order when the stage begins, by `filter_importance` and the "
    "weights as they are then; the optimiser's moments move along. `--importance_weight_dir` orders once, before "
    "training, instead.",
    "StageDescription.init_lr": "Learning rate at the beginning of the stage; -1 or missing: `--learning_rate`.",
    "StageDescription.epochs_lr": "Epochs in which the learning rate falls to zero; -1: `--num_train_epochs`; missing: "
    "`epochs`.",
    "StageDescription.sample_rate": "New subnets are drawn every so many steps, from the first step of the stage on.",
    "StageDescription.reorg_interval": "The same at the beginning of every so many epochs of the stage, the first one "
    "included.",
    "Elasticity.available_elasticity_dims": "What may be elastic at all.",
    "Width.min_width": "Without `overwrite_groups`: the smallest width, in channels.",
    "Width.max_num_widths": "Without `overwrite_groups`: at most so many widths; -1: no limit.",
    "Width.width_step": "Without `overwrite_groups`: widths go down from the full one in such steps.",
    "Width.width_multipliers": "Without `overwrite_groups`: widths are these shares of the full one, floored to a "
    "multiple of 8, instead of steps.",
    "Width.filter_importance": "What `reorg_weights` and `reorg_interval` order by, over a unit's output rows: `L1`, "
    "`L2` (norms), `geometric_median` (distances to the other units), or `external`. Without effect where "
    "`--importance_weight_dir` is given.",
    "Width.external_importance_path": "The scores of `external`: safetensors or a file of `torch.save`, by parameter "
    "or node, summed over rows. They order units once.",
    "Width.overwrite_groups": "Groups of node names that share a width. Missing: one group per elastic dimension of a "
    "layer.",
    "Width.overwrite_groups_widths": "Per group its widths, in channels (heads × head size; of one part of a fused "
    "layer), in any order.",
    "Width.add_dynamic_inputs": "Nodes whose input follows a group. Checked: here every input follows by its labels.",
    "Depth.skipped_blocks": "Blocks that may be skipped, as [start node, end node]. Missing: all blocks of the family.",
    "Depth.fixed_skipped_blocks": "Blocks that are always skipped, in stages that do not train depth yet as well.",
    "LRParams.base_lr": "One learning rate over all stages, instead of one a stage.",
    "LRParams.num_epochs": "Epochs after which it is zero; missing: those of all stages together.",
    "LRParams.warmup_epochs": "Epochs in which it rises linearly.",
    "LRParams.warmup_lr": "Where the rise begins.",
    "Search.algorithm": "`NSGA2`, `RNSGA2`, or `random`.",
    "Search.num_evals": "Subnets to propose in all, repeats included; rounded down to whole generations.",
    "Search.population": "Subnets of a generation.",
    "Search.seed": "Seed of the algorithm.",
    "Search.crossover_prob": "Probability of simulated binary crossover.",
    "Search.crossover_eta": "Its distribution index: larger keeps children closer to their parents.",
    "Search.mutation_prob": "Probability that an offspring mutates at all; missing: always.",
    "Search.mutation_eta": "Distribution index of polynomial mutation.",
    "Search.acc_delta": "What the best subnet may lose against `ref_acc`: points of a percent, or, beside a `ref_acc` "
    "that is a fraction and larger, a fraction.",
    "Search.ref_acc": "Metric that the best subnet is held against, a fraction or, above 1, a percentage; -1 or "
    "missing: the largest subnet's own.",
    "Search.aspiration_points": "RNSGA2: points [MACs in millions, minus the metric] to search near. The metric is a "
    "percentage, or a fraction from -1 to 0.",
    "Search.epsilon": "RNSGA2: subnets nearer to each other than this, relative to the front's extent, count as one.",
    "Search.weights": "RNSGA2: weights of the two objectives in distances; missing: equal.",
    "Search.extreme_points_as_ref_points": "RNSGA2: whether the extremes of a generation are aspired to as well.",
    "Search.eval_metric_name": "Metric to search by, as `--eval_metric_name`: one of the task's, with or without "
    "`eval_`. Missing: the one that the task is selected by.",
    "MovementSparsity.algorithm": "Only `movement_sparsity`.",
    "MovementSparsity.ignored_scopes": "Layers without scores.",
    "MovementSparsity.compression_lr_multiplier": "Factor of the scores' gradients. AdamW's steps do not depend on it, "
    "but for clipping; `--score_learning_rate` changes their pace.",
    "MovementSparsity.target_scopes": "Only these layers have scores; missing: all linear layers.",
    "MovementParams.warmup_start_epoch": "When threshold and penalty begin to rise; fractions are allowed.",
    "MovementParams.warmup_end_epoch": "When they are done, scores are frozen and training ends.",
    "MovementParams.importance_regularization_factor": "Strength of the penalty at the end.",
    "MovementParams.enable_structured_masking": "Whether the frozen masks drop whole units. Training ends there, so "
    "the scores do not depend on it.",
    "MovementParams.power": "How steeply both rise at first.",
    "MovementParams.init_importance_threshold": "The threshold when the rise begins; missing: such that 0.1 % of all "
    "scored entries lie below it.",
    "MovementParams.final_importance_threshold": "The threshold at the end.",
    "SparseStructure.mode": "`fine`: a score per entry; `block`: per block; `per_dim`: per row or column.",
    "SparseStructure.sparse_factors": "[rows, columns] of a block.",
    "SparseStructure.axis": "0: a score per output channel; 1: per input channel.",
    "SparseStructure.target_scopes": "The layers this entry is for; layers that no entry matches are `fine`.",
}
"""``<section>.<field>`` of the schema -> its effect, in Markdown."""
