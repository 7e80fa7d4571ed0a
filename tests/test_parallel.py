"""Work side by side: in order, one caller at a time, and the libraries' own threads as they were before."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from helpers.parallel import over_clips, side_by_side


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_results_are_in_order_and_libraries_compute_alone_meanwhile():
    np.ones((8, 8)) @ np.ones((8, 8))
    before, torchs = blas_threads(), torch.get_num_threads()

    def look(i):
        time.sleep(0.01 * (3 - i))
        return i, blas_threads(), torch.get_num_threads(), threading.current_thread().name

    found = side_by_side(look, [0, 1, 2, 3])
    assert [i for i, *_ in found] == [0, 1, 2, 3]
    assert all(
        set(blas) == {1} and torch_threads == 1 and "side_by_side" in name
        for _, blas, torch_threads, name in found
    )
    assert blas_threads() == before and torch.get_num_threads() == torchs
    assert side_by_side(look, []) == []


def test_callers_take_turns():
    at_work, most = [], []

    def work(who):
        at_work.append(who)
        most.append(len({*at_work}))
        time.sleep(0.01)
        at_work.remove(who)

    callers = [threading.Thread(target=side_by_side, args=(work, [who] * 6)) for who in "abc"]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(most) == 18 and max(most) == 1


def test_an_error_comes_out_and_the_next_call_works():
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda x: 1 / x, [1, 0, 2])
    assert side_by_side(lambda x: 1 / x, [1, 2]) == [1, 0.5]


def test_clips_come_back_in_order_from_processes():
    assert list(over_clips(pow, [(i, 2) for i in range(50)], n_jobs=2)) == [
        i * i for i in range(50)
    ]


def killed(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process_is_told_in_words_and_the_next_call_works():
    with pytest.raises(
        ChildProcessError, match="ended from outside, mostly because memory ran short"
    ):
        list(over_clips(killed, [(i,) for i in range(8)], n_jobs=2))
    assert list(over_clips(abs, [(-i,) for i in range(8)], n_jobs=2)) == list(range(8))
