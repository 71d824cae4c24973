"""Names and patterns mean machines of a farm, or a sentence says which there are."""

from __future__ import annotations

import pytest

from qmpkit.cli.choosing import matching, only_one
from qmpkit.cli.exits import Refusal

KNOWN = ["db", "web1", "web2", "a[1]", "a1"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], []),
        (["web2", "web1", "web2"], ["web2", "web1"]),
        (["db", "*"], ["db", "web1", "web2", "a[1]", "a1"]),
        (["a[1]"], ["a[1]"]),  # a name, before it is a pattern
        (["a[12]"], ["a1"]),
        (["web?"], ["web1", "web2"]),
        (["WEB1x", "db"], None),
    ],
)
def test_what_words_mean(words: list[str], meant: list[str] | None) -> None:
    if meant is None:
        with pytest.raises(Refusal, match="farm 'lab' is called 'WEB1x'"):
            matching(words, KNOWN, "lab")
    else:
        assert matching(words, KNOWN, "lab") == meant


def test_one_that_is_none_or_several() -> None:
    assert only_one("w*1", KNOWN, "lab") == "web1"
    assert only_one("a[1]", KNOWN, "lab") == "a[1]"
    with pytest.raises(Refusal, match=r"'web\*' means several machines: web1, web2"):
        only_one("web*", KNOWN, "lab")
    with pytest.raises(Refusal, match=r"there are: none"):
        only_one("web1", [], "lab")
