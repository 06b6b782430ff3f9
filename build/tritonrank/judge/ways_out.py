"""What can be done when a gate closes: the next command, by what it closed on."""

from tritonrank.artifacts.rungs import INT8, PRUNED, STUDENT

WAYS_OUT = {
    PRUNED: "Cut less (prune.gflop, or the sizes in the prune section), or allow more: --set gate.prune_budget=0.8",
    STUDENT: "Train the student longer (distill.epochs), or on more (distill.examples)",
    INT8: "The FP32 graph passed; serve it: tritonrank build RECIPE --set quantize.method=none, then: tritonrank "
    "serve {root}. Or keep more layers out of INT8: --set quantize.noise=0.01",
}
"""What can be done when the gate closes on a rung; ``{root}`` is the folder of the recipe's artifacts."""
OTHER_WAY_OUT = "What was built before passed and can be served: leave this precision out of tensorrt.precisions"
UNCUT_WAY_OUT = "The text section's budgets cut what the checkpoint would read: --set text.candidate_tokens=auto"
