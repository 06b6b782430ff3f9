"""What kind of file it is, and its bytes where it is compressed."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
}
PACKED = (".gz", ".zst")
READABLE = "expected .csv, .tsv, .txt, .jsonl or .ndjson (also .gz or .zst of these), or .parquet"


def kind_of(file: Path) -> str:
    """``csv``, ``json lines``, ``parquet``, or nothing; Athena and Hive write Parquet without an ending."""
    suffix = file.suffix.lower()
    if suffix in PACKED:
        kind = KINDS.get(Path(file.stem).suffix.lower(), "")
        return "" if kind == "parquet" else kind
    if suffix in KINDS:
        return KINDS[suffix]
    with file.open("rb") as opened:
        return "parquet" if not suffix and opened.read(4) == b"PAR1" else ""


def is_packed(file: Path) -> bool:
    return file.suffix.lower() in PACKED


def read_unpacked(file: Path) -> bytes:
    """All of the file's bytes, unpacked where it is .gz or .zst.

    Raises:
        OSError: as ``open_unpacked``; also for a .zst that was cut off, whose reader just ends.
    """
    if file.suffix.lower() != ".zst":
        with open_unpacked(file) as opened:
            return opened.read()
    import zstandard

    rest, parts = file.read_bytes(), []
    while rest:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(rest))
        except zstandard.ZstdError as error:
            raise OSError(0, f"damaged .zst file: {error}") from None
        if not frame.eof:
            raise OSError(0, "damaged .zst file: it ends in the middle")
        rest = frame.unused_data
    return b"".join(parts)


@contextmanager
def open_unpacked(file: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where it is .gz or .zst.

    Raises:
        OSError: it cannot be read, or is damaged where it is compressed.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(file, "rb") as unpacked:
                yield cast(IO[bytes], unpacked)
        elif suffix == ".zst":
            import zstandard  # not above: most shops' files are not compressed with it

            try:
                with zstandard.open(file, "rb") as opened:
                    yield opened
            except zstandard.ZstdError as error:
                raise OSError(0, f"damaged .zst file: {error}") from None
        else:
            with file.open("rb") as opened:
                yield opened
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OSError(0, f"damaged .gz file: {error}") from None
