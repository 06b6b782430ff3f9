"""TLS of Triton's gRPC port: whom it lets in, and the gateway before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from authorities import Authority
from gateways import running_gateway
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ServerError
from tritonrank.serve.grpc_tls import check_tls
from tritonrank.serve.server_command import server_command
from tritonrank.serve.serving import serving
from tritonrank.serve.supervisor import SupervisedTriton
from tritonrank.serve.triton_install import TritonInstall
from tritonrank_client import TLS, RankClient, Unavailable

ITEMS = ["oak desk", "brass lamp", "garden chair"]


@dataclass(frozen=True)
class Guarded:
    """A Triton that asks for certificates of ours."""

    server: SupervisedTriton
    ours: Authority
    folder: Path

    @property
    def address(self) -> str:
        return urlsplit(self.server.grpc_url).netloc


@pytest.fixture(scope="module")
def guarded(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    ours, folder = Authority.made("ours"), tmp_path_factory.mktemp("tls")
    ours.write(folder / "server", "triton")
    with serving(workspace.repository, tls=folder / "server") as server:
        yield Guarded(server, ours, folder)


def shown(folder: Path) -> TLS:
    return TLS(
        root_certificates=folder / "ca.crt", certificate_chain=folder / "tls.crt", private_key=folder / "tls.key"
    )


@pytest.mark.slow
def test_only_a_certificate_of_our_authority_ranks(guarded: Guarded) -> None:
    url, theirs = guarded.server.grpc_url, Authority.made("theirs").write(guarded.folder / "theirs")
    assert url.startswith("grpcs://")
    caller = guarded.ours.write(guarded.folder / "caller")
    with RankClient(url, tls=shown(caller)) as client:
        assert len(client.rank(query="lamp", items=ITEMS).ranking) == len(ITEMS)
    expired = guarded.ours.write(guarded.folder / "expired", days=-1)
    (theirs / "ca.crt").write_bytes(guarded.ours.pem)
    for name, tls in {
        "none": TLS(root_certificates=caller / "ca.crt"),
        "another authority's": shown(theirs),
        "expired": shown(expired),
    }.items():
        with RankClient(url, tls=tls, timeout=1) as client, pytest.raises(Unavailable):
            client.rank(query=name, items=ITEMS)
    with RankClient(url.replace("grpcs", "grpc"), timeout=1) as client, pytest.raises(Unavailable):
        client.rank(query="in plain text", items=ITEMS)
    guarded.server.check()
    # Our own checks need no certificate: over loopback, in plain text, and nobody else reaches that.
    assert urlsplit(guarded.server.http_url).hostname == "127.0.0.1"


@pytest.mark.slow
def test_a_gateway_shows_its_certificate_to_triton(guarded: Guarded, tmp_path: Path) -> None:
    caller = guarded.ours.write(tmp_path / "gateway", "gateway")
    with running_gateway(guarded.address, tmp_path / "run", "--triton-tls", str(caller)) as gateway:
        answer = httpx.post(f"{gateway.url}/v1/rank", json={"query": "lamp", "items": ITEMS}, timeout=20)
        assert answer.status_code == 200, gateway.log
    Authority.made("theirs").write(caller)
    (caller / "ca.crt").write_bytes(guarded.ours.pem)
    flags = ("--triton-tls", str(caller), "--deadline-s", "1")
    with running_gateway(guarded.address, tmp_path / "refused", *flags) as gateway:
        answer = httpx.post(f"{gateway.url}/v1/rank", json={"query": "lamp", "items": ITEMS}, timeout=20)
        assert answer.status_code in (503, 504)


def command(tls: Path | None, tmp_path: Path, host: str = "0.0.0.0") -> list[str]:
    install = TritonInstall(executable=tmp_path, backends=tmp_path, caches=tmp_path, environment={}, options=())
    ports = {"http_port": 1, "grpc_port": 2, "metrics_port": 3}
    return server_command(
        install,
        repository=tmp_path,
        host=host,
        ports=ports,
        exit_timeout_seconds=1,
        shared_memory_prefix="x",
        tls=tls,
    )


def test_where_grpc_is_encrypted_http_is_on_loopback(tmp_path: Path) -> None:
    folder = Authority.made("ours").write(tmp_path / "tls")
    assert "--http-address=0.0.0.0" in command(None, tmp_path)
    with_authority = command(folder, tmp_path)
    assert {"--http-address=127.0.0.1", "--grpc-address=0.0.0.0", "--grpc-use-ssl=true"} <= set(with_authority)
    assert f"--grpc-root-cert={folder / 'ca.crt'}" in with_authority
    (folder / "ca.crt").unlink()
    assert "--grpc-use-ssl-mutual=true" not in command(folder, tmp_path)


def test_statistics_are_closed_where_other_machines_reach_the_server(tmp_path: Path) -> None:
    for host, is_closed in (("127.0.0.1", False), ("0.0.0.0", True), ("10.0.0.5", True)):
        closed = [one for one in command(None, tmp_path, host) if "-restricted-" in one]
        assert len(closed) == 2
        assert all(("statistics" in one) == is_closed for one in closed), (host, closed)
        assert all("model-repository" in one for one in closed)


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key"])
def test_a_missing_file_is_named_before_the_start(tmp_path: Path, missing: str) -> None:
    folder = Authority.made("ours").write(tmp_path / "tls")
    check_tls(folder)
    (folder / missing).unlink()
    with pytest.raises(ServerError, match="--grpc-tls") as error:
        check_tls(folder)
    assert missing in str(error.value)
