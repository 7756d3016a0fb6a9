"""Threads by load, over simulated series: a second is a step."""

from __future__ import annotations

from draftd.daemon.threads import Threads


def counts(threads: Threads, others: list[float]) -> list[int]:
    return [threads.step(used, float(second)) for second, used in enumerate(others)]


def test_a_busy_program_takes_a_thread_at_once_and_its_end_gives_it_back_later() -> None:
    threads = Threads(cores=2, most=2)
    assert counts(threads, [0.05, 0.67, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) == [2, 1, 1, 1, 1, 1, 1, 2]


def test_one_thread_is_always_left() -> None:
    assert counts(Threads(cores=2, most=2), [2.0, 5.0]) == [1, 1]


def test_little_use_by_others_takes_nothing() -> None:
    assert set(counts(Threads(cores=8, most=8), [0.1, 0.3, 0.0, 0.25])) == {8}


def test_cores_beyond_the_most_are_the_others_to_use() -> None:
    assert counts(Threads(cores=16, most=4), [11.0, 12.5, 14.0]) == [4, 3, 2]


def test_a_load_that_comes_and_goes_does_not_make_the_count_swing() -> None:
    swings = counts(Threads(cores=4, most=4), [1.0, 0.0] * 20)
    assert set(swings) == {3}


def test_work_after_a_pause_begins_with_what_fits_at_that_moment() -> None:
    threads = Threads(cores=4, most=4)
    threads.step(3.0, 0.0)
    threads.wake(2)
    assert threads.count == 2
    threads.wake(0)
    assert threads.count == 4
    threads.wake(3)  # a moment is too little to go down by
    assert threads.count == 4
