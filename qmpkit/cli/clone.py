"""`qmpkit clone`: one clone, from its start to its report, at a person's terminal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from qmpkit.cli.chosen import Chosen
from qmpkit.cli.foreground import Request, run_machine
from qmpkit.cli.template_names import known_template
from qmpkit.machine.launch import LaunchOptions
from qmpkit.templates.cloning import Wishes, empty_clone
from qmpkit.templates.opening import open_template
from qmpkit.vm import VM

__all__ = ["run_clone"]


async def run_clone(request: Request, name: str | None, *, twin: bool, ssh_host_keys: bool) -> int:
    """Run a clone of the template that the request names until it ends."""

    @asynccontextmanager
    async def choose(request: Request) -> AsyncIterator[Chosen]:
        path = await trio.to_thread.run_sync(known_template, request.word)
        saved = (await open_template(path)).saved

        @asynccontextmanager
        async def start(options: LaunchOptions) -> AsyncIterator[VM]:
            wishes = Wishes(twin=twin, ssh_host_keys=ssh_host_keys, options=options)
            wishes.refuse_impossible(saved)
            async with empty_clone(saved, wishes, name) as empty:
                yield await empty.wake()

        yield Chosen(saved.private.spec, start=start)

    return await run_machine(request, choose)
