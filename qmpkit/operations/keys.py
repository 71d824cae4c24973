"""Keys pressed on the guest's keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import trio

from qmpkit.operations._protocols import Monitor
from qmpkit.operations.errors import UnknownKey

__all__ = ["QKEYS", "send_keys", "type_text"]

# A PS/2 keyboard holds 16 bytes, about five keystrokes, and drops what comes then: at this
# pace a guest may be busy for 200 ms.  There is no event that tells that it has read a key.
HOLD = 0.02
"""Seconds between a key's press and its release, and until the next key."""

_NAMES = """
    shift shift_r alt alt_r ctrl ctrl_r menu esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab
    q w e r t y u i o p bracket_left bracket_right ret a s d f g h j k l semicolon apostrophe
    grave_accent backslash z x c v b n m comma dot slash asterisk spc caps_lock f1 f2 f3 f4 f5 f6
    f7 f8 f9 f10 num_lock scroll_lock kp_divide kp_multiply kp_subtract kp_add kp_enter kp_decimal
    sysrq kp_0 kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9 less f11 f12 print home pgup pgdn end
    left up down right insert delete stop again props undo front copy open paste find cut lf help
    meta_l meta_r compose pause ro hiragana henkan yen muhenkan katakanahiragana kp_comma kp_equals
    power sleep wake audionext audioprev audiostop audioplay audiomute volumeup volumedown
    mediaselect mail calculator computer ac_home ac_back ac_forward ac_refresh ac_bookmarks lang1
    lang2
"""
QKEYS = frozenset(_NAMES.split())
"""QEMU 7.2's names of keys (QKeyCode); a later QEMU is asked for those it has besides."""

_ALIASES = {
    "control": "ctrl",
    "del": "delete",
    "enter": "ret",
    "escape": "esc",
    "ins": "insert",
    "meta": "meta_l",
    "pagedown": "pgdn",
    "pageup": "pgup",
    "return": "ret",
    "space": "spc",
    "super": "meta_l",
    "win": "meta_l",
}

_PLAIN = {
    " ": "spc",
    "\n": "ret",
    "\t": "tab",
    "\b": "backspace",
    "\x1b": "esc",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    "\\": "backslash",
    ",": "comma",
    ".": "dot",
    "/": "slash",
    **{char: char for char in "abcdefghijklmnopqrstuvwxyz0123456789"},
}
_SHIFTED = {
    **dict(zip(')!@#$%^&*(_+{}:"~|<>?', "0123456789-=[];'`\\,./", strict=True)),
    **{char.upper(): char for char in "abcdefghijklmnopqrstuvwxyz"},
}


async def send_keys(machine: Monitor, *chords: str, hold: float = HOLD) -> None:
    """Press chords such as "ctrl-alt-delete", "ret" or "alt-f2", one after another.

    A chord is key names joined by "-" or "+", in QEMU's spelling (QKeyCode) or a usual
    one (enter, del, win, …), of any case; its keys are pressed in order and released
    together.  Returns when the last has been released, *hold* seconds after each
    press and each release.  QMP `send-key`.  A guest without a keyboard (microvm) or
    one that does not look ignores them; those for a paused one are lost (QEMU 7.2, 10.0).

    Raises UnknownKey before anything is pressed.
    """
    split = [_split(chord) for chord in chords]
    await _refuse_unknown(machine, (key for keys in split for key in keys))
    for keys in split:
        await _press(machine, keys, hold)


async def type_text(machine: Monitor, text: str, *, hold: float = HOLD) -> None:
    """Type *text* on a keyboard with US layout: 25 plain or 12 shifted characters a second.

    "\\n" is the Enter key.  Sent keys are not known to have been read; await their
    effect, for instance on the console.  Raises UnknownKey, before anything is
    pressed, for a character such a keyboard does not have.
    """
    strokes = [_stroke(char) for char in text]
    for keys in strokes:
        await _press(machine, keys, hold)


async def _press(machine: Monitor, keys: Sequence[str], hold: float) -> None:
    codes = [{"type": "qcode", "data": key} for key in keys]
    await machine.execute("send-key", {"keys": codes, "hold-time": round(hold * 1000)})
    # QEMU answers at once and plays the chord from a queue, that drops what exceeds it.
    await trio.sleep(2 * len(keys) * hold)


def _split(chord: str) -> list[str]:
    names = chord.lower().replace("+", "-").split("-")
    if not all(names):
        hint = 'the keys "-" and "+" are called minus, and shift-equal'
        raise UnknownKey(chord, "not a chord of keys", hint)
    return [_ALIASES.get(name, name) for name in names]


def _stroke(char: str) -> list[str]:
    if (key := _PLAIN.get(char)) is not None:
        return [key]
    if (below := _SHIFTED.get(char)) is not None:
        return ["shift", _PLAIN[below]]
    raise UnknownKey(char, "no key of a US keyboard types this")


async def _refuse_unknown(machine: Monitor, keys: Iterable[str]) -> None:
    strange = [key for key in keys if key not in QKEYS]
    if not strange:
        return
    known = await _qemus_keys(machine)
    for key in strange:
        if key not in known:
            close = difflib.get_close_matches(key, [*known, *_ALIASES], 3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see QEMU's QKeyCode"
            raise UnknownKey(key, "no such key", hint)


async def _qemus_keys(machine: Monitor) -> frozenset[str]:
    schema = await machine.execute("query-qmp-schema")
    # Types have no names there: QKeyCode is the enumeration that has all of our keys.
    for entry in schema:
        if entry["meta-type"] == "enum" and frozenset(entry["values"]) >= QKEYS:
            return frozenset(entry["values"])
    return QKEYS
