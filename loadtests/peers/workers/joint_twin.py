"""A joint checkpoint as large as the base of a ranker of ours, for the peers where no joint ranker was trained.

    python -m loadtests.peers.workers.joint_twin TEACHER OUTPUT

Its encoder is the recipe's base and its head is random: it says how fast a peer is, and nothing about how well it
ranks.
"""

import json
import shutil
import sys
from pathlib import Path

from tritonrank.rankers.pretrained import load_ranker


def main(teacher: Path, output: Path) -> None:
    model = json.loads((teacher / "manifest.json").read_text(encoding="utf-8"))["settings"]["model"]
    load_ranker(model["base"], model["revision"], new_head=True).save_pretrained(output)
    for path in teacher.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "vocab", "text.")):
            shutil.copyfile(path, output / path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
