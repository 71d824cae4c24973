"""Text that came from elsewhere, made safe to show: no character of it commands the terminal.

Names in images, file names and QEMU's words are other people's.  What people read goes
through here; a guest's console and `--json`, which escapes by itself, do not.
"""

from __future__ import annotations

import os
import re
import shlex
import unicodedata

__all__ = ["one_line", "several_lines", "shell_word"]

_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_LAID_OUT = "\n\t"


def one_line(text: object) -> str:
    r"""*text* with all that is not printable written as an escape: `\x1b`, `\n`, `\u202e`.

    A byte of a file name that is not UTF-8 is shown as that byte: `\xff`.
    """
    return _escaped(str(text), "")


def several_lines(text: object) -> str:
    """As `one_line`, for what is meant to have lines (ended by CR LF, too) and tabs."""
    return _escaped(str(text).replace("\r\n", "\n"), _LAID_OUT)


def shell_word(word: object) -> str:
    """*word* quoted for a shell (bash, zsh, ksh when it is not printable), as one line."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    # Bytes, because a name need not be UTF-8; two digits, so that none of what follows counts.
    plain = os.fsencode(text)
    quoted = re.sub(rb"[^ -~]|[\\']", lambda found: b"\\x%02x" % found[0][0], plain)
    return f"$'{quoted.decode('ascii')}'"


def _escaped(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(char) == "Zs":  # other scripts' spaces
        return char
    if code < 0x80:
        return _SHORT.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
