"""The tokenizer of a checkpoint that is served as it is: its rows, its budgets, and what proves them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.text import TOKENIZER_FILE, RequestTokenizer, TextRules

from tritonrank.rankers.checkpoint_files import ADAPTER, TOKENIZER_CONFIG, adapter_base
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.checkpoint_tokenizer import request_tokenizer
from tritonrank.rankers.golden_rows import Pair, save_golden_tokens
from tritonrank.rankers.golden_tokens import prove_exact
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.rankers.text_budgets import MEASURED_TOKENS, measuring_rules


@dataclass(frozen=True)
class PairText:
    """How a checkpoint reads a query and a document."""

    name: str
    folder: Path
    """where its tokenizer is: an adapter's may be its base's"""
    fast: PreTrainedTokenizerFast
    source: Path
    """the checkpoint's own folder, which says what its scores mean"""

    @property
    def longest(self) -> int:
        """Tokens of a row by the tokenizer's own account; many say nothing."""
        return min(int(self.fast.model_max_length), MEASURED_TOKENS)

    def save(self, folder: Path, template: str, query: int, row: int, pairs: Sequence[Pair]) -> RequestTokenizer:
        """Write tokenizer, text rules, the scores' meaning and golden tokens; gives the tokenizer that they make.

        Args:
            folder: an artifact's draft.
            template: of JSON items.
            query: tokens of a query at the most.
            row: tokens of a row at the most, special ones included; a multiple of eight.
            pairs: short ones, which prove that the rows are the checkpoint's own.

        Raises:
            ArtifactError: the tokenizer has no layout for pairs, or cannot be converted exactly.
        """
        special_tokens = self._tokenizer(measuring_rules(template)).layout.special_tokens
        rules = TextRules(template, query, 0, 0, row - special_tokens - query - 1, JOINT)
        self.fast.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
        rules.save(folder)
        score_meaning(self.source).save(folder)
        tokenizer = RequestTokenizer.from_folder(folder)
        kept = [pair for pair in pairs if len(self.fast(*pair)["input_ids"]) <= row // 2]
        rows = prove_exact(self.name, self.folder, self.fast, self._tokenizer(rules), kept)
        save_golden_tokens(folder, kept, rows)
        return tokenizer

    def _tokenizer(self, rules: TextRules) -> RequestTokenizer:
        return request_tokenizer(self.name, self.fast, rules)


def pair_text(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> PairText:
    """The tokenizer of a checkpoint; of an adapter without one its base's.

    Raises:
        ArtifactError: there is none that can be read.
    """
    folder = source = folder_of(name, revision)
    if (folder / ADAPTER).is_file() and not any((folder / one).is_file() for one in (TOKENIZER_FILE, TOKENIZER_CONFIG)):
        name, revision = adapter_base(folder), None
        folder = folder_of(name)
    return PairText(name, folder, load_tokenizer(name, revision, trust_remote_code=trust_remote_code), source)
