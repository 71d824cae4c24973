"""The wire: any cutting of the stream gives the same messages, in linear time."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.qmp import wire
from qmpkit.qmp.wire import Framer, FrameTooLong, NotAMessage, Pending, decode, encode

# What is no character is refused: QEMU does not take it.
texts = st.text(st.characters(exclude_categories=("Cs", "Cn")))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(st.dictionaries(texts, json_values, max_size=4), max_size=5)
cuts = st.lists(st.integers(min_value=0, max_value=400), max_size=12)


def _chop(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(messages, cuts, st.sampled_from([b"\n", b"\r\n", b"\r\n\r\n"]))
def test_any_chunking_yields_the_same_messages(
    sent: list[dict[str, object]], places: list[int], ending: bytes
) -> None:
    stream = b"".join(json.dumps(message).encode() + ending for message in sent)
    framer = Framer()
    lines = [line for chunk in _chop(stream, places) for line in framer.feed(chunk)]
    assert [decode(line) for line in lines] == sent
    assert framer.unfinished.strip() == b""


def test_the_unfinished_line_is_kept_and_can_be_forgotten() -> None:
    framer = Framer()
    assert framer.feed(b'{"a":1}\n{"b"') == [b'{"a":1}']
    assert framer.feed(b":") == []
    assert framer.unfinished == b'{"b":'
    framer.clear()
    assert framer.feed(b'{"c":3}\n') == [b'{"c":3}']


def test_a_line_without_end_is_bounded() -> None:
    framer = Framer(limit=10)
    assert framer.feed(b"x" * 11) == []
    with pytest.raises(FrameTooLong):
        framer.feed(b"x")
    assert framer.feed(b"{}\n") == [b"{}"]


def test_a_finished_line_is_not_lost_to_a_too_long_one_behind_it() -> None:
    framer = Framer(limit=10)
    assert framer.feed(b"{}\n" + b"x" * 20) == [b"{}"]


def _seconds_to_frame(pieces: int) -> float:
    framer, piece = Framer(), b"x" * 1024
    started = time.perf_counter()
    for _ in range(pieces):
        framer.feed(piece)
    (line,) = framer.feed(b"\n")
    assert len(line) == pieces * len(piece)
    return time.perf_counter() - started


@pytest.mark.alone
def test_long_lines_take_linear_time() -> None:
    small = min(_seconds_to_frame(256) for _ in range(7))
    large = min(_seconds_to_frame(256 * 64) for _ in range(3))
    # Linear is 64 times as long and quadratic 4096; between them lies the machine's noise.
    assert large < 64 * 10 * small


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1]",
        b'"text"',
        b"17",
        b'{"a":1} trailing',
        b'{"a":',
        b"\xff\xfe",
        b"[" * 99999,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(NotAMessage):
        decode(line)


def test_decode_takes_blanks_around_the_object() -> None:
    assert decode(b' {"a": 1} \r') == {"a": 1}


@given(texts, st.dictionaries(texts, json_values, max_size=4))
def test_what_is_encoded_is_one_line_that_says_the_same(
    command: str, arguments: dict[str, object]
) -> None:
    line = encode("execute", command, arguments, 7)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    expected = {"execute": command, "id": 7} | ({"arguments": arguments} if arguments else {})
    assert decode(line) == expected


def test_an_agent_gets_no_id() -> None:
    assert encode("execute", "guest-ping", None, None) == b'{"execute":"guest-ping"}\n'


def test_oob_has_its_own_verb() -> None:
    assert decode(encode("exec-oob", "yank", {"instances": []}, 1)) == {
        "exec-oob": "yank",
        "arguments": {"instances": []},
        "id": 1,
    }


def test_a_mapping_that_is_no_dict_is_encoded() -> None:
    from types import MappingProxyType

    line = encode("execute", "x", MappingProxyType({"a": 1}), 1)
    assert decode(line)["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), object(), b"bytes"],
    ids=["nan", "infinity", "object", "bytes"],
)
def test_arguments_that_are_no_json_are_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode("execute", "x", {"a": value}, 1)


@pytest.mark.parametrize(
    "text", ["\udcff", "\ud83d \ude00", "\ufffe", "\ufdd0", "\U0001ffff"], ids=ascii
)
def test_texts_that_make_qemu_lose_its_place_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"the arguments of x: QEMU takes no"):
        encode("execute", "x", {"a": [{text: 1}]}, 1)


@pytest.mark.parametrize("text", ["😀", "\\ud800", "é日本", "\ufffd", "\0"], ids=ascii)
def test_texts_that_only_look_like_them_are_sent(text: str) -> None:
    assert decode(encode("execute", "x", {"a": text}, 1))["arguments"] == {"a": text}


def _wait(pending: Pending[str], who: str) -> int:
    ident = pending.new_id()
    pending.waiting[ident] = who
    return ident


def _counts(pending: Pending[str]) -> tuple[int, int, int]:
    return pending.late, pending.duplicated, pending.unknown


def test_each_reply_goes_to_its_waiter_once() -> None:
    pending: Pending[str] = Pending()
    first, second = _wait(pending, "a"), _wait(pending, "b")
    assert pending.take(second) == "b"
    assert pending.take(first) == "a"
    assert _counts(pending) == (0, 0, 0)
    assert pending.take(first) is None
    assert _counts(pending) == (0, 1, 0)


@pytest.mark.parametrize("ident", [99, 0, -1, "1", None, True, 1.0, [1], {}], ids=repr)
def test_an_id_never_given_out_is_unknown(ident: object) -> None:
    pending: Pending[str] = Pending()
    _wait(pending, "a")
    assert pending.take(ident) is None
    assert _counts(pending) == (0, 0, 1)
    assert pending.waiting


def test_the_reply_to_an_abandoned_command_is_late_and_settles_it_once() -> None:
    pending: Pending[str] = Pending()
    settled: list[str] = []
    ident = _wait(pending, "a")
    pending.abandon(ident, lambda: settled.append("now"))
    assert not settled
    assert pending.take(ident) is None
    assert pending.take(ident) is None
    assert settled == ["now"]
    assert _counts(pending) == (1, 1, 0)


def test_draining_settles_and_gives_everybody() -> None:
    pending: Pending[str] = Pending()
    settled: list[str] = []
    pending.abandon(_wait(pending, "a"), lambda: settled.append("a"))
    _wait(pending, "b")
    assert pending.drain() == ["b"]
    assert pending.drain() == []
    assert settled == ["a"]


def test_abandoned_commands_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ABANDONED_LIMIT", 2)
    pending: Pending[str] = Pending()
    settled: list[int] = []
    for _ in range(3):
        ident = _wait(pending, "x")
        pending.abandon(ident, lambda ident=ident: settled.append(ident))  # type: ignore[misc]
    assert settled == [1]


def test_arguments_too_deep_for_json_are_refused() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="too deep"):
        encode("execute", "x", {"a": deep}, 1)
