"""By what the cells of a text table are cut: comma, semicolon, tab or pipe, whatever the file is called."""

import csv
import io

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
ROWS_TRIED = 200


def find_separator(text: str) -> str:
    """The separator of a table by its first rows; a comma where nothing speaks for another.

    The right one cuts the header into several names and the rows into as many cells; a pipe in a name or a comma in a
    price does so in the header or in some rows alone.

    Args:
        text: the beginning of the file, from the header on; its last line may be cut.
    """
    lines = text.removeprefix("\ufeff").splitlines(keepends=True)
    whole = lines[:-1] if len(lines) > 1 and not lines[-1].endswith("\n") else lines
    scores = {}
    for separator in SEPARATORS:
        try:
            rows = list(csv.reader(io.StringIO("".join(whole[:ROWS_TRIED]), newline=""), delimiter=separator))
        except csv.Error:
            continue
        rows = [row for row in rows if row]
        if not rows or len(rows[0]) < 2:
            continue
        fitting = sum(len(row) == len(rows[0]) for row in rows[1:])
        scores[separator] = (fitting / max(len(rows) - 1, 1), len(rows[0]))
    best = max(scores, key=lambda separator: scores[separator], default=",")
    # A damaged file with commas is still one with commas: another separator has to be better, not as bad.
    return best if "," not in scores or scores[best][0] > scores[","][0] or scores[best][1] > scores[","][1] else ","
