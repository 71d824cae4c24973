"""`qmpkit pool run`: a command in one fresh clone after another."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import trio

from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.talk import print_json, talk
from qmpkit.cli.template_names import known_template
from qmpkit.errors import QmpkitError
from qmpkit.operations.completed import Completed
from qmpkit.templates.errors import PoolClosed
from qmpkit.templates.opening import open_template
from qmpkit.templates.pool import Pool

__all__ = ["Work", "run_in_pool"]


@attrs.frozen(kw_only=True)
class Work:
    """The command line of `pool run`, read."""

    template: str
    command: tuple[str, ...]
    times: int | None
    lines: bool
    jobs: int
    warm: int
    memory: str | None
    twin: bool
    as_json: bool


async def run_in_pool(work: Work) -> int:
    """Run them all; 0 when each ended well."""
    if not work.command:
        raise Refusal("what is to be run? Cure: qmpkit pool run TEMPLATE -- COMMAND")
    if work.lines and work.times is not None:
        raise Refusal("--lines says how many there are. Cure: leave --times out")
    async with interruptible() as interrupted:
        path = await trio.to_thread.run_sync(known_template, work.template)
        template = await open_template(path)
        runs = await trio.to_thread.run_sync(_runs, work, abandon_on_cancel=True)
        warm = min(work.warm, len(runs))
        async with Pool(template, warm=warm, memory=work.memory, twin=work.twin) as pool:
            failed = await _all_of(pool, runs, work)
        interrupted.done = True
    if failed:
        talk.error(f"{failed} of {len(runs)} failed")
    return Exit.FAILED if failed else Exit.OK


def _runs(work: Work) -> list[tuple[str, ...]]:
    if not work.lines:
        return [work.command] * (work.times or 1)
    return [(*work.command, line.rstrip("\n")) for line in sys.stdin]


async def _all_of(pool: Pool, runs: list[tuple[str, ...]], work: Work) -> int:
    failed = 0
    queue = iter(enumerate(runs, 1))
    closed: list[PoolClosed] = []

    async def worker() -> None:
        nonlocal failed
        for number, argv in _rest(queue):
            begun = time.monotonic()
            try:
                machine, came = await _one(pool, argv)
            except PoolClosed as error:  # the others end what they have begun
                closed.append(error)
                return
            took = time.monotonic() - begun
            if isinstance(came, Completed):
                failed += not came.ok
                _show(number, machine, came, took, as_json=work.as_json)
            else:
                failed += 1
                _show_failed(number, machine, argv, came, took, as_json=work.as_json)

    async with trio.open_nursery() as nursery:
        for _ in range(min(work.jobs, len(runs))):
            nursery.start_soon(worker)
    for error in closed:
        raise error
    return failed


async def _one(pool: Pool, argv: Sequence[str]) -> tuple[str, Completed | QmpkitError]:
    """The machine of one run and what came of it: a guest that ends takes no other run with it."""
    machine = ""
    came: Completed | QmpkitError | None = None
    try:
        async with pool.take() as vm:
            machine = vm.name
            try:
                came = await vm.agent.run(argv)
            except QmpkitError as error:  # there is no such program, or the guest is down
                came = error
    except PoolClosed:
        raise
    except QmpkitError as error:  # it died, or did not become somebody
        came = came or error
    assert came is not None, "its block has run, or an error is why not"
    return machine, came


def _rest(queue: Iterator[tuple[int, tuple[str, ...]]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    yield from queue


def _show_failed(
    number: int, machine: str, argv: Sequence[str], why: QmpkitError, took: float, *, as_json: bool
) -> None:
    if as_json:
        shown = {"run": number, "machine": machine, "argv": [*argv], "error": str(why)}
        print_json({**shown, "seconds": round(took, 3)}, compact=True)
    else:
        where = f" in {machine}" if machine else ""
        talk.error(f"run {number}{where}: {why}")


def _show(number: int, machine: str, done: Completed, took: float, *, as_json: bool) -> None:
    if as_json:
        shown: dict[str, Any] = {
            "run": number,
            "machine": machine,
            "argv": [*done.argv],
            "status": done.status,
            "signal": done.signal,
            "stdout": done.text,
            "stderr": done.error_text,
            "seconds": round(took, 3),
        }
        print_json(shown, compact=True)
        return
    sys.stdout.write(done.text)
    sys.stdout.flush()
    sys.stderr.write(done.error_text)
    if not done.ok:
        talk.error(f"run {number} in {machine}: {done.argv[0]} ended with {done.ending}")
