"""Triton as deployment tutorials set it up: one Python model with the tokenizer and ONNX Runtime in it.

    python -m loadtests.peers.workers.plain_triton FOLDER

FOLDER holds model.onnx, config and tokenizer. The tritonserver is the one that ours runs on, started in the same way,
so that the difference is in what it serves; that is why this file imports the pipeline.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tritonrank.serve.running import run_until_signalled
from tritonrank.serve.server import LocalTriton

REPOSITORY = Path(__file__).parents[1] / "plain_triton"


def main(model: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "repository"
        shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(model, repository / "plain" / "1" / "model")
        with LocalTriton(repository) as server:
            print(server.grpc_url, flush=True)
            run_until_signalled(server)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
