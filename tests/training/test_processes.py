"""One of two processes fails: the job ends within a minute and says which rank and where."""

from __future__ import annotations

import time

import pytest


@pytest.mark.slow
def test_hanging_rank_is_named_within_a_minute(start) -> None:
    training = start(ranks=2, batch=7, workers=0, damage="hang,1,4")
    training.wait_for(4)
    begin = time.monotonic()
    assert training.end(90) != 0
    assert time.monotonic() - begin < 60
    assert "error: Rank 1: it hangs (its last step was 4)" in training.text()


@pytest.mark.slow
def test_error_on_one_rank_ends_all_and_shows_its_traceback(start) -> None:
    training = start(ranks=2, batch=7, workers=0, damage="bug,1,2")
    training.wait_for(1)
    begin = time.monotonic()
    assert training.end(60) != 0
    assert time.monotonic() - begin < 60
    assert "ZeroDivisionError: a bug on one rank" in training.text()
    assert "Rank 1: ended with an error (its last step was 2)" in training.text()
