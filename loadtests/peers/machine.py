"""How fast this machine multiplies at the best, and how much of that a request needs."""

import json
from pathlib import Path
from types import SimpleNamespace

from tritonrank.rankers.cost import gflop_of
from tritonrank.rankers.layer_flop import layer_flop
from tritonrank_runtime.text import RequestTokenizer

from loadtests.peers.cases import Case, PairTexts
from loadtests.peers.environments import own_environment, run_to_end
from loadtests.processes import child_environment

MULTIPLY_SECONDS = 120.0


def multiplication_rates(*, brief: bool = False) -> dict[str, float]:
    """GFLOP/s of matrix products of the encoder's shape; see workers/multiply.py."""
    command = [str(own_environment().python), "-m", "loadtests.peers.workers.multiply", *(["--brief"] if brief else [])]
    rates: dict[str, float] = json.loads(run_to_end(command, MULTIPLY_SECONDS, child_environment()))
    return rates


def needed_gflop(config: Path, texts: PairTexts, cases: list[Case]) -> dict[str, float]:
    """Mean GFLOP that a request needs, by way of ranking; padding and embedding look-ups not counted.

    The shared-context figure counts the context once and all layers in full, so an engine that computes only [CLS] rows
    in the last one needs less.

    Args:
        config: config.json of the encoder.
        texts: makes the tokens.
        cases: what to average over.
    """
    values = json.loads(config.read_text(encoding="utf-8"))
    hidden, layers = values["hidden_size"], values["num_hidden_layers"]
    sizes = hidden, hidden, values["intermediate_size"]
    joint = shared = 0.0
    for case in cases:
        lengths = [len(row) for row in texts.rows(case)]
        context = texts.context_length(case)
        joint += layer_flop(*sizes, lengths, lengths)
        own = [length - context + 1 for length in lengths]  # each candidate has a [CLS] of its own
        shared += layer_flop(*sizes, [context, *own], [context, *(context + length for length in own)])
    scale = layers / 1e9 / len(cases)
    return {"joint": joint * scale, "shared_context": shared * scale}


def served_gflop(checkpoint: Path, tokenizer_folder: Path, cases: list[Case]) -> float:
    """Mean GFLOP that a request needs of a ranker of ours as it is served: what was pruned is not counted, nor what the
    last layer need not compute.

    Args:
        checkpoint: holds its config.json.
        tokenizer_folder: the tokenizer and the rules that it is served with.
        cases: what to average over.
    """
    config = SimpleNamespace(**json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))
    tokenizer = RequestTokenizer.from_folder(tokenizer_folder)
    requests = [
        tokenizer.tensors(tokenizer.context(case.query, case.history), tokenizer.items(case.items)) for case in cases
    ]
    return gflop_of(config, requests)
