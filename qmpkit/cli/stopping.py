"""Ctrl-C and its relatives: each one more step towards the machine's end."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from qmpkit.cli.talk import talk
from qmpkit.errors import MachineDied, MachineGone, QmpkitError
from qmpkit.machine.state import State
from qmpkit.qmp.errors import MonitorLost
from qmpkit.vm import VM

__all__ = ["Stopper"]

_Step = Callable[[VM], Awaitable[None]]


class Stopper:
    """Powers the guest down at the first request, ends QEMU at the second, kills it at the third.

    Before there is a machine a request cancels *start*.
    """

    def __init__(self, start: trio.CancelScope, grace: float) -> None:
        self._start = start
        self._grace = grace
        self._vm: VM | None = None
        self._stopping = False
        self._asked, self._asking = trio.open_memory_channel[VM](math.inf)

    def attend(self, vm: VM) -> None:
        """From now on there is a machine to stop."""
        self._vm = vm

    async def listen(self, signals: AsyncIterator[int]) -> None:
        """Take each of *signals* as one request, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_steps, nursery)
            async for number in signals:
                if number == signal.SIGHUP:
                    self.hang_up()
                else:
                    self.request()

    def request(self) -> None:
        """Ask for the next step; it does not wait for the steps before it to end."""
        self._stopping = True
        if self._vm is None:
            self._start.cancel()
        else:
            self._asked.send_nowait(self._vm)

    def hang_up(self) -> None:
        """The terminal has gone, which is noticed in two ways: a request, unless there was one."""
        if not self._stopping:
            self.request()

    async def _take_steps(self, nursery: trio.Nursery) -> None:
        for step in (self._power_down, self._quit, self._kill):
            nursery.start_soon(self._take, step, await self._asking.receive())

    async def _take(self, step: _Step, vm: VM) -> None:
        try:
            await step(vm)
        except (MachineGone, MachineDied, MonitorLost):
            return  # it has ended meanwhile: the report tells how
        except QmpkitError as error:
            talk.error(str(error))

    async def _power_down(self, vm: VM) -> None:
        if vm.state is not State.RUNNING or self._grace <= 0:
            await vm.quit()
            return
        talk.note(
            f"{vm.name}: asking the guest to power down, within {self._grace:g} s; "
            "Ctrl-C again ends it at once"
        )
        with trio.move_on_after(self._grace):
            await vm.powerdown()
            await vm.wait()
            return
        talk.warn(f"{vm.name}: the guest has not powered down within {self._grace:g} s; ending it")
        await vm.quit()

    async def _quit(self, vm: VM) -> None:
        talk.note(f"{vm.name}: ending QEMU")
        await vm.quit()

    async def _kill(self, vm: VM) -> None:
        talk.warn(f"{vm.name}: killing QEMU; what the guest has not written is lost")
        await vm.kill()
