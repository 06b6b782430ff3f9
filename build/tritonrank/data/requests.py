"""Examples of a dataset as requests: what a client would send."""

from collections.abc import Iterable

from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import TextRules

from tritonrank.data.dataset import Dataset, Example
from tritonrank.rankers.server_scorer import Request


def requests_of(dataset: Dataset, examples: Iterable[Example], rules: TextRules) -> list[Request]:
    """The examples as requests: item ids become texts by the template."""

    def text(item_id: str) -> str:
        return render_fields(rules.item_template, dataset.items[item_id])

    return [
        Request(example.query, [text(i) for i in example.history], [text(i) for i in example.candidates])
        for example in examples
    ]
