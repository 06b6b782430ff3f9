"""The verb ``rules``: the alerts of the objectives, written beside the other rules of Prometheus."""

import os
from pathlib import Path
from typing import Annotated

import typer

from loadtests.alert_rules import as_yaml, rules_of_ranking, rules_of_recommending
from loadtests.console import console, fail_plainly
from loadtests.objectives import ObjectivesError, read_objectives
from loadtests.recommend import SLO as RECOMMEND_SLO
from loadtests.session import SLO, SloOption

FOLDER = Path(__file__).parents[1] / "deploy" / "prometheus" / "rules"


def rules(
    slo: SloOption = SLO,
    recommend_slo: Annotated[Path, typer.Option(help="Objectives of recommendations")] = RECOMMEND_SLO,
    out: Annotated[Path, typer.Option(help="Folder of the rules")] = FOLDER,
) -> None:
    """Make Prometheus' recording and alert rules of the objectives; see docs/alerts.md."""
    try:
        files = made(slo, recommend_slo)
        for name, text in files.items():
            path = out / name
            draft = path.with_name(f".{name}.tmp")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
            console.print(f"{os.path.relpath(path)}: {text.count('alert: ')} alerts", highlight=False)
    except (ObjectivesError, OSError) as error:
        fail_plainly(str(error))


def made(slo: Path, recommend_slo: Path) -> dict[str, str]:
    """File name -> text.

    Raises:
        ObjectivesError: of one of the files; the message names it.
    """
    files = {}
    for path, name, rules_of in (
        (slo, "ranking.yml", rules_of_ranking),
        (recommend_slo, "recommending.yml", rules_of_recommending),
    ):
        try:
            files[name] = as_yaml(rules_of(read_objectives(path)), path.name)
        except ObjectivesError:
            raise
        except ValueError as error:
            raise ObjectivesError(f"{path}: {error}") from None
    return files
