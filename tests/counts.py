"""Counts what ran on which QEMU, for which guests, and on KVM: nothing is silently not tested."""

from __future__ import annotations

from collections import Counter

import pytest

KVM = "KVM"


class Counts:
    """A pytest plugin: passed tests for each wanted QEMU and architecture, and for KVM."""

    def __init__(self, wanted: list[str], *, demanded: bool) -> None:
        self.wanted = wanted
        self.demanded = demanded
        self.passed: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or not report.passed:
            return
        self.passed.update(label for label in self.wanted if label in _labels(report))

    def missing(self) -> list[str]:
        return [label for label in self.wanted if not self.passed[label]]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.demanded and self.missing() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.demanded and not self.passed:
            return
        counted = ", ".join(f"{label}: {self.passed[label]} passed" for label in self.wanted)
        terminalreporter.write_line(counted)
        for label in self.missing() if self.demanded else ():
            terminalreporter.write_line(f"FAILED: no test ran on {label}", red=True)


def _labels(report: pytest.TestReport) -> set[str]:
    labels = {str(value) for name, value in report.user_properties if name == "qemu"}
    if "kvm" in report.keywords:
        labels.add(KVM)
    return labels
