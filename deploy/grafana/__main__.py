"""python -m deploy.grafana: write the dashboards that Grafana reads; --check only says whether they are up to date."""

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import capacity, learning, quality, ranker, recommend, service
from deploy.grafana.board import Board

BOARDS = (service.BOARD, ranker.BOARD, quality.BOARD, recommend.BOARD, learning.BOARD, capacity.BOARD)
FOLDER = Path(__file__).parent / "dashboards"


def written(board: Board) -> str:
    """The dashboard's file."""
    return json.dumps(board.build(), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> str | None:
    """Write, or compare with what is there.

    Returns:
        what is wrong, and what to type; None where all is well.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    wanted = {FOLDER / f"{board.name}.json": written(board) for board in BOARDS}
    found = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    if parser.parse_args(arguments).check:
        wrong = sorted(path.name for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
        told = f"{FOLDER}: {', '.join(wrong)}: not what the code makes; type: python -m deploy.grafana"
        return told if wrong else None
    for path in found.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
