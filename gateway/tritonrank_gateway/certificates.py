"""The gateway's own certificate and the authorities whose callers it lets in, read again when their files change.

Certificates live for weeks and gateways for longer, so whoever renews one (cert-manager, a cron job) only replaces the
files. Each new connection takes what is newest; one that is open keeps what it began with. Files that do not fit
together, as in the middle of being replaced, change nothing: the former ones stay, and that is said once.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

LOG = logging.getLogger("tritonrank_gateway")
LOOK_SECONDS = 1.0

Seen = tuple[tuple[int, int, int], ...]


class ServerCertificates:
    """The TLS side of a listening socket.

    Args:
        certificate: PEM file with the chain.
        key: PEM file.
        client_ca: PEM file with authorities: callers must show a certificate by one of them. None asks for none.
        watch: is told "loaded" or "failed" each time that changed files were read.

    Raises:
        ValueError: a file cannot be read, or they do not fit together; the message names the flags.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        watch: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._files = certificate, key, client_ca
        self._watch = watch
        self._seen = self._state()
        try:
            self._newest = self._read()
            self.context = self._read()
        except (OSError, ssl.SSLError) as error:
            named = f"--tls-certificate {certificate}, --tls-key {key}" + (
                f", --tls-client-ca {client_ca}" * bool(client_ca)
            )
            raise ValueError(f"{named}: no PEM files that fit together ({error.strerror or error})") from error
        # It is asked at the beginning of each handshake, whether the caller names a host or not.
        self.context.sni_callback = self._take_newest

    def look(self) -> None:
        """Read the files again if one was written, replaced or renamed."""
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._newest = self._read()
        except (OSError, ssl.SSLError) as error:
            self._watch("failed")
            LOG.error(
                "the certificate's files changed and do not fit together (%s); the former ones stay",
                type(error).__name__,
            )
        else:
            self._watch("loaded")
            LOG.warning("the certificate's files changed; new connections use them")

    async def keep(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def _take_newest(self, connection: ssl.SSLSocket | ssl.SSLObject, *_: object) -> None:
        connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        certificate, key, client_ca = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cafile=client_ca)
            # A session that is taken up again shows no certificate: one that expired meanwhile would still be let in.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context

    def _state(self) -> Seen:
        """Of all files; a link counts as what it leads to, as Kubernetes swaps the folder that secrets lead to."""
        state = []
        for path in self._files:
            try:
                found = path.stat() if path is not None else None
            except OSError:
                found = None
            state.append((0, 0, 0) if found is None else (found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(state)
