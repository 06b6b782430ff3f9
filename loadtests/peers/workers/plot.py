"""results.json -> a picture: candidates per second (log axis) against NDCG@10. Runs in the plot environment.

python -m loadtests.peers.workers.plot RESULTS.json PICTURE.svg
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

LABEL_OFFSETS = (9, -14, 20, -25)
"""Points: neighbours in speed often have the same quality, so their labels go to different heights."""
COLOURS = {"peer": "#7a7a7a", "ours": "#2a7f3f"}


def main(results: Path, picture: Path) -> None:
    matplotlib.rcParams["svg.hashsalt"] = "peers"  # the same picture for the same results
    systems = [s for s in json.loads(results.read_text(encoding="utf-8"))["systems"] if "failed" not in s]
    systems.sort(key=lambda system: system["saturation"]["candidates_per_second"])
    figure, axes = plt.subplots(figsize=(9, 5))
    for number, system in enumerate(systems):
        speed, quality = system["saturation"]["candidates_per_second"], system["quality"]["ndcg@10"]
        colour = COLOURS[system["kind"]]
        axes.scatter(speed, quality, color=colour, s=36, zorder=3)
        side = LABEL_OFFSETS[number % len(LABEL_OFFSETS)]
        axes.annotate(
            system["name"], (speed, quality), xytext=(0, side), textcoords="offset points", ha="center", fontsize=8,
            color=colour,
        )  # fmt: skip
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("candidates per second at saturation (log)")
    axes.set_ylabel("NDCG@10")
    axes.margins(x=0.18, y=0.15)
    axes.grid(True, which="both", alpha=0.25)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
