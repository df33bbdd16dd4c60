"""Workers by key: what happens to a key whose handler fails."""

from __future__ import annotations

import asyncio

from agent_clock import run

from scloud.agent.work import Workers


def test_a_key_that_waited_for_something_that_was_cancelled_is_tried_again() -> None:
    """Else it would end without a word, and nobody would look at the key again."""

    async def main() -> None:
        tries = 0
        done = asyncio.Event()

        async def handle(key: str) -> float | None:
            nonlocal tries
            tries += 1
            if tries == 1:
                shared = asyncio.get_running_loop().create_future()
                shared.cancel()
                await shared
            done.set()
            return None

        workers = Workers(handle)
        workers.wake("vm/1")
        async with asyncio.timeout(10):
            await done.wait()
        assert tries == 2
        await workers.stop()

    run(main())


def test_a_worker_that_is_stopped_ends() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def handle(key: str) -> float | None:
            begun.set()
            await asyncio.sleep(1000)
            return None

        workers = Workers(handle)
        workers.wake("vm/1")
        await begun.wait()
        async with asyncio.timeout(10):
            await workers.stop()
        assert not workers.tasks()

    run(main())
