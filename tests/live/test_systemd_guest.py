"""The units under a running systemd, that of a Debian guest; `scripts/test --long` alone.

A qmpkit and a QEMU of this host's are in the guest, and a machine in it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, Disk
from qmpkit.images import CloudInit, make_seed
from qmpkit.testing import guests
from tests.live.payload import make_payload
from tests.sizes import LONG, NEWEST

pytestmark = [
    pytest.mark.live,
    pytest.mark.qemus(NEWEST[-1]),
    pytest.mark.skipif(not LONG, reason="two minutes and more: scripts/test --long"),
    pytest.mark.bound(2400),  # on a host that has other work too
]

_QEMU = "/usr/bin/qemu-system-x86_64"  # the distribution's, which is Debian's as the guest is

COMMAND = """\
#!/bin/sh
PYTHONPATH=/mnt/site QMPKIT_CACHE_DIR=/var/cache/qmpkit exec python3 -m qmpkit.cli "$@"
"""
FARM = """
schema = 1
[machines.counter]
profile = "kvm-tiny"
qemu = "/mnt/qemu/qemu-system-x86_64"
accel = "tcg"
"""
SET_UP = """
mount -o ro LABEL=payload /mnt
mkdir -p /var/cache/qmpkit /root/lab
cp -r /mnt/cache/guests /var/cache/qmpkit/
chmod 755 /usr/local/bin/qmpkit
"""
AS_GRACE = """\
#!/bin/sh
cd /home/grace/lab
exec runuser -u grace -- env HOME=/home/grace XDG_RUNTIME_DIR=/run/user/$(id -u grace) "$@"
"""
# What pam_systemd does at a login; the guest has none, so that its ssh is quick.
USER_MANAGER = "/run/systemd/system/user@.service.d/login.conf"
LOGIN = """\
[Service]
Environment=XDG_RUNTIME_DIR=/run/user/%i
"""
SET_UP_GRACE = """
chmod 755 /usr/local/bin/as-grace
systemctl daemon-reload
cp -r /root/lab /home/grace/
echo 'restart = "on-failure"' >> /home/grace/lab/farm.toml
chown -R grace /home/grace/lab /var/cache/qmpkit
"""


class Guest:
    """A Debian in which root says something."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm

    async def says(self, script: str, status: int = 0) -> str:
        """What a shell says; stderr too when it is to fail."""
        done = await self.vm.agent.run(["bash", "-c", script])
        said = done.stdout.decode() + done.stderr.decode()
        assert done.status == status, (script, said)
        return said if status else done.stdout.decode()

    async def machines(self, before: str = "qmpkit") -> dict[str, tuple[str, int]]:
        """State and process of each machine, by a command that may start the daemon."""
        listed = json.loads(await self.says(f"{before} ps --farm lab --json"))
        return {it["name"]: (it["state"], it["pid"]) for it in listed}


@asynccontextmanager
async def debian(folder: Path, qemu: str) -> AsyncIterator[Guest]:
    image = await trio.to_thread.run_sync(guests.build_debian)
    tiny = await trio.to_thread.run_sync(guests.build_kvm_tiny)
    payload = await trio.to_thread.run_sync(make_payload, folder, _QEMU, tiny)
    own = await qmpkit.images.overlay(folder / "own.qcow2", image, "qcow2")
    seed = await make_seed(folder / "seed.iso", CloudInit(hostname="ada", user="grace"))
    disks = [Disk(own, format="qcow2")]
    disks += [Disk(file, format="raw", readonly=True) for file in (seed, payload)]
    spec = attrs.evolve(
        qmpkit.load_profile("q35"), name="debian", qemu=qemu, accel="tcg", kernel=None, disks=disks
    )
    async with qmpkit.running(spec) as vm:
        await vm.agent.wait_ready()
        guest = Guest(vm)
        await guest.says("cloud-init status --wait")
        await vm.agent.write_file("/usr/local/bin/qmpkit", COMMAND.encode())
        await guest.says(SET_UP)
        await vm.agent.write_file("/root/lab/farm.toml", FARM.encode())
        yield guest


async def test_a_farm_under_systemd(tmp_path: Path, qemu: str) -> None:
    async with debian(tmp_path, qemu) as guest:
        await _units_are_taken(guest)
        await _the_first_command_starts_it(guest)
        await _guests_outlive_the_daemon(guest)
        await _ends(guest)


async def test_a_users_own_farm_under_systemd(tmp_path: Path, qemu: str) -> None:
    """Without root: its systemd lives by lingering, which is asked for, and the farm by that."""
    async with debian(tmp_path, qemu) as guest:
        await _lingers(guest)
        await _a_users_units_are_taken(guest)
        await _a_user_starts_it(guest)
        await _a_users_guests_outlive_the_daemon(guest)
        await _a_users_farm_ends(guest)


async def _units_are_taken(guest: Guest) -> None:
    said = await guest.says("qmpkit systemd --farm lab --install 2>&1")
    assert "systemctl enable --now qmpkit-lab.socket" in said
    units = "/etc/systemd/system/qmpkit-lab.{socket,service}"
    complaints = await guest.says(f"systemd-analyze verify {units} 2>&1")
    assert "qmpkit" not in complaints
    await guest.says("systemctl daemon-reload && systemctl enable qmpkit-lab.{socket,service}")


