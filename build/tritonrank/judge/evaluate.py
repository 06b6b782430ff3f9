"""The judge: ranking metrics of anything that scores, on examples that were fixed before training.

A judgement keeps every score of every example, so that two of them are compared example by example. Judgements of
model artifacts are cached by content, so nothing is judged twice.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_runtime.engines import loaded_files
from tritonrank_runtime.images import FOLDER, TABLE_FILE, VECTORS_FILE
from tritonrank_runtime.native.weights import NATIVE_FILE
from tritonrank_runtime.shard_runner import SHARDS_FILE
from tritonrank_runtime.shard_workers import is_sharded
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import read_manifest, sha256_file, whole_file
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError
from tritonrank.judge.metrics import BOOTSTRAP_SAMPLES, METRICS, Interval, all_metrics, interval
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import Scorer
from tritonrank.system.progress import track

ExampleScorer = Callable[[Example], NDArray[np.float32]]


@dataclass(frozen=True)
class Judgement:
    """Scores and metrics of one scorer, one row per example.

    ``table`` has the columns example_id (String), scores (List(Float32), in candidate order), labels (List(Float32))
    and one Float64 column per metric.
    """

    name: str
    table: pl.DataFrame

    def values(self, metric: str = "ndcg@10") -> NDArray[np.float64]:
        return self.table[metric].to_numpy()

    def interval(self, metric: str = "ndcg@10", samples: int = BOOTSTRAP_SAMPLES) -> Interval:
        return interval(self.values(metric), samples)

    def first(self, examples: int) -> "Judgement":
        """The same of the first examples alone."""
        return Judgement(self.name, self.table.head(examples))

    @property
    def example_ids(self) -> list[str]:
        return self.table["example_id"].to_list()


def judge(name: str, score: ExampleScorer, examples: Sequence[Example]) -> Judgement:
    """Score every example and compute its metrics.

    Raises:
        ArtifactError: a score is not a finite number (a broken conversion must not look like a ranking).
    """
    rows = []
    for number, example in enumerate(track(examples, f"judging {name}"), start=1):
        scores = np.asarray(score(example), dtype=np.float32)
        if scores.shape != (len(example.candidates),) or not np.isfinite(scores).all():
            raise ArtifactError(
                f"{name}: example {number} of {len(examples)} got scores of shape {scores.shape}, "
                f"{int((~np.isfinite(scores)).sum())} of them not finite; expected {len(example.candidates)} numbers"
            )
        rows.append(
            {"example_id": example.example_id, "scores": scores.tolist(), "labels": example.labels}
            | all_metrics(scores, example.labels)
        )
    schema = {"scores": pl.List(pl.Float32), "labels": pl.List(pl.Float32)} | dict.fromkeys(METRICS, pl.Float64)
    return Judgement(name, pl.DataFrame(rows, schema_overrides=schema))


def judge_scorer(
    name: str, scorer: Scorer, dataset: Dataset, examples: Sequence[Example], rules: TextRules
) -> Judgement:
    """Judge something that scores requests as clients send them: a checkpoint, an ONNX file, a live server."""
    requests = dict(
        zip((example.example_id for example in examples), requests_of(dataset, examples, rules), strict=True)
    )
    return judge(name, lambda example: scorer.score(requests[example.example_id]), examples)


def judge_artifact(name: str, folder: Path, dataset_folder: Path, cache: Path) -> Judgement:
    """Judge a model artifact on the test examples, or take the cached judgement of the same content.

    Args:
        name: how tables call it.
        folder: a checkpoint or ONNX artifact, published or still a draft.
        dataset_folder: the prepared dataset.
        cache: folder of judgements.

    Raises:
        ArtifactError: there is no dataset, or no model, in its folder.
    """
    return cached(
        name,
        judgement_file(folder, dataset_folder, cache),
        lambda: judge_test_examples(name, open_scorer(folder), dataset_folder, TextRules.load(folder)),
    )


def judgement_file(folder: Path, dataset_folder: Path, cache: Path) -> Path:
    """Where the judgement of a model artifact on the test examples is kept, whether there is one or not.

    Raises:
        ArtifactError: there is no dataset in its folder.
    """
    read_manifest(dataset_folder)
    return cache / f"{content_hash(folder)[:24]}-{examples_hash(dataset_folder, 'test')[:16]}.parquet"


def judge_test_examples(name: str, scorer: Scorer, dataset_folder: Path, rules: TextRules) -> Judgement:
    dataset = Dataset.read(dataset_folder)
    return judge_scorer(name, scorer, dataset, dataset.test, rules)


def cached(name: str, path: Path, make: Callable[[], Judgement]) -> Judgement:
    """Read a judgement from its file, or make and keep it."""
    if path.is_file():
        return Judgement(name, pl.read_parquet(path, glob=False))
    judgement = make()
    with whole_file(path) as draft:  # under torchrun every process may be making it
        judgement.table.write_parquet(draft)
    return judgement


def content_hash(folder: Path) -> str:
    """Identity of what scores: weights, graphs or their shards, tokenizer and text rules, whatever else lies there.

    Raises:
        ArtifactError: no weights are there.
    """
    others = (folder / name for name in ("model.safetensors", NATIVE_FILE))
    weights = loaded_files(folder) + [path for path in others if path.is_file()]
    if is_sharded(folder):
        weights += sorted(path for path in folder.iterdir() if path.suffix in {".onnx", ".bin", ".safetensors"})
    if not weights:
        raise ArtifactError(f"{folder}: no model.safetensors, ONNX graph or shards in this folder")
    images = (f"{FOLDER}/{VECTORS_FILE}", f"{FOLDER}/{TABLE_FILE}")
    others = (folder / name for name in ("config.json", SHARDS_FILE, "tokenizer.json", "text.json", *images))
    return _hash_of([*weights, *(path for path in others if path.is_file())])


def examples_hash(dataset_folder: Path, split: str) -> str:
    """Identity of what is scored: the examples of a split, and the items whose texts are read."""
    return _hash_of([dataset_folder / f"{split}.parquet", dataset_folder / "items.parquet"])


def _hash_of(files: Sequence[Path]) -> str:
    hashes = [f"{path.name}:{sha256_file(path)}" for path in files]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
