"""How a program that was run in the guest ended."""

from __future__ import annotations

import attrs

__all__ = ["Completed"]


@attrs.frozen
class Completed:
    """A program that has ended in the guest.

    `status` is its exit status, None when `signal` ended it.  `truncated`: it wrote
    more than the agent keeps (16 MiB each of stdout and stderr).
    """

    argv: tuple[str, ...]
    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """True when it ended with status 0."""
        return self.status == 0

    @property
    def text(self) -> str:
        """`stdout` as text; bytes that are no UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """`stderr` as text."""
        return self.stderr.decode("utf-8", "replace")

    @property
    def ending(self) -> str:
        """How it ended, in words: "exit status 1", "signal 9"."""
        return f"exit status {self.status}" if self.signal is None else f"signal {self.signal}"
