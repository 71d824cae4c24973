"""The search behind `expect`: right for every cut of the stream, and in linear time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qmpkit.operations import patterns
from qmpkit.operations.console_buffer import Ring
from qmpkit.operations.patterns import Match, Pattern, Search

KEEP = 1024 * 1024
Found = tuple[int, bytes, bytes, int]


def cut(text: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """*text* in chunks of these sizes, the rest in one."""
    at = 0
    for size in sizes:
        yield text[at : at + size]
        at += size
    yield text[at:]


def all_matches(chunks: Iterator[bytes], wanted: Sequence[Pattern]) -> list[Found]:
    """What a loop of expects finds while the chunks arrive one by one."""
    ring, found, search = Ring(KEEP), [], Search(wanted, 0, KEEP)
    for chunk in chunks:
        ring.add(chunk)
        while match := search.look(ring):
            found.append((match.index, match.raw_before, match.raw, match.end))
            search = Search(wanted, match.end, KEEP)
    return found


def find(text: bytes, *wanted: Pattern) -> Match:
    ring = Ring(KEEP)
    ring.add(text)
    match = Search(wanted, 0, KEEP).look(ring)
    assert match is not None
    return match


def by_every_byte(text: bytes, wanted: Sequence[Pattern]) -> list[Found]:
    """The definition: search again after every byte, the first that has a match wins."""
    found, start = [], 0
    for end in range(1, len(text) + 1):
        for index, pattern in enumerate(wanted):
            span = plain_search(text[start:end], pattern)
            if span is not None:
                low, high = start + span[0], start + span[1]
                found.append((index, text[start:low], text[low:high], high))
                start = high
                break
    return found


def plain_search(text: bytes, pattern: Pattern) -> tuple[int, int] | None:
    if isinstance(pattern, str | bytes):
        raw = pattern.encode() if isinstance(pattern, str) else pattern
        at = text.find(raw)
        return None if at < 0 else (at, at + len(raw))
    if isinstance(pattern.pattern, bytes):
        match = pattern.search(text)
        return match.span() if match else None
    return text_search(text, pattern)


def text_search(text: bytes, pattern: re.Pattern[str]) -> tuple[int, int] | None:
    decoded = text.decode("utf-8", "ignore")  # of valid text only an unfinished end is ignored
    match = pattern.search(decoded)
    if match is None:
        return None
    low, high = (len(decoded[:at].encode()) for at in match.span())
    return low, high


REGEXES: list[Pattern] = [
    re.compile(rb"b+a"),
    re.compile(rb"a(b|c)*a"),
    re.compile(r"é+b"),
    re.compile(r"[^a]\n"),
    re.compile(r"[^abc\n]"),
    re.compile(rb"(?m)^c"),
    re.compile(r"(a)\1\1"),
    re.compile(rb"(?<=b)c[ab]"),
]
texts = st.text(alphabet="abcé\n", max_size=80).map(str.encode)
literals = st.text(alphabet="abcé\n", min_size=1, max_size=4)
one = st.one_of(literals, literals.map(str.encode), st.sampled_from(REGEXES))
several = st.lists(one, min_size=1, max_size=4)
sizes = st.lists(st.integers(0, 9), max_size=40)


@example("aé".encode(), [re.compile(r"[^abc\n]")], [2])  # half a character is none
@given(texts, several, sizes)
def test_any_cut_gives_the_matches_of_a_search_after_every_byte(
    text: bytes, wanted: list[Pattern], cuts: list[int]
) -> None:
    assert all_matches(cut(text, cuts), wanted) == by_every_byte(text, wanted)


@given(st.integers(0, 200), sizes)
def test_a_match_after_much_text_is_found_whatever_the_cut(extra: int, cuts: list[int]) -> None:
    text = b"." * (3 * patterns.SPAN + extra) + b"pid 123\r\n"
    wanted: list[Pattern] = [re.compile(r"pid (\d+)\r"), "never"]
    big_cuts = [size * 4000 for size in cuts]
    assert [found[2] for found in all_matches(cut(text, big_cuts), wanted)] == [b"pid 123\r"]


def test_first_complete_wins_then_order() -> None:
    assert find(b"xlogin: ", "login: ", "in: ").index == 0
    assert find(b"xlogin: ", "in: ", "login: ").index == 0
    assert find(b"a long one", "a long one", "long").index == 1


def test_match_tells_all_about_itself() -> None:
    match = find("grüß 10.0.0.7 Gott".encode(), re.compile(r"(\d+)\.0\.(?P<rest>0\.\d) (x)?"))
    assert match.before == "grüß "
    assert match.text == "10.0.0.7 "
    assert (match.group(1), match.group("rest"), match.group(3)) == ("10", "0.7", "")
    assert match.raw_before == "grüß ".encode()
    assert match.end == len("grüß 10.0.0.7 ".encode())
    assert find(b"xab", "ab").group() == "ab"
    with pytest.raises(IndexError):
        find(b"xab", "ab").group(1)


def test_a_greedy_end_is_always_as_short_as_it_can_be() -> None:
    assert find(b"12345\r", re.compile(rb"\d+")).raw == b"1"
    assert find(b"12345\r", re.compile(rb"\d+\r")).raw == b"12345\r"


def test_lookahead_is_complete_when_it_has_seen_what_follows() -> None:
    match = find(b"foo bar", re.compile(rb"foo(?= bar)"), " ba")
    assert (match.index, match.raw) == (1, b" ba")  # complete one byte earlier
    assert find(b"foo bar", re.compile(rb"foo(?= bar)")).raw == b"foo"


def test_bytes_that_are_no_text_do_not_disturb_a_text_search() -> None:
    match = find(b"\xff\xfe\xc3caf\xc3\xa9!", re.compile(r"(.)café"))
    assert match.raw == b"\xc3caf\xc3\xa9"
    assert match.group(1) == "\N{REPLACEMENT CHARACTER}"


def test_caret_does_not_match_where_the_searched_part_happens_to_begin() -> None:
    text = b"a" * (2 * patterns.SPAN)
    chunks = cut(text + b"b", [1000] * 40)
    assert all_matches(chunks, [re.compile(rb"^ab")]) == []


@pytest.mark.parametrize("wrong", ["", b"", re.compile("x*"), re.compile(b"$")])
def test_a_pattern_that_matches_nothing_at_all_is_refused(wrong: Pattern) -> None:
    with pytest.raises(ValueError, match=r"1 to|empty text"):
        Search([wrong], 0, KEEP)


def test_expect_without_patterns_or_with_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pattern"):
        Search([], 0, KEEP)
    with pytest.raises(TypeError, match="not 7"):
        Search([7], 0, KEEP)  # type: ignore[list-item]


class CountingRing(Ring):
    """Counts the bytes that are handed to a search."""

    searched = 0

    def copy(self, start: int, end: int) -> bytes:
        data = super().copy(start, end)
        self.searched += len(data)
        return data

    def find(self, needle: bytes, start: int, end: int) -> int | None:
        self.searched += end - start
        return super().find(needle, start, end)


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000, 300_000])
def test_no_byte_is_searched_many_times(chunk: int) -> None:
    """However the stream is cut, the work grows with its length and not with its square."""
    ring = CountingRing(KEEP)
    size = 100_000 if chunk < 100 else KEEP
    wanted: list[Pattern] = ["never there", b"\0", re.compile(rb"no\d"), re.compile("né")]
    search = Search(wanted, 0, KEEP)
    for _ in range(size // chunk):
        ring.add(b"." * chunk)
        assert search.look(ring, everything=search.due(ring)) is None
    # Two regular expressions, each up to 1 / _MUCH_IS times, and the little ones' _LITTLE.
    assert ring.searched <= 60 * size


def test_the_ring_keeps_the_end_of_the_stream() -> None:
    ring = Ring(10)
    for chunk in (b"abcdef", b"ghijkl", b"m"):
        ring.add(chunk)
    assert (ring.base, ring.end) == (3, 13)
    assert ring.copy(0, 100) == b"defghijklm"
    assert ring.find(b"gh", 0, ring.end) == 6
    assert ring.find(b"gh", 0, 7) is None
    assert ring.find(b"ab", 0, ring.end) is None
