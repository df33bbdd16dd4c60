"""Two ends joined: what comes out of one goes into the other."""

from __future__ import annotations

import asyncio

from scloud.link.channel import Channel


async def splice(channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: int) -> None:
    """Carry bytes both ways, at most `piece` at a time, until either side ends; then close both.

    What was said before is handed on still.
    """

    async def out() -> None:
        while data := await channel.read(piece):
            writer.write(data)
            await writer.drain()

    async def back() -> None:
        while data := await reader.read(piece):
            await channel.write(data)

    tasks = [asyncio.ensure_future(out()), asyncio.ensure_future(back())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # A reset on either side is an end like any other.
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        await channel.close()
