"""One function for whatever can rank: a Triton, a gateway, or an artifact on this machine."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._async_client import AsyncRankClient
from ._client import RankClient
from ._options import (
    DEFAULT_LARGEST_ANSWER_BYTES,
    DEFAULT_MODEL,
    DEFAULT_TIMEOUT_SECONDS,
    GATEWAY,
    TLS,
    KeepAlive,
    Retry,
)


def open(
    target: str | Path,
    *,
    model: str = DEFAULT_MODEL,
    model_version: str = "",
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    headers: Mapping[str, str] | None = None,
    retry: Retry | None = None,
    tls: TLS | None = None,
    keep_alive: KeepAlive | None = None,
    largest_answer_bytes: int = DEFAULT_LARGEST_ANSWER_BYTES,
    cancel_abandoned: bool = False,
    threads: int = 0,
) -> RankClient:
    """The client for a target; its methods and results are the same for each, and so are its errors.

    - `grpc://`, `grpcs://`: a Triton.
    - `http://`, `https://`: a Triton or a gateway. Which of them is asked once, now: a Triton answers `/v2` with its
      name. `gateway+http://` and `gateway+https://` say that it is a gateway, and nothing is asked.
    - a path, or `file:///...`: an artifact in this process, without a server: a build (`artifacts/NAME`), its
      `repository`, or the folder of one stage (`onnx`, `int8`). It brings the code that it ranks with, which runs
      with the rights of this process. Needs numpy, tokenizers and onnxruntime; texts, limits and order are those of
      the server, and one request is computed at a time.

    Args:
        target: what to ask.
        model, model_version, timeout, headers, retry, tls, keep_alive, largest_answer_bytes,
            cancel_abandoned: as for `RankClient`.
        threads: of a folder: cores that one request takes; 0 is all that this process may use.

    Raises:
        ValueError: an argument is wrong, or the folder holds no artifact that can rank here; the message names it.
        ModuleNotFoundError: what a folder's ranker needs is not installed; the message has the command.
        Unavailable, DeadlineExceeded: nobody answered whether there is a Triton or a gateway.
    """
    options: dict[str, Any] = dict(  # noqa: C408 - as they are passed on
        model=model,
        model_version=model_version,
        timeout=timeout,
        headers=headers,
        retry=retry,
        tls=tls,
        keep_alive=keep_alive,
        largest_answer_bytes=largest_answer_bytes,
        cancel_abandoned=cancel_abandoned,
        threads=threads,
    )
    return RankClient(_url_of(target, options), **options)


async def open_async(target: str | Path, **options: Any) -> AsyncRankClient:
    """The asyncio client for a target; takes the arguments of `open`, and raises what it raises.

    The loop goes on while a folder is loaded or a server is asked what it is.
    """
    url = await asyncio.to_thread(_url_of, target, options)
    client = AsyncRankClient(url, **options)
    await client._load()
    return client


def _url_of(target: str | Path, options: Mapping[str, Any]) -> str:
    """The URL that says all: a path as a file URL, a gateway as one."""
    if isinstance(target, Path) or "://" not in target:
        return Path(target).absolute().as_uri()
    if not target.startswith(("http://", "https://")):
        return target
    with RankClient(target, **options) as asking:
        return target if asking._is_triton() else GATEWAY + target
