"""Stage ``catalogue``: what retrieval needs of a recipe's items, in one folder.

Texts become vectors by the retriever's encoder; what people liked in training events becomes neighbour lists and
popularity. Events that are held out for judging are not counted, as for every baseline.
"""

import numpy as np
import polars as pl
from rich.console import Console
from tritonrank_recommend.catalogue.layout import DATA_READ
from tritonrank_runtime.item_text import render_fields

from tritonrank.artifacts import Draft, work_folder
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.item_fields import item_fields
from tritonrank.recipe import Recipe
from tritonrank.retrieval.catalogue_writer import Contents, write_catalogue
from tritonrank.retrieval.counts import MOST_EASE_ITEMS
from tritonrank.retrieval.item_vectors import item_vectors

console = Console()


def make_catalogue(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Write the catalogue of a recipe.

    Raises:
        DataError: ``data.fields`` cannot be read.
    """
    assert recipe.retrieval is not None
    dataset = Dataset.read(workspace.dataset)
    items = pl.read_parquet(workspace.dataset / "items.parquet", glob=False)
    template = recipe.text.item_template
    ids = items["item_id"].to_list()
    texts = [render_fields(template, row) for row in items.iter_rows(named=True)]
    queries = dataset.training_events["query"].unique(maintain_order=True)
    contents = Contents(
        items=item_fields(recipe.data, items),
        texts=texts,
        template=template,
        vectors=item_vectors(workspace.retriever, ids, texts).astype(np.float16),
        encoder=workspace.retriever,
        events=dataset.training_events,
        half_life_days=recipe.retrieval.half_life_days,
        sources=recipe.retrieval.sources,
        queries=queries.filter(queries != "").to_list(),
    )
    work = work_folder(workspace.catalogue) / f"{draft.key}.usearch"
    draft.metrics |= write_catalogue(contents, draft.folder, work=work)
    # The gateway takes what was changed since then on top of the catalogue. It is not in the artifact itself, which is
    # the same whenever the same data are read.
    draft.metrics[DATA_READ] = draft.parents["dataset"].began.isoformat()
    made, listed = draft.metrics, draft.metrics["items_with_neighbours"]
    console.print(
        f"  {made['items']:,} items, {made['bytes_per_item']:,.0f} bytes each on disk; stemmer: {made['stemmer']}; "
        f"with neighbours by kNN {listed['knn']:,}, by EASE {listed['ease']:,} (at most {MOST_EASE_ITEMS:,}, the most "
        f"popular), by what comes next {listed['next']:,}; "
        f"filters: {', '.join(made['filters']) or 'none'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
