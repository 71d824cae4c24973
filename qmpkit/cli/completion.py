"""Completion scripts: cyclopts writes them, profile names are asked for at each Tab."""

from __future__ import annotations

from typing import Literal

from cyclopts import App

__all__ = ["completion_script"]


_BASH = "complete -F _qmpkit qmpkit"
_ZSH = "&& compadd -d _cyc_disp -a _cyc_vals"
# What has a name may also be a file: where no name fits, a path is completed, as fish does.
_OR_PATHS = {
    "bash": (_BASH, "complete -o default -F _qmpkit qmpkit"),
    "zsh": (_ZSH, f"{_ZSH} || _files"),
    "fish": ("", ""),
}


def completion_script(app: App, shell: Literal["bash", "zsh", "fish"]) -> str:
    """The script for *shell* that completes the commands of *app*."""
    script = app.generate_completion(prog_name="qmpkit", shell=shell)
    plain, with_paths = _OR_PATHS[shell]
    assert plain in script
    return script.replace(plain, with_paths) if plain else script
