"""Less text than there is: tokens and fields of training examples are left out at random.

A ranker that met every text whole learns to lean on single words; one that met parts has to use what is left, and has
also seen users without a query, short histories and items without a description.

What is left out is a function of seed, pass and example alone: neither the order of examples nor the process that reads
them changes it, and a training that goes on after an interruption draws as the first one would have.
"""

import zlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from tritonrank_runtime.item_text import render_fields, template_fields
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.data.dataset import Dataset, Example
from tritonrank.rankers.scorers import Request, RequestTensors


class TextDropout:
    """Reads examples in part.

    Args:
        tokens: share of the tokens of the context and of each candidate that are left out, one at least stays.
        fields: chance with which the query, each item of the history and each field of a candidate is left out; a
            candidate keeps one field at least.
        seed: of the training.

    Attributes:
        epoch: which pass over the examples it is.
    """

    def __init__(self, tokens: float, fields: float, seed: int) -> None:
        self._tokens, self._fields, self._seed = tokens, fields, seed
        self.epoch = 0

    def tensors(self, dataset: Dataset, example: Example, tokenizer: RequestTokenizer) -> RequestTensors:
        """An example as the engine takes it, less what is left out in this pass."""
        draw = np.random.default_rng([self._seed, self.epoch, zlib.crc32(example.example_id.encode())])
        request = self._thinned(dataset, example, tokenizer.rules.item_template, draw)
        context = tokenizer.context(request.query, request.history)
        separators = {int(token) for token in np.atleast_1d(tokenizer.layout.separator)}
        candidates = [self._some(ids, draw) for ids in tokenizer.items(request.items)]
        return tokenizer.tensors(self._some(context, draw, separators), candidates)

    def _thinned(self, dataset: Dataset, example: Example, template: str, draw: np.random.Generator) -> Request:
        if not self._fields:
            kept_query, history = example.query, list(example.history)
        else:
            kept_query = example.query if draw.random() >= self._fields else ""
            history = [item for item in example.history if draw.random() >= self._fields]
        names = template_fields(template)

        def candidate(item: str) -> str:
            fields = dataset.items[item]
            said = [name for name in names if str(fields.get(name) or "").strip()]
            if self._fields and said:
                kept = [name for name in said if draw.random() >= self._fields]
                said = kept or [said[int(draw.integers(len(said)))]]
                fields = {name: fields[name] for name in said}
            return render_fields(template, fields)

        known = [render_fields(template, dataset.items[item]) for item in history]
        return Request(kept_query, known, [candidate(item) for item in example.candidates])

    def _some(self, ids: Sequence[int], draw: np.random.Generator, always: AbstractSet[int] = frozenset()) -> list[int]:
        """The ids that stay, in their order."""
        if not self._tokens or not ids:
            return list(ids)
        stays = draw.random(len(ids)) >= self._tokens
        if not stays.any():
            stays[int(draw.integers(len(ids)))] = True
        return [token for token, kept in zip(ids, stays, strict=True) if kept or token in always]
