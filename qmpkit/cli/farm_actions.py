"""What the commands about a farm do: plan, up, down, scale, ps and those about its machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qmpkit.cli.choosing import matching, meant, only_one
from qmpkit.cli.confirm import confirmed
from qmpkit.cli.daemon import Daemon, NoDaemon, farm_daemon, find_daemon
from qmpkit.cli.exits import DaemonSaid, Exit, Refusal, exit_of
from qmpkit.cli.farm_jobs import DECLARED, followed, print_outcome
from qmpkit.cli.plan_words import print_plan
from qmpkit.cli.tables import print_table
from qmpkit.cli.talk import print_json, talk
from qmpkit.cli.which_farm import farm_of_file, which_farm
from qmpkit.process.roots import state_root
from qmpkit.spec.sizes import format_size

__all__ = ["act", "bring_up", "chosen", "each", "inspect", "machine_of", "one_machine", "plan"]
__all__ += ["ps", "remove", "running_daemon", "scale", "take_down", "wait_for"]


_STARTING = 120.0
"""Seconds that a daemon has to answer which systemd starts because we ask."""


def bring_up(
    file: Path, farm: str | None, *, restart: bool, grace: float | None, as_json: bool
) -> int:
    """`up`: have the machines of a file and no others; starts the daemon when none runs."""
    from qmpkit.spec.farm_data import farm_to_dict
    from qmpkit.spec.farm_load import load_farm

    declared = load_farm(file)
    daemon = running_daemon(farm_of_file(farm, file))
    body: dict[str, Any] = {"farm": farm_to_dict(declared), "restart": restart}
    body |= {} if grace is None else {"grace": grace}
    return _ended(daemon, daemon.post("up", body=body), "bringing up", as_json)


def running_daemon(farm: str) -> Daemon:
    """The daemon of a farm, started when there is none."""
    from qmpkit.cli.serve import detach, starting

    try:
        return _answering(farm)
    except NoDaemon:
        with starting(farm):
            try:
                return _answering(farm)  # another command has started it
            except NoDaemon:
                talk.note(f"no daemon runs for farm {farm!r}: one is started")
                detach(farm)
    return find_daemon(farm)


def _answering(farm: str) -> Daemon:
    daemon = find_daemon(farm)
    with daemon.open("GET", timeout=_STARTING):
        return daemon


def _ended(daemon: Daemon, job: dict[str, str], what: str, as_json: bool) -> int:
    return _status(_told(daemon, job, what, as_json))


def _told(daemon: Daemon, job: dict[str, str], what: str, as_json: bool) -> dict[str, Any]:
    outcome = followed(daemon, job["job"], what, given_up=DECLARED)
    if as_json:
        print_json(outcome)
    else:
        print_outcome(outcome)
        for name in outcome.get("others", ()):
            talk.note(f"{name} stays: it is of no farm file (`qmpkit stop`, then `qmpkit rm`)")
    return outcome


def _status(outcome: dict[str, Any]) -> int:
    return Exit.OK if outcome["went_well"] else Exit.FAILED


def plan(file: Path, farm: str | None, *, as_json: bool) -> int:
    """`plan`: what `up` would change."""
    from qmpkit.spec.farm_data import farm_to_dict
    from qmpkit.spec.farm_load import load_farm

    declared = load_farm(file)
    name = farm_of_file(farm, file)
    try:
        found = find_daemon(name).post("plan", body={"farm": farm_to_dict(declared)})
    except NoDaemon:
        if (state_root() / name / "machines").exists():
            raise
        steps = [{"step": "Add", "name": machine.name} for machine in declared.machines]
        found = {"is_empty": not steps, "steps": steps}
    if as_json:
        print_json(found)
        return Exit.OK
    print_plan(found)
    if found["is_empty"]:
        talk.note("nothing would change")
    return Exit.OK


def take_down(
    names: Sequence[str],
    farm: str | None,
    *,
    grace: float | None,
    deadline: float | None,
    delete_disks: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """`down`: stop machines of the farm in order and forget them."""
    daemon = farm_daemon(farm)
    only = chosen(daemon, names) or None
    if not yes:
        losses = _losses(daemon, only, delete_disks)
        if delete_disks or any(loss["memory"] for loss in losses.values()):
            if not confirmed(*_in_words(daemon.farm, losses)):
                talk.note("nothing was changed")
                return Exit.FAILED
            only = list(losses)  # no others that have come meanwhile, also when there were none
    body: dict[str, Any] = {"delete_disks": delete_disks}
    given = {"grace": grace, "deadline": deadline, "names": only}
    body |= {key: value for key, value in given.items() if value is not None}
    return _ended(daemon, daemon.post("down", body=body), "taking down", as_json)


def _losses(daemon: Daemon, names: Sequence[str] | None, delete_disks: bool) -> dict[str, Any]:
    """What would be gone for good of each machine that would go."""
    body: dict[str, Any] = {"delete_disks": delete_disks}
    body |= {} if names is None else {"names": names}
    found: dict[str, Any] = daemon.post("losses", body=body)["machines"]
    return found


def _in_words(farm: str, losses: dict[str, Any]) -> tuple[str, list[str]]:
    """What is to be confirmed, and each thing that is lost by it."""
    disks = [f"{name}: {file}" for name, loss in losses.items() for file in loss["disks"]]
    saved = [_memory_of(name) for name, loss in losses.items() if loss["memory"]]
    what = f"stop and forget {_counted(len(losses), 'machine')} of farm {farm!r}"
    if disks or not saved:
        what += f" and delete {_counted(len(disks), 'disk')} for good"
    if saved:
        what += f" and discard the saved memory of {_counted(len(saved), 'machine')}"
    return what, disks + saved


def _memory_of(name: str) -> str:
    return f"{name}: the memory that it was saved with"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def scale(words: Sequence[str], farm: str | None, *, as_json: bool) -> int:
    """`scale web=3 …`: have so many machines of a table."""
    wanted = [_scaled(word) for word in words]
    daemon = farm_daemon(farm)
    worst = Exit.OK
    for group, count in wanted:
        job = daemon.post("scale", body={"group": group, "count": count})
        worst = max(worst, Exit(_ended(daemon, job, f"scaling {group}", as_json)))
    return worst


def _scaled(word: str) -> tuple[str, int]:
    group, _, count = word.partition("=")
    if not group or not count.isdecimal():
        raise Refusal(f"{word!r} is not TABLE=COUNT: web=3")
    return group, int(count)


def ps(farm: str | None, *, as_json: bool) -> int:
    """`ps`: the machines, one line each."""
    machines = _machines(which_farm(farm))
    if as_json:
        print_json(machines)
        return Exit.OK
    headings = ("NAME", "STATE", "HEALTH", "DECLARED", "FOR", "PID", "MEMORY", "CPUS", "WHY")
    print_table(headings, map(_row, machines), prose=True)
    return Exit.OK


def _machines(farm: str) -> list[dict[str, Any]]:
    """As the daemon sees them, else as they are on record."""
    try:
        machines: list[dict[str, Any]] = find_daemon(farm).get("machines")["machines"]
    except NoDaemon:
        if not (state_root() / farm).exists():
            raise
        from qmpkit.cli.offline import rows_on_record

        return rows_on_record(farm)
    return machines


def _row(machine: dict[str, Any]) -> tuple[str, ...]:
    return (
        machine["name"],
        machine["state"],
        machine["health"] or "-",
        machine["declared"],
        _ago(machine["since"]),
        str(machine["pid"] or "-"),
        format_size(machine["memory"]),
        str(machine["cpus"]),
        machine["cause"],
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def chosen(daemon: Daemon, words: Iterable[str]) -> list[str]:
    """The machines that names and patterns mean; raises Refusal for a word that means none."""
    known = [machine["name"] for machine in daemon.get("machines")["machines"]]
    return matching(words, known, daemon.farm)


def one_machine(daemon: Daemon, word: str) -> str:
    """The one machine that *word* means."""
    known = [machine["name"] for machine in daemon.get("machines")["machines"]]
    return only_one(word, known, daemon.farm)


def machine_of(word: str, farm: str | None) -> tuple[Daemon, str]:
    """The one machine that *word* means, and the daemon that keeps it."""
    daemon = farm_daemon(farm)
    return daemon, one_machine(daemon, word)


_DONE = {
    "start": ("start", "runs"),
    "stop": ("power down", "is stopped"),
    "restart": ("restart", "runs again"),
    "pause": ("stand still", "is paused"),
    "resume": ("run", "runs"),
}


def act(action: str, words: Sequence[str], farm: str | None, *, grace: float | None) -> int:
    """`start`, `stop`, `restart`, `pause`, `resume`: all machines at the same time."""
    daemon = farm_daemon(farm)
    body = {} if grace is None else {"grace": grace}
    names = chosen(daemon, words)
    jobs = [(name, daemon.post("machines", name, action, body=body)["job"]) for name in names]
    return _each(daemon, jobs, *_DONE[action])


def remove(words: Sequence[str], farm: str | None, *, force: bool, yes: bool) -> int:
    """`rm`: forget machines that are down."""
    daemon = farm_daemon(farm)
    names = chosen(daemon, words)
    if not yes:
        saved = [name for name in names if daemon.get("machines", name, "losses")["memory"]]
        lost = f"discard the saved memory of {_counted(len(saved), 'machine')}"
        what = f"forget {_counted(len(names), 'machine')} of farm {daemon.farm!r} and {lost}"
        if saved and not confirmed(what, map(_memory_of, saved)):
            talk.note("nothing was changed")
            return Exit.FAILED
    jobs = [(name, daemon.delete("machines", name, force=int(force))["job"]) for name in names]
    return each(daemon, jobs, "go", _forgotten)[0]


def _forgotten(result: dict[str, Any]) -> str:
    lost = ", and what it was saved with is discarded" if result.get("discarded") else ""
    return f"is forgotten{lost}"


def _each(daemon: Daemon, jobs: Sequence[tuple[str, str]], do: str, done: str) -> int:
    return each(daemon, jobs, do, lambda _: done)[0]


def each(
    daemon: Daemon,
    jobs: Sequence[tuple[str, str]],
    do: str,
    done: Callable[[dict[str, Any]], str],
) -> tuple[Exit, list[dict[str, Any]]]:
    """Wait for the jobs of several machines: the exit status, and the results of those done.

    *done*: what is said of one by its result.  Ctrl-C gives up those that are left.
    """
    worst, results = Exit.OK, []
    for place, (name, job) in enumerate(jobs):
        others = len(jobs) - place - 1
        what = f"waiting for {name} to {do}" + (f" ({others} more after it)" if others else "")
        try:
            results.append(followed(daemon, job, what, quiet=True, given_up=DECLARED))
            talk.say(f"{name} {done(results[-1])}")
        except DaemonSaid as error:
            talk.error(str(error))
            worst = max(worst, exit_of(error) or Exit.FAILED)
        except KeyboardInterrupt:
            for _, other in jobs[place + 1 :]:
                daemon.delete("jobs", other)
            raise
    return worst, results


def inspect(words: Sequence[str], farm: str | None) -> int:
    """`inspect`: all that is known of machines, as JSON."""
    daemon = farm_daemon(farm)
    print_json([daemon.get("machines", name) for name in chosen(daemon, words)])
    return Exit.OK


def wait_for(words: Sequence[str], farm: str | None, *, state: str, timeout: float | None) -> int:
    """`wait`: until all machines are as asked for; exit status 1 when that takes too long."""
    daemon = farm_daemon(farm)
    names = _declared(daemon, words) if state == "gone" else chosen(daemon, words)
    if state == "healthy":
        _refuse_unchecked(daemon, names)
    until = None if timeout is None else time.monotonic() + timeout
    events = daemon.events("events", beat=_beat(timeout))  # before the look: nothing is missed
    waiting = _not_yet(daemon, names, state)
    while waiting and (until is None or time.monotonic() < until):
        event = next(events, None)
        if event is None:
            raise daemon.ended()
        if event[0]:
            waiting = _not_yet(daemon, names, state)
    if waiting:
        talk.error(f"not {state} after {timeout:g} s: {', '.join(waiting)}")
    return Exit.FAILED if waiting else Exit.OK


def _refuse_unchecked(daemon: Daemon, names: Sequence[str]) -> None:
    """One that has no checks would be waited for for ever."""
    if without := [name for name in names if not daemon.get("machines", name)["checks"]]:
        cure = 'health = ["agent"] in their tables, say; or wait --for running'
        raise Refusal(f"without checks, never healthy: {', '.join(without)}. Cure: {cure}")


def _declared(daemon: Daemon, words: Sequence[str]) -> list[str]:
    """Those that are declared; a word that means none of them is waited for no more."""
    known = [machine["name"] for machine in daemon.get("machines")["machines"]]
    return list(dict.fromkeys(name for word in words for name in meant(word, known)))


def _rests(machine: dict[str, Any]) -> bool:
    """Whether it is down and stays so; "failed" is also said of one whose guest was stopped."""
    state: str = machine["state"]
    return state in ("gone", "saved", "crash-loop") or (
        state == "failed" and machine["pid"] is None
    )


def _beat(timeout: float | None) -> int:
    """How often the stream is to give us the chance to look at the clock, in ms."""
    return 15_000 if timeout is None else int(max(100, min(1000, timeout * 100)))


def _not_yet(daemon: Daemon, names: Sequence[str], state: str) -> list[str]:
    seen = {machine["name"]: machine for machine in daemon.get("machines")["machines"]}
    waiting = [name for name in names if not _is(seen.get(name), state)]
    for name in () if state == "gone" else waiting:
        machine = seen.get(name)
        if machine is None or (state != "stopped" and _rests(machine)):
            why = "is forgotten" if machine is None else f"{machine['state']}: {machine['cause']}"
            raise Refusal(f"{name} will not be {state} by itself: {why}")
    return waiting


def _is(machine: dict[str, Any] | None, state: str) -> bool:
    if state == "gone":
        return machine is None
    if machine is None or state == "stopped":
        return machine is None or _rests(machine)
    return state in (machine["state"], machine["health"])
