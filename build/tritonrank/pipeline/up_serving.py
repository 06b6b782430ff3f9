"""Serve what ``tritonrank up`` was asked for: Triton under its supervisor, the gateway before it, one URL."""

import json
import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.artifacts import MANIFEST, read_manifest
from tritonrank.artifacts.named import REPOSITORY
from tritonrank.artifacts.store.urls import is_store
from tritonrank.errors import ArtifactError
from tritonrank.pipeline.up import DEADLINE_MS, UpOptions, make_from_checkpoint, slug
from tritonrank.serve.gateway_child import INSTALL, GatewayChild, missing_packages
from tritonrank.serve.gateway_start import gateway_for
from tritonrank.serve.recommending import NEEDED, Recommending, example_user, has_catalogue
from tritonrank.serve.running import RunningServer, run_until_signalled
from tritonrank.serve.servable import repository_of
from tritonrank.serve.serving import example_command, golden_requests, serving
from tritonrank.serve.store_source import served_source

EXAMPLE_DOCUMENTS = 2
EXAMPLE_CHARACTERS = 80

console = Console()


@dataclass(frozen=True)
class UpPorts:
    """Where to listen."""

    host: str = "127.0.0.1"
    port: int = 8080
    http_port: int = 0
    grpc_port: int = 0


@dataclass(frozen=True)
class UpRecommending:
    """Where recommendations of a build come from and go to, where it is not in the recipe's own folder."""

    store: str = ""
    rules: Path | None = None


def serve_target(
    target: str,
    options: UpOptions,
    artifacts: Path,
    ports: UpPorts,
    told: UpRecommending = UpRecommending(),
) -> None:
    """Make what is missing, serve until Ctrl-C, and stop all in order.

    Args:
        target: a hub id, a checkpoint's folder, a folder that was built, or a model store's URL.
        options: how to make it.
        artifacts: the folder of all artifacts.
        ports: where to listen.
        told: for a build with a catalogue.

    Raises:
        TritonRankError: it cannot be made or served.
    """
    started = time.monotonic()
    named = served_source(target) if is_store(target) else None
    root = named.folder if named else built_folder(target)
    if root is None:
        root = make_from_checkpoint(target, options, artifacts)
        _check_golden_tokens(root)
    missing = missing_packages()
    triton: dict[str, Any] = {"http_port": ports.http_port, "grpc_port": ports.grpc_port, "metrics_port": 0}
    followed = named.followed if named else None
    with serving(root, None, followed=followed, **triton) as server, ExitStack() as stack:
        if missing:
            _say_triton_alone(root, server, missing, started)
            run_until_signalled(server)
            return
        recommends = Recommending.of(server.server.repository, told.store, told.rules)
        if named:  # what users do outlives versions, and what is kept of a version is never written to
            recommends = Recommending(artifacts / named.model, told.store, told.rules)
        for note in named.notes if named else ():
            _say(note)
        name = named.model if named else slug(target)
        gateway = gateway_for(server, recommends, ports.port, ports.host, name, DEADLINE_MS / 1_000)
        stack.enter_context(gateway)
        _say_ready(root, recommends.root, gateway, started)
        run_until_signalled(gateway)


def built_folder(target: str) -> Path | None:
    """The folder of a build or a repository, if that is what was named; None for a checkpoint.

    Raises:
        ArtifactError: a recipe, or a build that is not finished.
    """
    folder = Path(target).expanduser()
    if folder.suffix in (".yaml", ".yml") and folder.is_file():
        repository_of(folder)  # says what to build, and what to serve then
    if (folder / REPOSITORY / MANIFEST).is_file():
        return folder
    if not (folder / MANIFEST).is_file():
        return None
    stage = read_manifest(folder).stage
    if stage == "assemble":
        return folder
    if (folder / "config.json").is_file():
        return None  # a checkpoint that a recipe made
    if (folder.parent / REPOSITORY / MANIFEST).is_file():
        return folder.parent
    raise ArtifactError(
        f"{target}: what the stage {stage} made; served is a whole build, or a checkpoint. Finish it: tritonrank build "
        "RECIPE"
    )


def _check_golden_tokens(root: Path) -> None:
    """Without torch: what reads the file here may be another release than when it was made."""
    from tritonrank_runtime.text import GOLDEN_TOKENS_FILE

    if (root / "served" / GOLDEN_TOKENS_FILE).is_file():
        from tritonrank.rankers.golden_rows import check_golden_tokens

        check_golden_tokens(root / "served")


def _say_ready(root: Path, recipe: Path, gateway: GatewayChild, started: float) -> None:
    query, documents = _example(root)
    body = json.dumps({"query": query, "documents": documents}, ensure_ascii=False)
    console.print(f"\n[bold]{gateway.url}[/]  (ready after {time.monotonic() - started:.1f} s)\n", highlight=False)
    _say(_curl(gateway.url, "/v1/rerank", body))
    if has_catalogue(repository_of(root)) and not missing_packages(NEEDED):
        body = json.dumps(
            {"user_id": example_user(recipe), "query": query, "size": 5},
            ensure_ascii=False,
        )
        _say(f"\nRecommend, and search for somebody:\n\n{_curl(gateway.url, '/v1/recommend', body)}")
        _say(f"\nSee it as a customer does: {gateway.url}/storefront/")
    _say(
        f"\nTry it in a browser: {gateway.url}/playground/\nJina, Cohere, TEI, vLLM and NIM clients take this URL. API "
        f"page: {gateway.url}/docs  metrics: {gateway.metrics_url}/metrics\n"
        f"Triton itself: {gateway.http_url} and {gateway.grpc_url}. Ctrl-C stops all."
    )


def _say_triton_alone(root: Path, server: RunningServer, missing: list[str], started: float) -> None:
    _say(
        f"\nThe gateway is not installed ({', '.join(missing)}), so Triton serves alone, without rerank dialects. To "
        f"have them: {INSTALL}\n\nHTTP  {server.http_url}\ngRPC  {server.grpc_url}  (ready after "
        f"{time.monotonic() - started:.1f} s)\n\n{example_command(root, server.grpc_url)}\n\nCtrl-C stops the server."
    )


def _curl(url: str, path: str, body: str) -> str:
    return f"curl {url}{path} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _example(root: Path) -> tuple[str, list[str]]:
    """A golden request that is short enough to read."""
    request, _ = golden_requests(repository_of(root))[0]
    documents = [text[:EXAMPLE_CHARACTERS] for text in request.items if text.strip()][:EXAMPLE_DOCUMENTS]
    return request.query or documents[0], documents
