"""Command lines that are understood without the parser, which takes longer to load than they do.

That is `ps`, which scripts call again and again, with its options as its help writes them.
Whatever else is there, a mistake too, is the parser's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qmpkit.cli.report import debug_wanted, reported
from qmpkit.cli.talk import route_log

__all__ = ["plain"]


def plain(words: Sequence[str]) -> Callable[[], int] | None:
    """What runs this command line and returns its exit status; None: the parser is needed."""
    if not words or words[0] != "ps" or (options := _options(words[1:])) is None:
        return None
    from qmpkit.cli.farm_actions import ps

    def run() -> int:
        route_log(debug_wanted())
        return reported(lambda: ps(options.get("--farm"), as_json="--json" in options))

    return run


def _options(words: Sequence[str]) -> dict[str, str] | None:
    """`--farm NAME` and `--json`, each once at most; None when there is anything else."""
    options: dict[str, str] = {}
    left = list(words)
    while left:
        match left:
            case ["--json", *left] if "--json" not in options:
                options["--json"] = ""
            case ["--farm", name, *left] if _is_name(name) and "--farm" not in options:
                options["--farm"] = name
            case _:
                return None
    return options


def _is_name(word: str) -> bool:
    return bool(word) and not word.startswith("-")
