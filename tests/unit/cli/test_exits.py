"""Each error gives the exit status that the help promises."""

from __future__ import annotations

import pytest

from qmpkit.cli.exits import EXIT_TABLE, DaemonSaid, Exit, Refusal, exit_of
from qmpkit.errors import (
    BinaryMissing,
    CertificateWrong,
    ChecksumWrong,
    Fault,
    GuestRefused,
    HostLacks,
    ImageFailed,
    ImageInUse,
    KvmUnavailable,
    LaunchFailed,
    PullFailed,
    QmpkitError,
    SpecInvalid,
)
from qmpkit.qmp.errors import (
    CommandRefused,
    MonitorAbsent,
    MonitorBusy,
    MonitorGarbled,
    MonitorLost,
    MonitorSilent,
    MonitorTorn,
)
from qmpkit.server.answers import error_body

INVALID = SpecInvalid([Fault("name", "is missing")])
REFUSED = CommandRefused("vm", "cont", {}, {"error": {"class": "GenericError", "desc": "no"}})


def _image_failed(cause: OSError | None) -> ImageFailed:
    error = ImageFailed("a.qcow2", "create", "no")
    error.__cause__ = cause
    return error


def _pull_failed(cause: OSError) -> PullFailed:
    error = PullFailed("/x", "no")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (INVALID, 2),
        (ImageInUse("a.qcow2", "open", "locked"), 2),
        (Refusal("which command?"), 2),
        (HostLacks("no tun"), 3),
        (KvmUnavailable("no kvm"), 3),
        (BinaryMissing("no qemu"), 3),
        (LaunchFailed("vm", ["qemu"], "exit status 1", ""), 1),
        (GuestRefused("vm", "to stop", "no"), 1),
        (REFUSED, 1),
        (QmpkitError("other"), 1),
        (MonitorAbsent("/x", "no such file"), 4),
        (MonitorBusy("vm", 1.0), 4),
        (MonitorSilent("vm", 1.0), 4),
        (MonitorLost("vm", "closed"), 4),
        (MonitorTorn("vm", b"{"), 4),
        (MonitorGarbled("vm", "no JSON"), 4),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (PullFailed("https://example.org/x", "there is no such file"), 1),
        (CertificateWrong("https://example.org/x", "it is not trusted"), 1),
        (ChecksumWrong("https://example.org/x", "it is another"), 1),
        (_pull_failed(FileNotFoundError(2, "No such file or directory")), 2),
        (_pull_failed(PermissionError(13, "Permission denied")), 1),
        (_image_failed(None), 1),
        (_image_failed(OSError(28, "No space left on device")), 1),
        (_image_failed(FileExistsError(17, "File exists")), 2),
        (_image_failed(PermissionError(13, "Permission denied")), 2),
        (KeyboardInterrupt(), 130),
        (KeyError("a bug"), None),
        (OSError("a bug without errno"), None),
        (ExceptionGroup("two", [INVALID, HostLacks("no tun")]), 3),
        (ExceptionGroup("two", [INVALID, KeyError("a bug")]), None),
        (BaseExceptionGroup("one", [KeyboardInterrupt()]), 130),
    ],
)
def test_status(error: BaseException, status: int | None) -> None:
    assert exit_of(error) == status


@pytest.mark.parametrize(
    "cause",
    [
        None,
        OSError(28, "No space left on device"),
        FileExistsError(17, "File exists"),
        NotADirectoryError(20, "Not a directory"),
    ],
)
def test_a_file_that_is_named_to_a_daemon_is_as_one_named_here(cause: OSError | None) -> None:
    error = _image_failed(cause)
    assert exit_of(DaemonSaid(error_body(error))) == exit_of(error)


def test_the_help_lists_every_status() -> None:
    told = {line.split()[0] for line in EXIT_TABLE.splitlines()[1:]}
    assert told == {str(code.value) for code in Exit}
