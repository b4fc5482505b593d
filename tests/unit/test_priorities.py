"""Threads that compute judgments yield to those of orders and of the steps of an apply."""

import os
import sys
import threading

import pytest

from activities.decisions.computing import computing_threads


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of single threads")
def test_a_thread_that_computes_is_nice_and_no_other_one() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with computing_threads() as threads:
        assert threads.submit(niceness).result() == max(before, 10)
    assert niceness() == before
