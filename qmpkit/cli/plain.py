"""Command lines that are understood without the parser, which takes longer to load than they do.

That is `ps`, which scripts call again and again, and `serve` in the foreground: what the parser
takes, 4 MB, a daemon would hold for as long as it lives.  Their options are as their help writes
them; whatever else is there, a mistake too, is the parser's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from qmpkit.cli.report import debug_wanted, reported
from qmpkit.cli.talk import route_log

__all__ = ["plain"]

_Options = dict[str, str]

_OF_SERVE = ("--farm", "--group", "--ready-fd", "--log-file")


def plain(words: Sequence[str]) -> Callable[[], int] | None:
    """What runs this command line and returns its exit status; None: the parser is needed."""
    command: Callable[[_Options], int]
    match words:
        case ["ps", *left]:
            command, options = _ps, _options(left, ("--farm",), flags=("--json",))
        case ["serve", *left]:
            command, options = _serve, _options(left, _OF_SERVE)
        case _:
            return None
    if options is None or not options.get("--ready-fd", "0").isdecimal():
        return None
    return partial(_run, partial(command, options))


def _run(command: Callable[[], int]) -> int:
    route_log(debug_wanted())
    return reported(command)


def _ps(options: _Options) -> int:
    from qmpkit.cli.farm_actions import ps

    return ps(options.get("--farm"), as_json="--json" in options)


def _serve(options: _Options) -> int:
    import trio

    from qmpkit.cli.serve import serve_farm
    from qmpkit.cli.which_farm import which_farm

    farm, group, ready_fd, log_file = map(options.get, _OF_SERVE)
    return trio.run(
        serve_farm,
        which_farm(farm),
        group,
        None if ready_fd is None else int(ready_fd),
        None if log_file is None else Path(log_file),
    )


def _options(
    words: Sequence[str], valued: Collection[str], flags: Collection[str] = ()
) -> _Options | None:
    """Options as `--farm NAME` and `--json`, each once at most; None for anything else."""
    options: _Options = {}
    left = list(words)
    while left:
        match left:
            case [flag, *left] if flag in flags and flag not in options:
                options[flag] = ""
            case [name, value, *left] if name in valued and name not in options and _is_name(value):
                options[name] = value
            case _:
                return None
    return options


def _is_name(word: str) -> bool:
    return bool(word) and not word.startswith("-")
