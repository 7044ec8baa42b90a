"""Every request gets its own answer, whatever is encoded along with it; a full queue refuses; failures stay apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.serving.service.answers import QueueFullError
from nestling.serving.service.batcher import Batcher

WAIT = 10


class Recorder:
    """Encodes a text as (its number, its number doubled); `bad` raises, `nan` is not finite."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: list[str], *, kind: str) -> np.ndarray:
        self.calls.append(list(texts))
        if "bad" in texts:
            raise RuntimeError("cannot encode this")
        return np.array(
            [[np.nan, 0] if text == "nan" else [float(text), 2 * float(text)] for text in texts], np.float32
        )


class Held(Recorder):
    """Waits in each call until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = threading.Semaphore(0), threading.Event()

    def encode(self, texts: list[str], *, kind: str) -> np.ndarray:
        self.entered.release()
        assert self.go.wait(WAIT)
        return super().encode(texts, kind=kind)


@contextmanager
def started(**options) -> Iterator[Batcher]:
    batcher = Batcher(**{"max_batch": 64, "max_wait": 0.0, "queue": 256, **options})
    try:
        yield batcher
    finally:
        batcher.close()


def expected(texts: list[str]) -> list[list[float]]:
    return [[float(text), 2 * float(text)] for text in texts]


requests = st.lists(
    st.lists(st.sampled_from([*map(str, range(30)), "bad", "nan"]), min_size=1, max_size=6), min_size=1, max_size=25
)


@given(requests, st.integers(1, 9), st.integers(1, 6), st.sampled_from([0.0, 0.001]))
@settings(max_examples=60, deadline=None)
def test_each_of_many_clients_gets_its_own_vectors_or_its_own_failure(asked, max_batch, clients, max_wait):
    encode = Recorder()
    with started(max_batch=max_batch, queue=10_000, max_wait=max_wait) as batcher:
        with ThreadPoolExecutor(clients) as pool:
            futures = list(pool.map(lambda texts: batcher.submit(encode, texts), asked))
        for texts, future in zip(asked, futures, strict=True):
            if "bad" in texts or "nan" in texts:
                with pytest.raises(RuntimeError, match=r"cannot encode this|NaN"):
                    future.result(WAIT)
            else:
                assert future.result(WAIT).tolist() == expected(texts)
    assert max(map(len, encode.calls)) <= max_batch


@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_a_request_is_taken_just_when_all_its_texts_have_room(sizes, queue):
    held = Held()
    with started(max_batch=1, queue=queue) as batcher:
        first = batcher.submit(held, ["0"])
        # From here on the thread holds the first text, and all others wait.
        assert held.entered.acquire(timeout=WAIT)
        waiting, taken = 0, []
        for size in sizes:
            texts = [str(n) for n in range(size)]
            if waiting + size > queue:
                with pytest.raises(QueueFullError):
                    batcher.submit(held, texts)
            else:
                taken.append((texts, batcher.submit(held, texts)))
                waiting += size
            assert batcher.waiting == waiting
        held.go.set()
        assert first.result(WAIT).tolist() == expected(["0"])
        for texts, future in taken:
            assert future.result(WAIT).tolist() == expected(texts)


def test_a_search_waits_for_one_batch_of_a_large_request_whatever_its_length():
    held, search = Held(), Recorder()
    with started(max_batch=4, queue=4) as batcher:
        many = batcher.submit(held, [str(n) for n in range(2_048)])
        assert held.entered.acquire(timeout=WAIT)
        # A large request takes no place of the queue, and theirs is not a search's.
        few = [batcher.submit(search, [str(n)]) for n in range(4)]
        with pytest.raises(QueueFullError):
            batcher.submit(search, ["9"])
        held.go.set()
        for n, future in enumerate(few):
            assert future.result(WAIT).tolist() == expected([str(n)])
        assert many.result(WAIT).tolist() == expected([str(n) for n in range(2_048)])
    assert search.calls == [["0", "1"], ["2", "3"]]
    # The searches' batches took two texts of the large request each, which goes on too.
    assert [len(call) for call in held.calls[:4]] == [4, 2, 2, 4]


def test_large_requests_are_bounded_and_one_that_is_given_up_makes_room_at_once():
    held = Held()
    with started(max_batch=64, queue=64) as batcher:
        gone = batcher.submit(held, ["1"] * 2_048)
        assert held.entered.acquire(timeout=WAIT)
        others = [batcher.submit(held, ["2"] * 2_048) for _ in range(7)]
        with pytest.raises(QueueFullError):
            batcher.submit(held, ["3"] * 2_048)
        assert gone.cancel()
        for other in others[1:]:
            assert other.cancel()
        held.go.set()
        assert others[0].result(WAIT).tolist() == expected(["2"] * 2_048)
    assert held.calls == [["1"] * 64, *[["2"] * 64] * 32]


def test_a_batch_of_long_texts_is_shorter_so_that_it_takes_no_longer():
    held = Held()
    long = "1".rjust(20_000, "0")
    with started(max_batch=64, queue=100) as batcher:
        batcher.submit(held, ["0"])
        assert held.entered.acquire(timeout=WAIT)
        future = batcher.submit(held, [long] * 5)
        held.go.set()
        assert future.result(WAIT).tolist() == expected(["1"] * 5)
    assert [len(call) for call in held.calls] == [1, 2, 2, 1]


def test_what_waits_is_encoded_in_one_call_up_to_the_bound():
    held, sizes = Held(), []
    with started(max_batch=4, queue=100, on_batch=sizes.append) as batcher:
        futures = [batcher.submit(held, ["0"])]
        assert held.entered.acquire(timeout=WAIT)
        futures += [batcher.submit(held, [str(n)]) for n in range(6)]
        held.go.set()
        for future in futures:
            future.result(WAIT)
    assert held.calls == [["0"], ["0", "1", "2", "3"], ["4", "5"]]
    assert sizes == [1, 4, 2]


def test_the_first_text_waits_for_others_and_a_full_batch_waits_no_longer():
    encode = Recorder()
    # The wait is longer than the test may take: only a full batch ends it in time.
    with started(max_batch=3, max_wait=60, queue=10) as batcher:
        futures = [batcher.submit(encode, [text]) for text in "123"]
        assert [future.result(WAIT).tolist() for future in futures] == [expected([text]) for text in "123"]
    assert encode.calls == [["1", "2", "3"]]


def test_a_failing_text_fails_its_request_alone_and_the_thread_goes_on():
    held = Held()
    with started(max_batch=8, queue=100) as batcher:
        batcher.submit(held, ["0"])
        assert held.entered.acquire(timeout=WAIT)
        good, bad, other = (batcher.submit(held, texts) for texts in (["1", "2"], ["3", "bad"], ["4"]))
        held.go.set()
        assert good.result(WAIT).tolist() == expected(["1", "2"])
        assert other.result(WAIT).tolist() == expected(["4"])
        with pytest.raises(RuntimeError, match="cannot encode this"):
            bad.result(WAIT)
        assert batcher.submit(held, ["5"]).result(WAIT).tolist() == expected(["5"])


def test_wrong_shapes_and_values_that_are_not_finite_are_failures():
    class Short(Recorder):
        def encode(self, texts: list[str], *, kind: str) -> np.ndarray:
            return np.zeros((1, 2), np.float32)

    with started() as batcher:
        with pytest.raises(RuntimeError, match=r"2 texts were encoded to vectors of shape \(1, 2\)"):
            batcher.submit(Short(), ["1", "2"]).result(WAIT)
        with pytest.raises(RuntimeError, match="NaN or infinite"):
            batcher.submit(Recorder(), ["1", "nan"]).result(WAIT)


def test_different_encoders_and_kinds_of_text_are_called_apart():
    first, second, held = Recorder(), Recorder(), Held()
    with started(max_batch=10, queue=20) as batcher:
        batcher.submit(held, ["0"])
        assert held.entered.acquire(timeout=WAIT)
        futures = [batcher.submit(first, ["1"]), batcher.submit(second, ["2"]), batcher.submit(first, ["3"])]
        futures.append(batcher.submit(second, ["4"], "document"))
        held.go.set()
        assert [future.result(WAIT).tolist() for future in futures] == [expected([text]) for text in "1234"]
    assert (first.calls, second.calls) == ([["1", "3"]], [["2"], ["4"]])


@pytest.mark.parametrize("max_batch", [1, 10])
def test_a_cancelled_request_is_not_encoded(max_batch: int):
    held = Held()
    with started(max_batch=max_batch, queue=20) as batcher:
        batcher.submit(held, ["0"])
        assert held.entered.acquire(timeout=WAIT)
        gone, stays = batcher.submit(held, ["1", "3", "4"]), batcher.submit(held, ["2"])
        assert gone.cancel()
        held.go.set()
        assert stays.result(WAIT).tolist() == expected(["2"])
    assert held.calls == [["0"], ["2"]]


def test_closing_finishes_what_waits_and_refuses_what_is_new():
    held = Held()
    batcher = Batcher(max_batch=1, max_wait=0, queue=10)
    futures = [batcher.submit(held, [str(n)]) for n in range(4)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until = time.monotonic() + WAIT
    while not batcher._closed:
        assert time.monotonic() < until
    with pytest.raises(ValueError, match="is closed"):
        batcher.submit(held, ["9"])
    held.go.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert [future.result(0)[0, 0] for future in futures] == [0, 1, 2, 3]


def test_an_empty_request_is_a_programming_error():
    with started() as batcher, pytest.raises(ValueError, match="at least one text"):
        batcher.submit(Recorder(), [])
