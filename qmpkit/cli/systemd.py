"""`qmpkit systemd`: the units that run a farm's daemon, when somebody asks for it and at boot."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import attrs

from qmpkit.cli.exits import Exit, Refusal
from qmpkit.cli.linger import linger_problem
from qmpkit.cli.talk import talk
from qmpkit.server.door import shared_door

__all__ = ["Units", "install_units", "print_units", "units_of"]

_OURS = "# Made by `qmpkit systemd`."
_HEAD = _OURS + " Changes belong into a drop-in: systemctl {user}edit {name}"

_SERVICE = """\
{head}
[Unit]
Description=Farm {farm} of qmpkit
Requires={name}.socket
After={after}

[Service]
Type=notify
ExecStart={command}
TimeoutStartSec=600
{environment}Restart=on-failure
RestartPreventExitStatus=2 3
# Guests live on when the daemon ends, and the next one adopts them; `qmpkit down` ends them.
KillMode=process
# One QEMU that the kernel kills for its memory is that machine's affair alone.
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=524288
{confined}
[Install]
WantedBy={target}
Also={name}.socket
"""

# No PrivateDevices or DeviceAllow (/dev/kvm, disks, vfio; ProtectClock sets one too), no
# MemoryDenyWriteExecute (TCG writes code), no ProtectHome or PrivateTmp (images are anywhere),
# no ProtectKernelTunables or ProtectControlGroups, no RestrictNamespaces (virtiofsd makes some).
_CONFINED = """\
# What neither the daemon nor its guests' QEMU, with or without KVM, has a use for.
NoNewPrivileges=yes
ProtectSystem=full
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectHostname=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @obsolete @reboot @swap
SystemCallErrorNumber=EPERM
"""

# A user's manager confines only who gives up new privileges, and rootless networks need them.
_UNCONFINED = (
    "# Not confined: qemu-bridge-helper is setuid, and a user's manager would forbid that.\n"
)

_SOCKET = """\
{head}
[Unit]
Description=Farm {farm} of qmpkit, its socket

[Socket]
ListenStream={path}
SocketMode={mode}
{group}{folder}Backlog=512
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

_OWN_PLACES = ("QMPKIT_STATE_DIR", "QMPKIT_RUNTIME_DIR")
_PATH_LIMIT = 107


@attrs.frozen
class Units:
    """The two units of a farm by file name, and where they belong."""

    name: str
    files: dict[str, str]
    folder: Path
    user: bool

    @property
    def enabling(self) -> str:
        """What the administrator, or the user, says to systemd next."""
        who = "systemctl --user" if self.user else "systemctl"
        names = shlex.join([f"{self.name}.socket", f"{self.name}.service"])
        return f"{who} daemon-reload && {who} enable --now {names}"


def units_of(farm: str, command: list[str], group: str | None, *, user: bool) -> Units:
    """The units; *command* is how `qmpkit` is run.  Raises Refusal."""
    name = f"qmpkit-{_escaped(farm)}"
    if group is not None and user:
        what = "a user's systemd gives no group a socket"
        raise Refusal(f"{what}. Cure: without --user, or `qmpkit serve --group`")
    if group is not None and not (group and group.isprintable()):
        raise Refusal(f"{group!r} is no name of a group. Cure: one that `getent group` lists")
    path = _door(farm, user)
    common = {"farm": _plain(farm), "name": name}
    head = {"user": "--user " if user else ""}
    words = [*command, "serve", "--farm", farm, *([] if group is None else ["--group", group])]
    service = _SERVICE.format(
        **common,
        head=_HEAD.format(name=f"{name}.service", **head),
        after=f"{name}.socket" + ("" if user else " network.target local-fs.target"),
        command=_command_line(words),
        environment=_environment(user),
        confined=_UNCONFINED if user else _CONFINED,
        target="default.target" if user else "multi-user.target",
    )
    listening = _SOCKET.format(
        **common,
        head=_HEAD.format(name=f"{name}.socket", **head),
        path=path,
        mode="0600" if group is None else "0660",
        group="" if group is None else f"SocketGroup={_plain(group)}\n",
        folder=_folder(path, group, user),
    )
    files = {f"{name}.socket": listening, f"{name}.service": service}
    return Units(name, files, _unit_folder(user), user)


