"""What padded plans compute beside what requests need, counted by hand and on a built ranker."""

from pathlib import Path

import numpy as np
import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.recipe import Recipe
from tritonrank.tensorrt.padding_cost import padding_cost, padding_of
from tritonrank_runtime.item_text import TextError
from tritonrank_runtime.padding import PADDING, Buckets
from tritonrank_runtime.text import RequestTokenizer, TextRules


def test_a_shared_context_request_is_padded_to_its_bucket_and_the_longest_context(workspace: Workspace) -> None:
    tokenizer = RequestTokenizer.from_folder(workspace.teacher)
    longest = tokenizer.longest_rows["context_ids"]
    candidates = np.array([[5, 6, PADDING], [5, 6, 7]], dtype=np.int32)
    request = {"context_ids": np.array([1, 2, 3], dtype=np.int32), "candidate_ids": candidates}
    cost = padding_of(tokenizer, Buckets((4, 8), (4, 6)), [request, request])
    assert (cost.requests, cost.needed, cost.computed) == (2, 2 * (3 + 5), 2 * (longest + 4 * 4))
    assert cost.ratio == cost.computed / cost.needed
    assert cost.as_json()["ratio"] == cost.ratio


@pytest.mark.parametrize("architecture", ["shared-context", "joint"])
def test_more_buckets_cost_less_and_the_last_one_is_the_limit(
    architecture: str, workspace: Workspace, tiny_recipe: Recipe, request: pytest.FixtureRequest
) -> None:
    joint = architecture == "joint"
    built: Workspace = request.getfixturevalue("joint_workspace") if joint else workspace
    folder: Path = built.teacher
    tokenizer, dataset = RequestTokenizer.from_folder(folder), Dataset.read(built.dataset)
    requests = requests_of(dataset, dataset.test[:5], TextRules.load(folder))

    def with_buckets(candidates: list[int]) -> Recipe:
        changed = {"candidate_buckets": candidates, "token_buckets": []}
        return tiny_recipe.model_copy(update={"tensorrt": tiny_recipe.tensorrt.model_copy(update=changed)})

    one, many = (padding_cost(with_buckets(buckets), tokenizer, requests) for buckets in ([256], [8, 16, 32, 64, 256]))
    assert one.needed == many.needed > 0
    assert one.computed > many.computed >= many.needed
    with pytest.raises(TextError, match="built for"):
        padding_cost(with_buckets([1]), tokenizer, requests)
