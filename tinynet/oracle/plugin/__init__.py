"""The pytest plugin: fixtures `oracle` and `oracle_rng`, and their options.

Installed under an import name of its own, `tinynet_pytest`: pytest loads every plugin at its
start, and this one must cost nothing in runs that don't use it. So it imports pytest alone;
tinynet and numpy come with the first test that asks for a fixture (session.py).
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("oracle", "tinynet's oracle: verdicts with derived tolerances")
    group.addoption("--oracle-lenient", action="store_true", help="LOOSE verdicts pass: results that some order of summation can give, though a plain loop does better")
    group.addoption("--oracle-seed", type=int, default=0, metavar="N", help="of the built-in cases and of oracle_rng (default 0)")
    group.addoption("--oracle-save-failures", metavar="DIR", help="save the inputs, the result and the truth of every failing case as DIR/*.npz, with the line that repeats it")
    group.addoption("--oracle-min-cases", type=int, default=0, metavar="N", help="fail the run if the oracle judged fewer than N cases in this process (pytest-xdist's workers are not counted): a guard against tests that silently stopped testing")


def pytest_configure(config):
    config.stash[_JUDGED] = 0


@pytest.fixture
def oracle(request):
    """tinynet.oracle with this run's strictness and seed as defaults; it counts cases and saves failing ones."""
    from tinynet.oracle.session import Session

    def count(cases: int) -> None:
        request.config.stash[_JUDGED] += cases

    def tell(text: str) -> None:
        request.node.add_report_section("call", "oracle", text)

    option = request.config.getoption
    return Session(request.node.nodeid, option("--oracle-seed"), not option("--oracle-lenient"), option("--oracle-save-failures"), count, tell)


@pytest.fixture
def oracle_rng(request):
    """A numpy Generator of the test's own: the same in every run with one --oracle-seed, printed if the test fails."""
    from tinynet.oracle.session import seed_of

    import numpy as np

    option = request.config.getoption("--oracle-seed")
    seed = seed_of(request.node.nodeid, option)
    request.node.add_report_section("call", "oracle", f"oracle_rng was numpy.random.default_rng({seed}); the run had --oracle-seed {option}")
    return np.random.default_rng(seed)


_JUDGED = pytest.StashKey[int]()


def pytest_sessionfinish(session):
    if session.config.option.collectonly:
        return
    least = session.config.getoption("--oracle-min-cases")
    if session.config.stash[_JUDGED] < least and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    judged, least = config.stash[_JUDGED], config.getoption("--oracle-min-cases")
    if judged < least and not config.option.collectonly:
        terminalreporter.write_line(f"oracle: FAILED, {judged} cases were judged, --oracle-min-cases wants {least}: do the tests still use the fixture `oracle`?", red=True)
    elif judged:
        terminalreporter.write_line(f"oracle: {judged} cases judged")
