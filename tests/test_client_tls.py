"""TLS of the client over gRPC: another name in the certificate, and files that are renewed while it runs."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from authorities import Authority
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonrank_client import TLS, AsyncRankClient, RankClient
from tritonrank_client.cli import app
from typer.testing import CliRunner

PATIENCE_SECONDS = 20.0


class Live(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated, without types
    """A Triton that says that it lives."""

    def ServerLive(self, request: object, context: object) -> object:  # noqa: N802 - gRPC's name
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)


@contextmanager
def listening(folder: Path, port: int = 0) -> Iterator[int]:
    """A gRPC server with the certificates of a folder that asks for one by the same authority; its port."""
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Live(), server)
    pair = (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes()
    credentials = grpc.ssl_server_credentials([pair], (folder / "ca.crt").read_bytes(), require_client_auth=True)
    taken = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield taken
    finally:
        server.stop(0).wait()


def shown(folder: Path, name: str = "") -> TLS:
    return TLS(
        root_certificates=folder / "ca.crt",
        certificate_chain=folder / "tls.crt",
        private_key=folder / "tls.key",
        server_name=name,
    )


def test_the_name_in_the_certificate_may_be_another_than_in_the_url(tmp_path: Path) -> None:
    ours = Authority.made("ours")
    caller, server = ours.write(tmp_path / "caller"), ours.write(tmp_path / "server", addresses=False)
    with listening(server) as port:
        for name, lives in (("triton.example", True), ("", False), ("other.example", False)):
            with RankClient(f"grpcs://127.0.0.1:{port}", tls=shown(caller, name)) as client:
                assert client.health(timeout=2).live == lives, name


async def test_renewed_files_are_taken_by_the_next_connection(tmp_path: Path) -> None:
    ours, theirs = Authority.made("ours"), Authority.made("theirs")
    caller, server = ours.write(tmp_path / "caller"), ours.write(tmp_path / "server")
    with listening(server) as port:
        url = f"grpcs://127.0.0.1:{port}"
        with RankClient(url, tls=shown(caller)) as client:
            assert client.health(timeout=5).live
            async with AsyncRankClient(url, tls=shown(caller)) as other:
                assert (await other.health(timeout=5)).live
                theirs.write(caller)  # as both sides get a new authority
                deadline = time.monotonic() + PATIENCE_SECONDS
                while client.health(timeout=1).live or (await other.health(timeout=1)).live:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                ours.write(caller)
                while not (client.health(timeout=1).live and (await other.health(timeout=1)).live):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)


def test_a_missing_certificate_and_a_foreign_one_are_refused(tmp_path: Path) -> None:
    ours, theirs = Authority.made("ours"), Authority.made("theirs")
    server = ours.write(tmp_path / "server")
    foreign, expired = theirs.write(tmp_path / "foreign"), ours.write(tmp_path / "expired", days=-1)
    (foreign / "ca.crt").write_bytes(ours.pem)
    with listening(server) as port:
        for tls in (TLS(root_certificates=server / "ca.crt"), shown(foreign), shown(expired)):
            with RankClient(f"grpcs://127.0.0.1:{port}", tls=tls) as client:
                assert not client.health(timeout=1).live


def test_the_command_takes_a_folder(tmp_path: Path) -> None:
    ours = Authority.made("ours")
    caller, server = ours.write(tmp_path / "caller"), ours.write(tmp_path / "server")
    with listening(server) as port:
        asked = ["health", "--url", f"grpcs://127.0.0.1:{port}", "--timeout", "5", "--root-certificates"]
        assert CliRunner().invoke(app, [*asked, str(caller)]).exit_code == 0
        assert CliRunner().invoke(app, [*asked, str(caller / "ca.crt")]).exit_code == 1
        (caller / "tls.key").unlink()
        assert "tls.key" in CliRunner().invoke(app, [*asked, str(caller)]).stderr


@pytest.mark.parametrize("file", ["ca.crt", "tls.key"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, file: str) -> None:
    folder = Authority.made("ours").write(tmp_path / "caller")
    (folder / file).unlink()
    with pytest.raises(ValueError, match="no such file"):
        shown(folder)
