"""The verb ``judge``: a run that was made earlier, held against objectives once more."""

from pathlib import Path
from typing import Annotated

import typer

from loadtests.console import fail
from loadtests.objectives import judged
from loadtests.results import read_run
from loadtests.session import FAULTS, SLO, SloOption, finish, objectives_or_exit


def judge(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.JSON", help="What a run wrote")], slo: SloOption = SLO
) -> None:
    """Judge a run by the objectives and keep the verdicts in its file. Exits with 1 when one is missed."""
    objectives = objectives_or_exit(slo)
    try:
        run = judged(read_run(run_file), objectives)
    except FAULTS as error:
        fail(str(error))
    finish(run, run_file)
