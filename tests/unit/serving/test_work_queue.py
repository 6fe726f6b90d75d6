"""One piece of work at a time, a bounded number waiting, an end to waiting; places are counted to the last."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from pipeline.serving.errors import BusyError, LateError
from pipeline.serving.work_queue import WorkQueue


async def in_place(queue: WorkQueue, work: Callable[[], object]) -> object:
    async with queue.place() as place:
        return await place.run(lambda _: work())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_work_never_overlaps_and_each_gets_its_own_result():
    inside, most = 0, 0

    def work(number: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.005)
        inside -= 1
        return number

    async def scenario() -> None:
        queue = WorkQueue(waiting=9, timeout=10)
        found = await asyncio.gather(*(in_place(queue, lambda n=n: work(n)) for n in range(10)))
        assert found == list(range(10))
        assert queue.taken == 0

    asyncio.run(scenario())
    assert most == 1


def test_one_more_than_there_are_places_is_refused_until_one_is_free():
    async def scenario() -> None:
        queue, gate = WorkQueue(waiting=1, timeout=10), threading.Event()
        tasks = [asyncio.create_task(in_place(queue, gate.wait)) for _ in range(2)]
        await until(lambda: queue.taken == 2)
        with pytest.raises(BusyError, match="try again in") as refusal:
            await in_place(queue, gate.wait)
        assert refusal.value.retry_after >= 1
        gate.set()
        await asyncio.gather(*tasks)
        assert await in_place(queue, lambda: "again") == "again"

    asyncio.run(scenario())


def test_late_work_keeps_its_place_to_its_end_and_waiting_work_never_begins():
    async def scenario() -> None:
        queue, gate, begun = WorkQueue(waiting=1, timeout=0.05), threading.Event(), []
        with pytest.raises(LateError, match=r"0\.05 s"):
            await in_place(queue, gate.wait)
        assert queue.taken == 1, "the processor is still busy with it"
        with pytest.raises(LateError):
            await in_place(queue, lambda: begun.append(1))
        assert queue.taken == 1, "what never began holds nothing"
        gate.set()
        await until(lambda: queue.taken == 0)
        assert begun == []

    asyncio.run(scenario())


def test_a_client_that_leaves_gives_its_place_back():
    async def scenario() -> None:
        queue, gate, begun = WorkQueue(waiting=1, timeout=10), threading.Event(), []
        running = asyncio.create_task(in_place(queue, gate.wait))
        waiting = asyncio.create_task(in_place(queue, lambda: begun.append(1)))
        await until(lambda: queue.taken == 2)
        waiting.cancel()
        await until(lambda: queue.taken == 1)
        gate.set()
        await running
        assert queue.taken == 0
        assert begun == []

    asyncio.run(scenario())


def test_work_that_was_given_up_ends_at_its_next_check(caplog):
    async def scenario() -> None:
        queue, taken, moved = WorkQueue(waiting=1, timeout=10), [0], []

        def work(check: Callable[[str], None]) -> None:
            while True:
                check(f"step {taken[0]}")
                taken[0] += 1
                threading.Event().wait(0.005)

        async def hold() -> None:
            async with queue.place(moved.append) as place:
                await place.run(work)

        first, second = (asyncio.create_task(hold()) for _ in range(2))
        await until(lambda: taken[0] > 3)
        assert moved == [0, 1]
        first.cancel()
        seen = taken[0]
        await until(lambda: moved == [0, 1, 0])
        await until(lambda: taken[0] > seen + 3)
        second.cancel()
        await until(lambda: queue.taken == 0)
        assert queue.stopped == 2

    asyncio.run(scenario())
    assert [record.getMessage().split(" after ")[0] for record in caplog.records] == [
        "the client is gone: a restoration is stopped"
    ] * 2


@pytest.mark.parametrize("error", [ValueError("its own"), TimeoutError("its own")])
def test_an_error_of_the_work_is_the_callers_and_frees_the_place(error: Exception):
    def fail() -> None:
        raise error

    async def scenario() -> None:
        queue = WorkQueue(waiting=0, timeout=10)
        with pytest.raises(type(error), match="its own"):
            await in_place(queue, fail)
        with pytest.raises(KeyError):
            async with queue.place():
                raise KeyError("before any work")
        assert queue.taken == 0

    asyncio.run(scenario())
