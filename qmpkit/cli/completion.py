"""Completion scripts: cyclopts writes them, profile names are asked for at each Tab."""

from __future__ import annotations

from typing import Literal

from cyclopts import App

__all__ = ["completion_script"]


def completion_script(app: App, shell: Literal["bash", "zsh", "fish"]) -> str:
    """The script for *shell* that completes the commands of *app*."""
    script = app.generate_completion(prog_name="qmpkit", shell=shell)
    if shell == "bash":
        # A profile may also be a file: where no name fits, readline completes paths.
        plain = "complete -F _qmpkit qmpkit"
        assert plain in script
        script = script.replace(plain, "complete -o default -F _qmpkit qmpkit")
    return script