def _door(farm: str, user: bool) -> str:
    """The socket's path, for the daemon that systemd starts: not for this shell."""
    own = os.environ.get("QMPKIT_RUNTIME_DIR")
    longest = Path("/run/user/4294967295/qmpkit" if user else "/run/qmpkit")
    root = Path(own).resolve() if own else longest
    path = shared_door(farm, root)
    if len(os.fsencode(path)) > _PATH_LIMIT:
        what = f"the socket's path {path} is longer than {_PATH_LIMIT} bytes"
        raise Refusal(f"{what}. Cure: a shorter name of the farm, or QMPKIT_RUNTIME_DIR")
    return _plain(str(path)) if own else f"%t/{_plain(str(path.relative_to(longest.parent)))}"


def _folder(path: str, group: str | None, user: bool) -> str:
    """How the socket's directory is made: open to those alone who may use the socket."""
    if user:
        return "DirectoryMode=0700\n"
    options = "-m 0700" if group is None else f"-m 0750 -g {_argument(group)}"
    folder = path.rpartition("/")[0]
    install = shutil.which("install") or "/usr/bin/install"
    return f"ExecStartPre={install} -d {options} {_quoted(folder).replace('$', '$$')}\n"


def _environment(user: bool) -> str:
    """What decides where things are, as it is for this shell."""
    places = {name: os.path.realpath(own) for name in _OWN_PLACES if (own := os.environ.get(name))}
    if user and (state := os.environ.get("XDG_STATE_HOME", "")).startswith("/"):
        places["XDG_STATE_HOME"] = state
    return "".join(f"Environment={_word(f'{key}={value}')}\n" for key, value in places.items())


def _command_line(words: list[str]) -> str:
    """A `$` begins a variable, but in the program's path."""
    return " ".join([_word(words[0]), *map(_argument, words[1:])])


def _argument(text: str) -> str:
    return _word(text).replace("$", "$$")


def _word(text: str) -> str:
    """One word of a unit's line, nothing in it having a meaning."""
    return _quoted(_plain(text))


def _quoted(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./=%:@+,-]+", text, re.ASCII):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(name: str) -> str:
    """As `systemd-escape` does it: what may stand in a unit's name."""
    return "".join(
        char if re.fullmatch(r"[A-Za-z0-9:_.-]", char, re.ASCII) else _hexed(char) for char in name
    )


def _hexed(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _unit_folder(user: bool) -> Path:
    if not user:
        return Path("/etc/systemd/system")
    own = os.environ.get("XDG_CONFIG_HOME", "")
    config = Path(own) if own.startswith("/") else Path.home() / ".config"
    return config / "systemd" / "user"


def _command() -> list[str]:
    found = shutil.which("qmpkit")
    return [sys.executable, "-m", "qmpkit.cli"] if found is None else [str(Path(found).absolute())]


def print_units(farm: str, group: str | None, *, user: bool) -> int:
    """Print both units, each with its place, and say what they need that is not here."""
    units = units_of(farm, _command(), group, user=user)
    texts = [f"# {units.folder / name}\n{text}" for name, text in units.files.items()]
    sys.stdout.write("\n".join(texts))
    _warn(units)
    return Exit.OK


def install_units(farm: str, group: str | None, *, user: bool) -> int:
    """Write both units where systemd looks; it is not told to start them."""
    units = units_of(farm, _command(), group, user=user)
    try:
        units.folder.mkdir(parents=True, exist_ok=True)
        for name, text in units.files.items():
            _write(units.folder / name, text)
    except OSError as error:
        raise Refusal(f"cannot write {units.folder}: {error.strerror}") from error
    talk.say(f"next: {units.enabling}")
    _warn(units)
    return Exit.OK


def _write(file: Path, text: str) -> None:
    if file.exists() and not file.read_text(errors="replace").startswith(_OURS):
        raise Refusal(f"{file} is there, and not of `qmpkit systemd`. Cure: remove it")
    file.write_text(text)
    talk.say(str(file))


def _warn(units: Units) -> None:
    if units.user and (problem := linger_problem()):
        talk.warn(problem)
