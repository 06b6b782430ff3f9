"""steward: loads and unloads models of this server, for the process that watches over it and nobody else.

Triton's own API for that is closed to everybody (``serve/server_command.py``): what opened it would have to stand in
the server's arguments, where every account of the machine reads it. This model does it from inside. It is asked over a
socket in the server's run folder, which only the server's account can open: one line of JSON, one line back.

    {"do": "load", "model": "ranker-b"} -> {} or {"error": "why not"}
"""

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path

import triton_python_backend_utils as pb_utils

SOCKET = "steward.sock"
"""In the working folder of the server, which is its run folder; ``serve/versions/control.py`` knows it too."""
LONGEST_LINE = 10_000


class TritonPythonModel:
    def initialize(self, args):
        self.socket = socket.socket(socket.AF_UNIX)
        place = Path.cwd() / SOCKET
        self.socket.bind(str(place))
        place.chmod(0o600)
        self.socket.listen()
        threading.Thread(target=self._listen, name="steward", daemon=True).start()

    def finalize(self):
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def execute(self, requests):
        refused = pb_utils.TritonError("steward: answers no requests", pb_utils.TritonError.INVALID_ARG)
        return [pb_utils.InferenceResponse(error=refused) for _ in requests]

    def _listen(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._do, args=(connection,), daemon=True).start()

    def _do(self, connection):
        with connection, suppress(OSError), connection.makefile("rwb") as lines:
            try:
                asked = json.loads(lines.readline(LONGEST_LINE))
                if asked["do"] == "load":
                    pb_utils.load_model(model_name=asked["model"])
                else:
                    pb_utils.unload_model(model_name=asked["model"], unload_dependents=False)
                told = {}
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked has to know
                told = {"error": f"{error}" or type(error).__name__}
            lines.write(json.dumps(told).encode() + b"\n")
