"""A farm that was read from a file, made true by a supervisor that keeps its machines."""

from __future__ import annotations

from qmpkit.farm.converge import plan_up, scale, up
from qmpkit.farm.leave import down
from qmpkit.farm.outcome import Outcome, Progress, Result
from qmpkit.farm.saved import read_farm

__all__ = ["Outcome", "Progress", "Result", "down", "plan_up", "read_farm", "scale", "up"]
