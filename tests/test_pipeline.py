"""Reading, working and writing at the same time: order, errors, an early end."""

import threading
import time
from contextlib import closing

import pytest

from aethernet import pipeline
from aethernet.pipeline import ahead, overlapped


def failing_after(count, error):
    yield from range(count)
    raise error


def threads(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


class TestAhead:
    def test_items_come_in_their_order(self):
        assert [*ahead(iter(range(100)), 3)] == [*range(100)]

    def test_no_more_are_made_than_may_wait(self):
        made = []

        def items():
            for number in range(100):
                made.append(number)
                yield number

        with closing(ahead(items(), 3)) as coming:
            assert next(coming) == 0
            time.sleep(0.5)
            # One is taken, three wait, and one is in the hands of the thread.
            assert made == [0, 1, 2, 3, 4]

    def test_items_before_a_failure_come_first(self):
        coming = ahead(failing_after(5, ValueError("broken")), 2)
        assert [next(coming) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="broken"):
            next(coming)

    def test_closing_ends_the_thread(self):
        coming = ahead(iter(range(100)), 2)
        next(coming)
        coming.close()
        assert not threads("aethernet-reader")

    def test_a_reader_that_hangs_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(pipeline, "PATIENCE", 0.2)
        released = threading.Event()

        def items():
            yield 0
            released.wait(30)

        coming = ahead(items(), 2)
        next(coming)
        start = time.monotonic()
        coming.close()
        assert time.monotonic() - start < 5
        (hanging,) = threads("aethernet-reader")
        assert hanging.daemon
        released.set()
        hanging.join(5)


class TestOverlapped:
    def test_every_result_is_written_in_order(self):
        written = []
        overlapped(range(50), lambda n: n * 2, written.extend)
        assert written == [*range(0, 100, 2)]

    def test_the_three_run_at_the_same_time(self):
        # Each waits for what only another one, running at the same time, can say.
        read_third, written_first = threading.Event(), threading.Event()

        def source():
            yield from (0, 1)
            read_third.set()
            yield 2

        def work(item):
            if item == 0:
                assert read_third.wait(10), "nothing is read during the work"
            if item == 2:
                assert written_first.wait(10), "nothing is written during the work"
            return item

        def sink(results):
            for _ in results:
                written_first.set()

        overlapped(source(), work, sink)

    def test_what_was_read_before_a_failure_is_written(self):
        written = []
        with pytest.raises(ValueError, match="source"):
            overlapped(failing_after(5, ValueError("source")), abs, written.extend)
        assert written == [0, 1, 2, 3, 4]

    def test_the_sink_finishes_what_it_has_when_the_work_fails(self):
        written = []

        def work(item):
            if item == 2:
                raise ValueError("work")
            return item

        def sink(results):
            written.extend(results)
            written.append("finished")

        with pytest.raises(ValueError, match="work"):
            overlapped(range(10), work, sink)
        assert written == [0, 1, "finished"]

    def test_a_sink_that_fails_ends_the_work(self):
        worked = []

        def work(item):
            worked.append(item)
            return item

        def sink(results):
            next(results)
            raise OSError("full")

        with pytest.raises(OSError, match="full"):
            overlapped(iter(range(1000)), work, sink)
        assert len(worked) < 100

    def test_the_first_error_comes_out(self):
        def sink(results):
            for _ in results:
                pass
            raise OSError("the second")

        with pytest.raises(ValueError, match="the first"):
            overlapped(failing_after(2, ValueError("the first")), abs, sink)

    def test_a_sink_that_wants_no_more_ends_the_work(self):
        def endless():
            while True:
                yield 0

        overlapped(endless(), abs, lambda results: next(results) and None)

    def test_an_interrupt_ends_both_threads(self):
        def work(item):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            overlapped(iter(range(10)), work, list)
        assert not threads("aethernet-reader")
        assert not threads("aethernet-writer")
