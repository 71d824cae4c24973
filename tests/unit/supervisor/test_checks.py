"""What a guest's HTTP server says, and what its check makes of it."""

from __future__ import annotations

import pytest

from qmpkit.supervisor.checks import answer_problem


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("HTTP/1.0 200 OK", ""),
        ("HTTP/1.1 399", ""),
        ("HTTP/1.1 503 Service Unavailable", "the answer is 503 Service Unavailable"),
        ("HTTP/1.1 99 Low", "the answer is no HTTP"),
        ("HTTP/1.1", "the answer is no HTTP"),
        ("SSH-2.0-OpenSSH", "the answer is no HTTP"),
        ("", "the answer is no HTTP"),
        # More digits than Python makes a number of: an error that nobody had foreseen.
        (f"HTTP/1.1 {'2' * 5000}", "the answer is no HTTP"),
        ("HTTP/1.1 \u00b2\u00b2\u00b2", "the answer is no HTTP"),
    ],
)
def test_the_first_line_of_an_answer(line: str, problem: str) -> None:
    assert answer_problem(line) == problem
