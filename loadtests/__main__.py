"""python -m loadtests <verb>: put load on a ranking server, and decide by what comes back."""

import typer
from tritonrank.system.literal_help import LiteralGroup

from loadtests.adapt import adapt
from loadtests.agree import agree
from loadtests.catalogue import catalogue
from loadtests.chaos.verb import chaos
from loadtests.compare import compare
from loadtests.dashboards.verb import dashboards
from loadtests.faults import faults
from loadtests.fleet import fleet
from loadtests.freshness import freshness
from loadtests.fuzz.verb import fuzz
from loadtests.gateway import gateway
from loadtests.hops import hops
from loadtests.judge import judge
from loadtests.kills import kills
from loadtests.loadtest import loadtest
from loadtests.overhead import overhead
from loadtests.overload import overload
from loadtests.perf import perf
from loadtests.recommend import recommend
from loadtests.report import report
from loadtests.rules import rules
from loadtests.run import run
from loadtests.sharing import sharing
from loadtests.shoppers.verb import shoppers
from loadtests.simulate.forecasts import forecast
from loadtests.simulate.verb import simulate
from loadtests.simulate.waiting import waiting
from loadtests.soak import soak
from loadtests.tune import tune

app = typer.Typer(
    cls=LiteralGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Load tests that a decision can rest on. Arrivals do not wait for answers, latency counts from the moment a "
    "request was due, and every answer is checked.\n\n"
    "Start with: tritonrank workload artifacts/demo, then: python -m loadtests loadtest artifacts/demo",
)
app.command()(run)
app.command()(loadtest)
app.command()(judge)
app.command()(soak)
app.command()(overload)
app.command()(faults)
app.command()(report)
app.command()(perf)
app.command()(agree)
app.command()(compare)
app.command()(tune)
app.command()(fleet)
app.command()(fuzz)
app.command()(gateway)
app.command()(catalogue)
app.command()(recommend)
app.command()(adapt)
app.command()(kills)
app.command()(freshness)
app.command()(chaos)
app.command()(hops)
app.command()(sharing)
app.command()(overhead)
app.command()(rules)
app.command()(dashboards)
app.command()(simulate)
app.command()(forecast)
app.command()(shoppers)
app.command()(waiting)

if __name__ == "__main__":
    app(prog_name="python -m loadtests")
