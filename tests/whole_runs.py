"""A run of several workers that loses tests is a failure, whatever its exit status says.

pytest-xdist prints an internal error of a worker, goes on without the tests that this worker had left, and ends with
status 0. So the process that leads the workers counts: every collected test has to come to its end.
"""

import pytest


class WholeRun:
    """Registered in the leading process alone."""

    def __init__(self) -> None:
        self.collected: set[str] = set()
        self.ended: set[str] = set()
        self.faults: list[str] = []

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.collected |= {*ids}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" or report.failed:  # a crash is reported as a failure of no stage
            self.ended.add(report.nodeid)

    def pytest_internalerror(self) -> None:
        self.faults.append("internal error: see INTERNALERROR above")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        wanted_stop = session.shouldstop or session.shouldfail or session.config.option.maxfail
        if (lost := sorted(self.collected - self.ended)) and not wanted_stop:
            self.faults.append(f"{len(lost)} tests were lost, among them {', '.join(lost[:3])}")
        if self.faults and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Not in the summary: pytest leaves it out where the leading process itself has an internal error."""
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        for fault in self.faults:
            reporter.write_line(f"LOST {fault}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(WholeRun())
