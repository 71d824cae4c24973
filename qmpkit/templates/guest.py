"""What makes a clone somebody, inside its guest: laid ready once, run by each clone.

A program of 300 bytes, which every Linux of the architecture can run, sets the clock and
feeds and reseeds the kernel's random numbers.  It becomes a script for `sh`, which names the
guest anew.  So it is one call of the agent, and no key is made before the entropy is there.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources

import trio

from qmpkit.errors import GuestRefused, QmpkitError
from qmpkit.operations.agent import Agent
from qmpkit.operations.errors import AgentRefused, GuestCommandFailed
from qmpkit.templates.manifest import GuestHooks
from qmpkit.templates.specs import Somebody

__all__ = ["become", "lay_ready", "quiet", "reseeder", "serve_again", "stop_services"]

_NAME = "qmpkit-clone"
_PLACES = ("/run", "/dev/shm", "/var/tmp")  # the first may be mounted noexec
_TOO_LITTLE = 0x80  # what the program ends with when its input is no clock and entropy
_UNDO_GRACE = 30.0
ENTROPY = 64

# x86_64.  Each line stands for the instructions beside it.
_CODE = (
    "48 89 e5 48 81 ec 00 01 00 00 31 db",  # mov rbp, rsp; sub rsp, 256; xor ebx, ebx
    "ba 58 00 00 00 29 da 74 12",  # read: mov edx, 88; sub edx, ebx; jz clock
    "48 8d 34 1c 31 ff 31 c0 0f 05",  # lea rsi, [rsp+rbx]; read(0, rsi, edx)
    "85 c0 7e 69 01 c3 eb e5",  # test eax, eax; jle fail; add ebx, eax; jmp read
    "48 89 e6 31 ff b8 e3 00 00 00 0f 05",  # clock: clock_settime(CLOCK_REALTIME, rsp)
    "85 c0 78 55",  # test eax, eax; js fail
    "48 8d 3d 5e 00 00 00 be 02 00 08 00",  # lea rdi, [path]; mov esi, O_RDWR | O_CLOEXEC
    "b8 02 00 00 00 0f 05 85 c0 78 3e 89 c7",  # open(rdi, esi); js fail; mov edi, eax
    "48 8d 54 24 10 be 03 52 08 40",  # lea rdx, [rsp+16]; mov esi, RNDADDENTROPY
    "b8 10 00 00 00 0f 05 85 c0 78 27",  # ioctl(edi, esi, rdx); js fail
    "be 07 52 00 00 b8 10 00 00 00 0f 05 85 c0 78 17",  # ioctl(edi, RNDRESEEDCRNG); js fail
    "48 8b 45 00 48 8d 54 c5 10",  # mov rax, [rbp]; lea rdx, [rbp+rax*8+16]: the environment
    "48 8d 75 10 48 8b 3e b8 3b 00 00 00 0f 05",  # execve(argv[1], &argv[1], rdx)
    "f7 d8 0d 80 00 00 00 89 c7 b8 3c 00 00 00 0f 05",  # fail: exit(0x80 | -eax)
)
_HEADERS = 64 + 56
_LOADED_AT = 0x400000


def reseeder(arch: str) -> bytes | None:
    """The program, an ELF file; None for an architecture that there is none for yet."""
    if arch != "x86_64":
        return None
    body = bytes.fromhex("".join(_CODE)) + b"/dev/urandom\0"
    size = _HEADERS + len(body)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    entry = _LOADED_AT + _HEADERS
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOADED_AT, _LOADED_AT, size, size, 0x1000)
    return ident + header + segment + body


async def lay_ready(agent: Agent, arch: str, services: Sequence[str]) -> GuestHooks:
    """Write the program and the script where the guest can run them, and try it.

    GuestRefused when it can nowhere.
    """
    program = reseeder(arch)
    if program is None:
        why = f"there is no program for {arch} guests yet that gives them entropy of their own"
        raise GuestRefused(agent.name, "to become a template", f"{why}. Cure: `twins` (--twins)")
    script = resources.files(__package__).joinpath("become.sh").read_bytes()
    for place in _PLACES:
        hooks = GuestHooks(
            program=f"{place}/{_NAME}", script=f"{place}/{_NAME}.sh", services=tuple(services)
        )
        with suppress(AgentRefused):
            await agent.write_file(hooks.program, program)
            await agent.write_file(hooks.script, script)
            await agent.run(["chmod", "700", hooks.program], check=True)
            if (await agent.run([hooks.program], input=b"\0")).status == _TOO_LITTLE:
                return hooks
    why = f"programs run in none of {', '.join(_PLACES)}. Cure: mount one without noexec"
    raise GuestRefused(agent.name, "to become a template", why)


async def quiet(agent: Agent, *, drop_caches: bool) -> None:
    """Have what the guest has written on its disks, and the caches gone, if that is wanted."""
    await agent.run(["sync"], check=True)
    if drop_caches:
        await agent.write_file("/proc/sys/vm/drop_caches", "3\n")


async def stop_services(agent: Agent, services: Sequence[str]) -> None:
    """Stop them in order, by `systemctl` or `service`; GuestCommandFailed when one does not."""
    for service in services:
        with _cured(lambda _: _NO_SERVICE):
            await agent.run([*_BY_WHAT, "stop", service], check=True)


async def serve_again(agent: Agent, services: Sequence[str]) -> None:
    """Start what was stopped, of a machine that has not become a template."""
    with trio.move_on_after(_UNDO_GRACE, shield=True), suppress(QmpkitError):
        for service in reversed(services):
            await agent.run([*_BY_WHAT, "start", service])


@contextmanager
def _cured(cure_of: Callable[[int], str]) -> Iterator[None]:
    """A command that fails within is told with the cure for its exit status (or signal: 0)."""
    try:
        yield
    except GuestCommandFailed as failed:
        cure = cure_of(failed.completed.status or 0)
        raise GuestCommandFailed(failed.machine, failed.completed, cure) from None


_NO_SERVICE = "name a service that its guest has, or leave it out (`services`, --service)"

_BY_WHAT = (
    "sh",
    "-c",
    'if command -v systemctl >/dev/null; then systemctl "$1" "$2"; else service "$2" "$1"; fi',
    "sh",
)


async def become(
    agent: Agent, hooks: GuestHooks, who: Somebody, *, ssh_host_keys: bool = False
) -> None:
    """Have the guest be *who*, with the host's clock and 64 bytes of its entropy.

    GuestCommandFailed with what the guest says, when it cannot.
    """
    lines = {
        "hostname": who.hostname,
        "machine-id": who.machine_id,
        "instance-id": who.instance_id,
        **{f"mac {old}": new for old, new in who.macs.items()},
        **({"ssh-host-keys": "new"} if ssh_host_keys else {}),
        **{f"service {name}": "start" for name in reversed(hooks.services)},
    }
    command = [hooks.program, "/bin/sh", hooks.script]
    with _cured(_cure_of):
        await agent.run(command, input=_clock_and_entropy() + _text(lines), check=True)


_NO_KEYS, _NOT_STARTED = 2, 4  # in the status of the script
_CURES = {
    _NO_KEYS: "have openssh-client in the template, or leave out `ssh_host_keys` (--ssh-host-keys)",
    _NOT_STARTED: "make the template anew without that service (`services`, --service)",
}
_TWIN = "have it be a twin (`twin`, --twin)"


def _cure_of(status: int) -> str:
    script = status if status < _TOO_LITTLE else 0  # the program itself ends with more
    return "; ".join(cure for bit, cure in _CURES.items() if script & bit) or _TWIN


def _clock_and_entropy() -> bytes:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    clock = struct.pack("<qq", seconds, nanoseconds)
    # struct rand_pool_info: how many bits it counts for, and how many bytes there are.
    return clock + struct.pack("<ii", 8 * ENTROPY, ENTROPY) + secrets.token_bytes(ENTROPY)


def _text(lines: Mapping[str, str]) -> bytes:
    return "".join(f"{key} {value}\n" for key, value in lines.items()).encode()