async def _the_first_command_starts_it(guest: Guest) -> None:
    await guest.says("systemctl start qmpkit-lab.socket")
    modes = "stat -c '%a %U' /run/qmpkit-api/lab/http /run/qmpkit-api/lab"
    assert (await guest.says(modes)).split("\n")[:2] == ["600 root", "700 root"]
    state = "systemctl is-active qmpkit-lab.service || true"
    assert (await guest.says(state)).strip() == "inactive"
    await guest.says("qmpkit ps --farm lab || true")  # the answer may take longer than it waits
    assert (await guest.says(state)).strip() in ("activating", "active")
    await _is_up(guest)
    assert await guest.machines() == {}
    nobody = "runuser -u nobody -- env XDG_RUNTIME_DIR= python3 -c"
    program = "import socket; socket.socket(socket.AF_UNIX).connect('/run/qmpkit-api/lab/http')"
    assert "PermissionError" in await guest.says(f'{nobody} "{program}"', status=1)


async def _is_up(guest: Guest) -> None:
    """Waits for the start that is under way."""
    await guest.says("systemctl start qmpkit-lab.service")


async def _guests_outlive_the_daemon(guest: Guest) -> None:
    """Confined as it is, QEMU runs; and it runs on, whatever becomes of the daemon."""
    await guest.says("cd /root/lab && qmpkit up farm.toml")
    before = await guest.machines()
    assert before["counter"][0] == "running"
    await guest.says("systemctl restart qmpkit-lab.service")
    assert await guest.machines() == before
    await guest.says("systemctl kill --kill-whom=main -s KILL qmpkit-lab.service")
    await _is_up(guest)
    assert await guest.machines() == before


async def _ends(guest: Guest) -> None:
    await guest.says("qmpkit down --farm lab --grace 0")
    await guest.says("systemctl stop qmpkit-lab.socket qmpkit-lab.service")
    assert "no daemon runs" in await guest.says("qmpkit ps --farm lab 2>&1")
    assert "qemu-system" not in await guest.says("cat /proc/[0-9]*/comm")
    assert "SIGTERM: the daemon ends" in await guest.says("journalctl -u qmpkit-lab -o cat")


async def _lingers(guest: Guest) -> None:
    await guest.says(f"mkdir -p {Path(USER_MANAGER).parent}")
    await guest.vm.agent.write_file("/usr/local/bin/as-grace", AS_GRACE.encode())
    await guest.vm.agent.write_file(USER_MANAGER, LOGIN.encode())
    await guest.says(SET_UP_GRACE)
    said = await guest.says(_INSTALL)
    assert "loginctl enable-linger grace" in said
    await guest.says("loginctl enable-linger grace")
    await guest.says("systemctl start user@$(id -u grace)")  # waits until it is there


_INSTALL = "as-grace qmpkit systemd --farm lab --user --install 2>&1"


async def _a_users_units_are_taken(guest: Guest) -> None:
    said = await guest.says(_INSTALL)
    assert "systemctl --user enable --now qmpkit-lab.socket" in said
    assert "linger" not in said
    units = "/home/grace/.config/systemd/user/qmpkit-lab.{socket,service}"
    complaints = await guest.says(f"as-grace systemd-analyze --user verify {units} 2>&1")
    assert "qmpkit" not in complaints
    ours = "qmpkit-lab.socket qmpkit-lab.service"
    await guest.says(f"{_USERS} daemon-reload && {_USERS} enable {ours}")


_USERS = "as-grace systemctl --user"


async def _a_user_starts_it(guest: Guest) -> None:
    await guest.says(f"{_USERS} start qmpkit-lab.socket")
    found = await guest.says("find /run/user/$(id -u grace) -path '*lab*' -printf '%f %m %u\\n'")
    assert "http 600 grace" in found and "lab 700 grace" in found
    state = f"{_USERS} is-active qmpkit-lab.service || true"
    assert (await guest.says(state)).strip() == "inactive"
    await guest.says("as-grace qmpkit ps --farm lab || true")
    await guest.says(f"{_USERS} start qmpkit-lab.service")
    assert (await guest.says(state)).strip() == "active"
    assert await guest.machines("as-grace qmpkit") == {}


async def _a_users_guests_outlive_the_daemon(guest: Guest) -> None:
    """But not their systemd, which ends all that it has; they are started again by policy."""
    await guest.says("as-grace qmpkit up farm.toml")
    before = await guest.machines("as-grace qmpkit")
    assert before["counter"][0] == "running"
    assert (await guest.says(f"stat -c %U /proc/{before['counter'][1]}")).strip() == "grace"
    for end in ("restart", "kill --kill-whom=main -s KILL"):
        await guest.says(f"{_USERS} {end} qmpkit-lab.service")
        await guest.says(f"{_USERS} start qmpkit-lab.service")
        assert await guest.machines("as-grace qmpkit") == before
    await guest.says("systemctl restart user@$(id -u grace)")
    await guest.says(f"{_USERS} start qmpkit-lab.service")  # as it is under way by itself
    await guest.says("as-grace qmpkit wait counter --for running --farm lab")
    after = await guest.machines("as-grace qmpkit")
    assert after["counter"][0] == "running" and after != before


async def _a_users_farm_ends(guest: Guest) -> None:
    await guest.says("as-grace qmpkit down --farm lab --grace 0")
    await guest.says(f"{_USERS} stop qmpkit-lab.socket qmpkit-lab.service")
    assert "no daemon runs" in await guest.says("as-grace qmpkit ps --farm lab 2>&1")
    assert "qemu-system" not in await guest.says("cat /proc/[0-9]*/comm")
    told = await guest.says("journalctl _SYSTEMD_USER_UNIT=qmpkit-lab.service -o cat")
    assert "SIGTERM: the daemon ends" in told
