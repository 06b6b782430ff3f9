"""TLS of Triton's gRPC port: what a folder holds, and the options that say so.

Triton's HTTP port knows no TLS. Where gRPC is encrypted HTTP stays on loopback, for the checks of this machine, and is
nobody else's. Triton reads the files at its start, and never again.
"""

from pathlib import Path

from tritonrank.errors import ServerError

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
"""As Kubernetes' and cert-manager's secrets call them."""


def check_tls(folder: Path) -> None:
    """Look whether the files are there.

    Raises:
        ServerError: one is not, or cannot be read.
    """
    for name in (CERTIFICATE, KEY):
        path = folder / name
        try:
            path.read_bytes()
        except OSError as error:
            raise ServerError(
                f"--grpc-tls {folder}: {name} cannot be read ({error.strerror}). The folder needs {CERTIFICATE} and "
                f"{KEY} in PEM; with {AUTHORITY} beside them callers must show a certificate by that authority"
            ) from None


def tls_options(folder: Path) -> list[str]:
    """Arguments of tritonserver."""
    options = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={folder / CERTIFICATE}",
        f"--grpc-server-key={folder / KEY}",
    ]
    authority = folder / AUTHORITY
    return [*options, "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={authority}"] if authority.is_file() else options
