"""Whom a client trusts over HTTPS, and what it shows: files that may be replaced while it runs."""

import ssl
import time

from ._options import TLS, Settings

LOOK_SECONDS = 1.0
"""Between two looks at the files."""


class Trust:
    """The TLS context of a client for new connections.

    It is made when it is first needed, so that a wrong file is an error of that call, and anew when a file was
    replaced. Files that do not fit together then, as in the middle of being replaced, leave the former context.
    """

    def __init__(self, settings: Settings) -> None:
        self._tls = settings.tls or TLS()
        self.server_name = self._tls.server_name or settings.host
        self._context: ssl.SSLContext | None = None
        self._changes = Changes(self._tls)

    def context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = self._made()
        elif self._changes.look():
            try:
                self._context = self._made()
            except (OSError, ssl.SSLError):
                self._changes.look_again()
        return self._context

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._tls.root_certificates)
        if not self._tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._tls.certificate_chain is not None:
            context.load_cert_chain(self._tls.certificate_chain, self._tls.private_key)
        return context


class Changes:
    """Notices that files were replaced; asked as often as one likes, it looks once a second."""

    def __init__(self, tls: TLS) -> None:
        self._tls = tls
        self._seen = tls.state()
        self._looked_at = time.monotonic()

    def look(self) -> bool:
        """Whether they are others than at the last look."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = now
        before, self._seen = self._seen, self._tls.state()
        return self._seen != before

    def look_again(self) -> None:
        """What was seen could not be used: the next look says that it is new."""
        self._seen = ()
