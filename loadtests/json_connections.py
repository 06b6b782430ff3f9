"""Bodies of JSON over kept HTTP connections, as an application without a client library sends them."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, RankError, ServerFault, Unavailable

ERRORS: dict[int, type[RankError]] = {429: Overloaded, 503: Unavailable, 504: DeadlineExceeded}
OVERLOADED = "refused as a whole"
"""How the gateway words a refusal for want of room; vLLM's status code for that is 503."""

CLOSED_MEANWHILE = (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected)
"""What a kept connection meets that the server has closed for want of requests: another one is taken, as clients do."""


@dataclass(frozen=True)
class Told:
    """An answer with status 200."""

    body: bytes
    artifact: str
    sent_bytes: int
    level: str = "0"
    """at which a gateway ranked; 0 is in full"""


class JsonConnections:
    """Connections to one address, used by whoever comes next.

    Args:
        url: http://HOST:PORT.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._free: list[http.client.HTTPConnection] = []

    def post(self, path: str, body: Any, seconds: float) -> Told:
        """Send a body, wait for the answer; one attempt.

        Raises:
            RankError: there is none, or a refusal.
        """
        sent = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-Deadline-Ms": str(max(1, round(1_000 * seconds)))}
        while True:
            is_kept = bool(self._free)
            connection = self._free.pop() if is_kept else http.client.HTTPConnection(self._host, self._port)
            connection.timeout = seconds
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            try:
                connection.request("POST", path, sent, headers)
                answer = connection.getresponse()
                told = answer.read()
                break
            except TimeoutError as error:
                connection.close()
                raise DeadlineExceeded(f"no answer within {seconds:.2f} s") from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_kept and isinstance(error, CLOSED_MEANWHILE):
                    continue
                raise Unavailable(f"the connection broke: {type(error).__name__} {error}") from error
        self._free.append(connection)
        if answer.status != 200:
            raise _error(answer.status, told)
        return Told(told, answer.headers.get("X-Artifact", ""), len(sent), answer.headers.get("X-Adapt-Level", "0"))


def _error(status: int, told: bytes) -> RankError:
    text = told[:300].decode("utf-8", "replace")
    kind = Overloaded if OVERLOADED in text else ERRORS.get(status)
    return (kind or (InvalidRequest if 400 <= status < 500 and status != 424 else ServerFault))(f"{status}: {text}")
