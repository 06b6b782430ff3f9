"""The page docs/settings.md: what ``tritonrank settings --markdown`` writes."""

import textwrap
from collections.abc import Iterator
from itertools import groupby

from tritonrank.recipe.applicability import EXAMPLE
from tritonrank.recipe.listing import SettingRow, setting_rows

WIDTH = 120
HEAD = f"""\
# Settings of a recipe

A recipe is a YAML file. It has a `name`, a `data` section, and whatever else it wants different from the defaults
below. `tritonrank settings` prints this list; `--set section.key=value` changes one setting for one command. This page
is written by `tritonrank settings --markdown`, and a test holds it against the code.

All faults of a recipe are reported together, with file, line and key. A setting that was removed is refused with what
became of it.

## One recipe for several targets

Some settings have an effect only where their entry says so, such as *target cpu*. `build`, `assemble` and `compile`
refuse a setting that a recipe or `--set` names and that the target at hand does not use. What is different for one
target goes into a section of its name:

```
{textwrap.dedent(EXAMPLE).strip()}
```

With `--target tensorrt` the scorer has 4 instances, and `queue_share` is not looked at. The `tensorrt` section is for
GPUs anyway: a recipe may have it whatever it is built for.
"""


def settings_page() -> str:
    """Markdown: a section per section of a recipe, an entry per setting."""
    parts = [HEAD]
    for section, rows in groupby(setting_rows(), lambda row: row.key.rpartition(".")[0]):
        parts.append("\n".join([f"## {section or 'At the top'}\n", *_entries(rows), ""]))
    return "\n".join(parts)


def _entries(rows: Iterator[SettingRow]) -> Iterator[str]:
    for row in rows:
        default = "required" if row.default == "required" else f"default `{row.default}`"
        used = f" *{row.used}*." if row.used else ""
        description = row.description[:1].upper() + row.description[1:].rstrip(".")
        text = f"- `{row.key}`, {default}.{used} {description}."
        yield textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
