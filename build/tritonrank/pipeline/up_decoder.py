"""What ``tritonrank up`` makes of a language model that ranks: prompt and one logit, as a recipe's decoder has them.

The prompt's tokens are proved before the weights are read: parts tokenized apart against transformers' tokenization of
the whole prompt, on pairs of texts in every language at hand.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritonrank_runtime.decoder import DECODER
from tritonrank_runtime.text import RULES_FILE, TOKENIZER_FILE, RequestTokenizer, TextRules

from tritonrank.artifacts import Draft
from tritonrank.errors import RecipeError
from tritonrank.rankers.golden_rows import Pair
from tritonrank.rankers.server_scorer import Request
from tritonrank.recipe import ModelSettings

FEWEST_FOR_TEXTS = 16


@dataclass(frozen=True)
class Exported:
    """What is told of it."""

    model_type: str
    parameters: int
    row_tokens: int
    query_tokens: int
    score: str
    difference: float


def export_decoder(
    model: ModelSettings,
    template: str,
    row_tokens: Callable[[int], int],
    query_tokens: Callable[[int], int],
    requests: Sequence[Request],
    draft: Draft,
    timed: Callable[[str, Draft], AbstractContextManager[None]],
) -> Exported:
    """Write the graphs of a language model with tokenizer, prompt and golden rows.

    Args:
        model: the checkpoint, with architecture decoder.
        template: of JSON items.
        row_tokens: tokens of a row, prompt included, by the most that the model takes.
        query_tokens: of a query, by the tokens that are left for texts.
        requests: to compare with PyTorch on.
        draft: gets everything.
        timed: names a step and records its seconds.

    Raises:
        ArtifactError: the checkpoint is refused, its prompt is not known, or its graphs are not exact.
        RecipeError: the prompt leaves no room for texts.
    """
    from tritonrank.rankers.checkpoint_check import check_checkpoint
    from tritonrank.rankers.checkpoint_weights import Purpose

    name = model.source
    with timed("reading the checkpoint", draft):
        check_checkpoint(name, Purpose.UP, DECODER, model.revision)
        from tritonrank.data.own_texts import golden_pairs
        from tritonrank.rankers.checkpoint_source import folder_of
        from tritonrank.rankers.score_meaning import score_meaning
        from tritonrank.rankers.text_budgets import longest_row

        folder = folder_of(name, model.revision)
        tokens = row_tokens(longest_row(model))
        rules = _rules(model, folder, template, tokens, query_tokens)
    with timed("proving the prompt", draft):
        tokenizer = _save_texts(model, rules, draft.folder, golden_pairs())
        score_meaning(folder).save(draft.folder)
    with timed("loading the weights", draft):
        from tritonrank.rankers.decoder_source import decoder_of, score_in_words

        ranker: Any = decoder_of(model, rules.frame)
        parameters = ranker.num_parameters()
    from tritonrank.graphs.export import compare_with_torch, export_graphs

    with tempfile.TemporaryDirectory(dir=draft.folder.parent) as weights:
        ranker.save_pretrained(weights, safe_serialization=True)
        model_type = _family(model)
        del ranker
        with timed("tracing the graphs", draft):
            export_graphs(Path(weights), draft.folder)
        with timed("comparing them with PyTorch", draft):
            difference = compare_with_torch(Path(weights), draft.folder, requests)
    score = score_in_words(rules.frame, is_ready=True)
    largest = max(difference.on_grid, difference.on_requests)
    return Exported(model_type, parameters, tokens, tokenizer.rules.query_tokens, score, largest)


def _family(model: ModelSettings) -> str:
    from tritonrank.rankers.pretrained import load_config

    return str(load_config(model.source, model.revision).model_type)


def _rules(
    model: ModelSettings, folder: Path, template: str, tokens: int, query_tokens: Callable[[int], int]
) -> TextRules:
    """Those of a decoder of ours as they are; else what the prompt leaves of a row is shared by query and document."""
    if (folder / RULES_FILE).is_file():
        return TextRules.load(folder)
    from tritonrank.rankers.checkpoint_prompt import decoder_frame
    from tritonrank.rankers.text_budgets import measuring_rules, tokenizer_of

    frame = decoder_frame(model)
    layout = tokenizer_of(model, replace(measuring_rules(template), frame=frame)).layout
    left = tokens - layout.special_tokens - layout.longest_context(0, 0)
    if left < FEWEST_FOR_TEXTS:
        raise RecipeError(
            f"--max-tokens {tokens}: the prompt of {model.source} takes {tokens - left} of them, and texts need "
            f"{FEWEST_FOR_TEXTS}; give it more"
        )
    query = query_tokens(left)
    return TextRules(template, query, 0, 0, left - query, DECODER, frame)


def _save_texts(model: ModelSettings, rules: TextRules, folder: Path, pairs: Sequence[Pair]) -> RequestTokenizer:
    """Tokenizer, rules and golden rows; gives the tokenizer that they make."""
    from tritonrank.rankers.golden_rows import save_golden_tokens
    from tritonrank.rankers.golden_tokens import prove_prompt
    from tritonrank.rankers.pretrained import load_tokenizer

    fast: Any = load_tokenizer(model.source, model.revision)
    fast.backend_tokenizer.no_truncation()
    fast.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
    rules.save(folder)
    tokenizer = RequestTokenizer.from_folder(folder)
    kept, rows = prove_prompt(model.source, fast, tokenizer, pairs)
    save_golden_tokens(folder, kept, rows)
    return tokenizer
