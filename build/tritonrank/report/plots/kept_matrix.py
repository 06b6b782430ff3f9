"""What pruning left of each layer, as one plot: its attention heads and its FFN neurons."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tritonrank.report.plots.svg import drawing, text

WIDTH = 360
NEURON_CELLS = 48


@dataclass(frozen=True)
class LayerParts:
    """What stayed of one layer of the unpruned ranker; of a layer that was removed no head did."""

    layer: int
    heads: Sequence[int]
    neurons: Sequence[int]


def kept_matrix(layers: Sequence[LayerParts], heads: int, neurons: int) -> Markup:
    """One row per layer: a square per attention head, and a strip whose cells are as full as neurons stayed in them.

    Args:
        layers: all of the unpruned ranker.
        heads, neurons: how many each layer had.
    """
    left, row = 50, 24
    square = min(16.0, 130 / max(1, heads))
    strip_start = left + heads * square + 14
    cells = min(NEURON_CELLS, neurons)
    cell = (WIDTH - 56 - strip_start) / cells
    in_cell = Counter(neuron * cells // neurons for neuron in range(neurons))
    drawn = [
        text("", left, 11, f"{heads} heads"),
        text("", strip_start, 11, f"{neurons:,} FFN neurons"),
    ]
    for number_, parts in enumerate(layers):
        y = 18 + number_ * row
        gone = not parts.heads
        drawn.append(text("" if gone else "label", 0, y + 13, f"layer {parts.layer}"))
        kept_heads = set(parts.heads)
        for head in range(heads):
            is_kept = head in kept_heads
            drawn.append(
                f'<rect class="{"fill1" if is_kept else "cut"}" x="{left + head * square + 1:.2f}" y="{y + 1}" '
                f'width="{square - 2:.2f}" height="14"><title>layer {parts.layer}, head {head}: '
                f"{'kept' if is_kept else 'removed'}</title></rect>"
            )
        there = Counter(neuron * cells // neurons for neuron in parts.neurons)
        drawn.append(
            f'<rect class="cut" x="{strip_start:.2f}" y="{y + 1}" width="{cell * cells:.2f}" height="14">'
            f"<title>layer {parts.layer}: {len(parts.neurons)} of {neurons} neurons kept</title></rect>"
        )
        for place, kept in there.items():
            height = 14 * kept / in_cell[place]
            drawn.append(
                f'<rect class="fill3" x="{strip_start + place * cell:.2f}" y="{y + 15 - height:.2f}" '
                f'width="{cell:.2f}" height="{height:.2f}"/>'
            )
        drawn.append(text("", WIDTH, y + 13, "removed" if gone else f"{len(parts.neurons):,}", "end"))
    return drawing(drawn, WIDTH, 20 + len(layers) * row, "what stayed of each layer")
