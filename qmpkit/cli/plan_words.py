"""What `up` would change, in words."""

from __future__ import annotations

from typing import Any

__all__ = ["print_plan"]

_SIGNS = {"Add": "+", "Remove": "-", "ChangeLive": "~", "RestartNeeded": "!", "Unchanged": " "}
_SAYS = {
    "Add": "is added",
    "Remove": "is stopped and forgotten; its disks stay",
    "ChangeLive": "is changed",
    "RestartNeeded": "needs --restart for its changes",
    "Unchanged": "is as declared",
}
_DOWN = {"Unchanged": "is down and starts", "ChangeLive": "is down, is changed and starts"}
_SAVED = {
    "Remove": "is forgotten, and what it was saved with is discarded; its disks stay",
    "ChangeLive": "is saved, which fits no other spec: start it as it was, or `qmpkit discard` it",
}
_LOST = {"ChangeLive": "gets back what its networks lack", "RestartNeeded": "needs --restart"}


def print_plan(found: dict[str, Any]) -> None:
    """A line for each step that the daemon tells, with what it is for below."""
    for step in found["steps"]:
        print(f"{_sign(step)} {step['name']} {_says(step)}")
        for change in step.get("changes", ()):
            print(f"    {change['field']}: {change['old']!r} → {change['new']!r}")
        for flaw in step.get("flaws", ()):
            print(f"    {flaw['what']}")


def _sign(step: dict[str, Any]) -> str:
    """What `up` does not do by itself has one of its own."""
    is_refused = step.get("saved") and step["step"] == "ChangeLive"
    return "!" if is_refused else _SIGNS[step["step"]]


def _says(step: dict[str, Any]) -> str:
    words = _SAYS
    if step.get("saved"):
        words = _SAYS | _SAVED
    elif not step.get("running", True):
        words = _SAYS | _DOWN
    elif "flaws" in step and "changes" not in step:
        words = _SAYS | _LOST
    return words[step["step"]]
