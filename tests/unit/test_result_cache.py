from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from seawall.runtime.result_cache import ResultCache

WAIT = 20.0


def always(_: object) -> bool:
    return True


def test_a_result_is_made_once_and_the_oldest_goes_first() -> None:
    cache: ResultCache[str] = ResultCache(2)
    assert cache.get("a", lambda: "A", always) == ("A", False)
    assert cache.get("a", lambda: "other", always) == ("A", True)
    cache.get("b", lambda: "B", always)
    cache.get("a", lambda: "other", always)
    cache.get("c", lambda: "C", always)
    assert len(cache) == 2
    assert cache.get("b", lambda: "again", always) == ("again", False)


def test_what_is_not_to_be_kept_is_made_again_and_an_error_keeps_nothing() -> None:
    cache: ResultCache[str] = ResultCache(2)
    assert cache.get("a", lambda: "A", lambda result: False) == ("A", False)
    with pytest.raises(RuntimeError):
        cache.get("a", lambda: (_ for _ in ()).throw(RuntimeError("failed")), always)
    assert cache.get("a", lambda: "B", always) == ("B", False)


def test_the_same_content_at_once_is_scored_once() -> None:
    cache: ResultCache[str] = ResultCache(2, patience=WAIT)
    began, go = threading.Event(), threading.Event()
    calls = []

    def work() -> str:
        calls.append(1)
        began.set()
        assert go.wait(WAIT)
        return "A"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get, "a", work, always)
        assert began.wait(WAIT)
        others = [pool.submit(cache.get, "a", work, always) for _ in range(3)]
        go.set()
        assert first.result() == ("A", False)
        assert [other.result() for other in others] == [("A", True)] * 3
    assert len(calls) == 1


def test_a_thread_that_hangs_does_not_hold_the_others() -> None:
    cache: ResultCache[str] = ResultCache(2, patience=0.01)
    began, go = threading.Event(), threading.Event()

    def hang() -> str:
        began.set()
        assert go.wait(WAIT)
        return "late"

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(cache.get, "a", hang, always)
        assert began.wait(WAIT)
        assert cache.get("a", lambda: "mine", always) == ("mine", False)
        go.set()
        assert hanging.result() == ("late", False)


def test_a_failure_lets_a_waiting_thread_try_itself() -> None:
    cache: ResultCache[str] = ResultCache(2, patience=WAIT)
    began, go = threading.Event(), threading.Event()

    def fail() -> str:
        began.set()
        assert go.wait(WAIT)
        raise RuntimeError("failed")

    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(cache.get, "a", fail, always)
        assert began.wait(WAIT)
        other = pool.submit(cache.get, "a", lambda: "B", always)
        go.set()
        assert isinstance(failing.exception(), RuntimeError)
        assert other.result() == ("B", False)


def test_without_a_size_nothing_is_kept() -> None:
    cache: ResultCache[str] = ResultCache(0)
    assert cache.get("a", lambda: "A", always) == ("A", False)
    assert cache.get("a", lambda: "B", always) == ("B", False)
