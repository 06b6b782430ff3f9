"""What a build has to recommend with, as flags of the gateway: catalogue and blend beside the served repository.

They were recorded together (``artifacts/record_builds.py``), so whoever serves a build's repository finds the catalogue
and the blend of the same build beside it. What users do outlives builds, so the store and the log of events lie in the
recipe's folder:

    artifacts/shop/served/catalogue, blend      of the build that is served
    artifacts/shop/store/store.db               profiles, items that changed, pages; unless another store is named
    artifacts/shop/events/                      the training log
    artifacts/shop/rules.toml                   rules, where somebody wrote them
"""

from dataclasses import dataclass
from pathlib import Path

from tritonrank.artifacts import MANIFEST
from tritonrank.artifacts.builds import BUILDS
from tritonrank.artifacts.named import BLEND, CATALOGUE

NEEDED = ("bm25s", "lightgbm", "onnxruntime", "pyarrow", "Stemmer", "tokenizers", "usearch")
"""Packages that recommending needs beside those of the gateway."""
INSTALL = "pip install 'tritonrank[gateway,recommend]'"
STORE = Path("store", "store.db")
EVENTS = "events"
RULES = "rules.toml"
DATASET = "dataset"
SOMEBODY = "user-00001"


@dataclass(frozen=True)
class Recommending:
    """Where a recipe's recommendations come from and go to.

    Attributes:
        root: ``artifacts/<recipe>``.
        store: URL; empty: the recipe's own SQLite file.
        rules: a file; None: the recipe's own, where there is one.
    """

    root: Path
    store: str = ""
    rules: Path | None = None

    @classmethod
    def of(cls, repository: Path, store: str = "", rules: Path | None = None) -> "Recommending":
        """For a repository in a recipe's folder, or in one of its builds."""
        build = repository.resolve().parent
        return cls(build.parents[1] if build.parent.name == BUILDS else build, store, rules)

    @property
    def store_file(self) -> Path:
        """The recipe's own SQLite file."""
        return self.root.resolve() / STORE

    def flags(self, repository: Path) -> list[str]:
        """What the gateway in front of a repository is told; nothing where its build has no catalogue."""
        build = repository.resolve().parent
        if not has_catalogue(repository):
            return []
        flags = ["--catalogue", str(build / CATALOGUE), "--events-log", str(self.root.resolve() / EVENTS)]
        flags += ["--store", self.store or f"sqlite:{self.store_file}"]
        if (build / BLEND / MANIFEST).is_file():
            flags += ["--blend", str(build / BLEND)]
        rules = self.rules or (self.root / RULES)
        return [*flags, "--rules", str(rules.resolve())] if self.rules or rules.is_file() else flags


def example_user(root: Path) -> str:
    """Somebody of the data that a recipe was built from, for a command to try; a made up id where there is none."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(root / DATASET / "test.parquet") as table:
            return str(next(table.iter_batches(batch_size=1, columns=["user_id"]))["user_id"][0].as_py())
    except (OSError, StopIteration, ArrowException, KeyError):
        return SOMEBODY


def has_catalogue(repository: Path) -> bool:
    """Whether the build of a repository can recommend."""
    return (repository.resolve().parent / CATALOGUE / MANIFEST).is_file()
