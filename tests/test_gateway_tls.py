"""TLS at the gateway: callers' certificates, renewed files, and the private port."""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from authorities import Authority
from gateways import RunningGateway, running_gateway
from misbehaving_server import MisbehavingServer
from tritonrank_client import TLS, RankClient, Unavailable
from tritonrank_gateway.certificates import ServerCertificates
from tritonrank_gateway.settings import GatewaySettings

PATIENCE_SECONDS = 20.0
BODY = {"query": "q", "items": ["a", "bb"]}


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority.made("ours")


@pytest.fixture(scope="module")
def theirs() -> Authority:
    return Authority.made("theirs")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ours: Authority) -> Path:
    return ours.write(tmp_path_factory.mktemp("server"), "gateway")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, server: Path) -> Iterator[RunningGateway]:
    triton = MisbehavingServer()
    flags = (
        "--tls-certificate", str(server / "tls.crt"), "--tls-key", str(server / "tls.key"),
        "--tls-client-ca", str(server / "ca.crt"), "--tls-metrics",
    )  # fmt: skip
    try:
        with running_gateway(triton.urls["grpc"], tmp_path_factory.mktemp("run"), *flags) as running:
            yield running
    finally:
        triton.close()


def asked(gateway: RunningGateway, ca: bytes, shown: Path | None) -> int:
    """The status of a ranking; 0 where the connection was refused."""
    context = ssl.create_default_context(cadata=ca.decode())
    if shown is not None:
        context.load_cert_chain(shown / "tls.crt", shown / "tls.key")
    try:
        with httpx.Client(base_url=gateway.url, verify=context, timeout=10) as http:
            return http.post("/v1/rank", json=BODY).status_code
    except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError):
        return 0


def presented(gateway: RunningGateway, shown: Path, url: str = "") -> bytes:
    """The certificate that a new connection gets, in DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(shown / "tls.crt", shown / "tls.key")
    address = urlsplit(url or gateway.url)
    with (
        socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=10) as plain,
        context.wrap_socket(plain) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def test_only_a_certificate_of_our_authority_opens(
    gateway: RunningGateway, ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    assert asked(gateway, ours.pem, ours.write(tmp_path / "ours")) == 200
    refused = {
        "none": None,
        "another authority's": theirs.write(tmp_path / "theirs"),
        "expired": ours.write(tmp_path / "expired", days=-1),
        "of the same name": Authority.made("ours").write(tmp_path / "same"),
    }
    for name, shown in refused.items():
        assert asked(gateway, ours.pem, shown) == 0, name
    assert asked(gateway, theirs.pem, ours.write(tmp_path / "ours")) == 0  # the gateway's own is looked at, too
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(gateway.url.replace("https", "http") + "/v1/rank", json=BODY, timeout=10)


def test_our_client_shows_its_certificate(
    gateway: RunningGateway, ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    url = gateway.url.replace("https", "gateway+https")
    shown = ours.write(tmp_path / "ours")
    own = {"private_key": shown / "tls.key", "certificate_chain": shown / "tls.crt"}
    with RankClient(url, tls=TLS(root_certificates=shown / "ca.crt", **own)) as client:
        assert len(client.rank(query="q", items=["a", "bb"]).ranking) == 2
    for tls in (
        TLS(root_certificates=shown / "ca.crt"),
        TLS(root_certificates=theirs.write(tmp_path / "x") / "ca.crt"),
    ):
        with RankClient(url, tls=tls, timeout=1) as client, pytest.raises(Unavailable):
            client.rank(query="q", items=["a", "bb"])


def test_the_private_port_asks_for_no_certificate_and_for_the_key(gateway: RunningGateway, ours: Authority) -> None:
    assert gateway.metrics_url.startswith("https://")
    context = ssl.create_default_context(cadata=ours.pem.decode())
    with httpx.Client(base_url=gateway.metrics_url, verify=context, timeout=10) as http:
        assert http.get("/health/live").status_code == 200
        assert http.put("/adapt", json={}).status_code == 403


def test_renewed_files_are_used_without_a_restart(
    gateway: RunningGateway, server: Path, ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    """Last of the gateway of this module: it is left with another authority."""
    caller, other = ours.write(tmp_path / "ours"), theirs.write(tmp_path / "theirs")
    before = presented(gateway, caller)
    ours.write(server, "gateway, renewed")
    eventually(lambda: presented(gateway, caller) != before)
    eventually(lambda: presented(gateway, caller, gateway.metrics_url) != before)
    renewed = presented(gateway, caller)
    (server / "tls.key").write_bytes((other / "tls.key").read_bytes())  # of another certificate
    eventually(lambda: "former ones stay" in gateway.log)
    assert presented(gateway, caller) == renewed
    theirs.write(server, "gateway")
    eventually(lambda: asked(gateway, theirs.pem, other) == 200)
    assert asked(gateway, theirs.pem, caller) == 0


def eventually(holds: object) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_files_that_do_not_fit_are_named_at_the_start(ours: Authority, theirs: Authority, tmp_path: Path) -> None:
    one, other = ours.write(tmp_path / "one"), theirs.write(tmp_path / "other")
    with pytest.raises(ValueError, match="--tls-key") as error:
        ServerCertificates(one / "tls.crt", other / "tls.key")
    assert str(one / "tls.crt") in str(error.value)
    with pytest.raises(ValueError, match="--tls-client-ca"):
        ServerCertificates(one / "tls.crt", one / "tls.key", one / "tls.key")


@pytest.mark.parametrize("missing", ["ca.crt", "tls.key", "tls.crt"])
def test_a_folder_for_triton_without_a_file_is_named(ours: Authority, tmp_path: Path, missing: str) -> None:
    folder = ours.write(tmp_path / "triton")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match="--triton-tls") as error:
        GatewaySettings(triton_tls=folder)
    assert missing in str(error.value)


@pytest.mark.parametrize("field", ["tls_client_ca", "tls_metrics", "triton_tls_name"])
def test_settings_that_need_another_say_which(ours: Authority, tmp_path: Path, field: str) -> None:
    given = {"tls_client_ca": ours.write(tmp_path / "x") / "ca.crt", "tls_metrics": True, "triton_tls_name": "triton"}
    with pytest.raises(ValueError, match="--" + field.replace("_", "-")) as error:
        GatewaySettings(**{field: given[field]})  # type: ignore[arg-type]
    assert "beside it" in str(error.value)
