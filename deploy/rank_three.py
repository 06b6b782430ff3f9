"""The client's side of deploy/compose.yaml: wait until the server is ready, rank three requests, show them.

The requests are the repository's own (golden.json), so they fit whatever model is served. Needs the thin client only.
Usage: rank_three.py GOLDEN_JSON (the server's address is in TRITONRANK_URL)
"""

import json
import os
import sys
import time
from pathlib import Path

from tritonrank_client import RankClient, RankError

REQUESTS = 3
SHOWN = 3
PATIENCE_SECONDS = 60.0


def main(golden_file: Path, url: str) -> None:
    """Rank the first requests of the file and print the best candidates of each.

    Raises:
        RankError: the server did not become ready, or did not answer.
    """
    cases = json.loads(golden_file.read_text(encoding="utf-8"))["cases"][:REQUESTS]
    with RankClient(url, timeout=10) as client:
        wait_until_ready(client)
        for number, case in enumerate(cases, start=1):
            result = client.rank(query=case["query"], history=case["history"], items=case["items"])
            milliseconds = 1e3 * result.seconds
            print(f"\nRequest {number}: {len(case['items'])} candidates in {milliseconds:.1f} ms", end="")
            print(f", model {result.artifact}\n  query: {case['query'] or '(none)'}")
            for ranked in result.ranking[:SHOWN]:
                print(f"  {ranked.score:8.4f}  {case['items'][ranked.index]}")


def wait_until_ready(client: RankClient) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (health := client.health()):
        if time.monotonic() > deadline:
            raise RankError(f"not ready after {PATIENCE_SECONDS:g} s: {health.reason}")
        time.sleep(0.5)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), os.environ.get("TRITONRANK_URL", "grpc://127.0.0.1:8001"))
    except RankError as error:
        sys.exit(f"{type(error).__name__}: {error}")
