"""What the steps of every change keep to: how long one may take, and how a loss of QEMU looks."""

from __future__ import annotations

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.qmp.errors import MonitorGarbled, MonitorLost

__all__ = ["LOST", "STEP_GRACE"]

STEP_GRACE = 30.0
"""Seconds that a step which must not be torn, or taking one back, may take."""

LOST = (MachineGone, MachineDied, MonitorLost, MonitorGarbled)
"""What is raised when QEMU, or its monitor, is there no longer."""
