"""HTTP/1.1 for guests, who are not to be trusted: small requests, few at a time, in little time."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools

log = logging.getLogger(__name__)

MAX_REQUEST = 16 * 1024
"""Bytes of request line, headers and body together."""
REQUEST_S = 10.0
"""For a request to arrive, and for its answer to be taken."""
MAX_REQUESTS = 200
"""On one connection."""
PER_CLIENT = 16
IN_ALL = 512
"""Connections at a time."""

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` beside Content-Length, Content-Type and Connection."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/plain; charset=utf-8"


@dataclass(slots=True)
class Request:
    """`path` is without its query; header names are in lower case, the last of equal ones counts."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    keep_alive: bool = False


Respond = Callable[[str, Request], Answer]
"""(client's address, request) -> answer."""


class _Collector:
    """httptools' callbacks for one connection."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.complete: list[Request] = []
        self._url = b""
        self._request = Request()

    def on_message_begin(self) -> None:
        self._url, self._request = b"", Request()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_message_complete(self) -> None:
        self._request.method = self.parser.get_method().decode("latin-1")
        self._request.path = self._url.partition(b"?")[0].decode("latin-1")
        self._request.keep_alive = self.parser.should_keep_alive()
        self.complete.append(self._request)


class HttpServer:
    """Serves one listening socket; what to answer is asked of `respond`, which must be quick."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._server: asyncio.Server | None = None
        self._clients: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Take over a listening socket."""
        self._server = await asyncio.start_server(self._accepted, sock=listener, limit=MAX_REQUEST)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = str((writer.get_extra_info("peername") or ("",))[0])
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._clients[client] += 1
        try:
            if self._clients[client] > PER_CLIENT or len(self._tasks) > IN_ALL:
                await self._send(writer, Answer(503, b"too many connections\n"), keep_alive=False)
            else:
                await self._serve(client, reader, writer)
        except (OSError, TimeoutError):
            pass  # the guest went away or was too slow
        except Exception:
            log.exception("a request of %s could not be answered", client)
        finally:
            self._tasks.discard(task)
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]
            writer.close()

    async def _serve(self, client: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        collector = _Collector()
        pending = 0
        served = 0
        while served < MAX_REQUESTS:
            async with asyncio.timeout(REQUEST_S):
                data = await reader.read(MAX_REQUEST)
            if not data:
                return
            pending += len(data)
            try:
                collector.parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                await self._send(writer, Answer(400, b"malformed request\n"), keep_alive=False)
                return
            if not collector.complete and pending > MAX_REQUEST:
                await self._send(writer, Answer(413, b"request too large\n"), keep_alive=False)
                return
            while collector.complete:
                request = collector.complete.pop(0)
                served += 1
                pending = 0
                keep = request.keep_alive and served < MAX_REQUESTS
                await self._send(writer, self._respond(client, request), keep_alive=keep)
                if not keep:
                    return

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, answer: Answer, *, keep_alive: bool) -> None:
        headers = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Connection": "keep-alive" if keep_alive else "close",
            "Server": "scloud",
            **answer.headers,
        }
        head = f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(head.encode("latin-1") + b"\r\n" + answer.body)
        async with asyncio.timeout(REQUEST_S):
            await writer.drain()
