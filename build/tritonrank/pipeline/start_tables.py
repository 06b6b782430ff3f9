"""What ``init`` guessed and why, as a table for people."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritonrank.data.column_looks import joined_examples
from tritonrank.data.meanings import MEANINGS
from tritonrank.pipeline.start import Drafted

SAID = {
    "item_id": "id of the item",
    "user_id": "id of the user",
    "timestamp": "time",
    "label": "what users did",
    "impression": "list that was shown",
    "position": "place in the list",
    "text": "text",
    "title": "title",
    "price": "number",
    "date": "date of the item",
    "available from": "existed from",
}


def show_draft(drafted: Drafted, console: Console) -> None:
    """Print the guesses, what they rest on, and what a person should look at."""
    for glimpse, name in ((drafted.items, "items"), (drafted.events, "events")):
        rows = f"{'about ' if glimpse.is_estimate else ''}{glimpse.rows:,} rows" if glimpse.rows is not None else ""
        said = ", ".join(filter(None, [glimpse.kind, rows]))
        console.print(Text(f"{name}: {glimpse.name} ({said})"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("  column", "is taken for", "because", "such as"):
        table.add_column(Text(column, style="dim"), overflow="fold")
    for one in drafted.guess.columns:
        style = "yellow" if one.unsure else ""
        cells = (f"  {one.table}.{one.column}", SAID.get(one.meaning, one.meaning), one.reason)
        table.add_row(*(Text(cell, style=style) for cell in cells), Text(joined_examples(one.examples)))
    console.print(table)
    if label := drafted.guess.label:
        if label.weights is None:
            said = f"{label.column} >= {label.positive_label:g} is a positive"
        else:
            said = ", ".join(f"{name} {weight:g}" for name, weight in label.weights.items())
            said = f"weights of {label.column}: {said} (0 is no positive)"
    else:
        said = "no column says what users did: every event is a positive"
    console.print(Text(f"  {said}"), soft_wrap=True)
    console.print(Text(f"  an item is read as: {drafted.values['text']['item_template']}"), soft_wrap=True)
    if drafted.guess.left:
        left = ", ".join(f"{name} ({why})" for name, why in drafted.guess.left.items())
        console.print(Text(f"  not used: {left}"), soft_wrap=True)
    for one in drafted.guess.columns:
        if one.unsure:
            meant = MEANINGS[one.meaning].setting if one.meaning in MEANINGS else ""
            where = f" ({meant})" if meant else ""
            console.print(Text(f"  ? {one.table}.{one.column}{where}: {one.unsure}", style="yellow"), soft_wrap=True)
    if drafted.fault:
        console.print(Text(f"  ! not measured: {drafted.fault}", style="yellow"), soft_wrap=True)
