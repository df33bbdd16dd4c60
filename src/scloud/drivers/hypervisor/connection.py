"""A connection to libvirtd that never hangs its user and comes back by itself.

libvirt's calls block, so they run in threads, each under a deadline. A call that outlives its deadline keeps its thread
until libvirt gives up: the keepalive closes a connection whose daemon does not answer, which ends them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import libvirt

from scloud.model.errors import CloudError, ErrorKind

Result = TypeVar("Result")

THREADS = 16
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_COUNT = 3
"""A daemon that is silent for (count + 1) intervals, 8 s, counts as gone."""
_RETRY_S = (0.1, 0.2, 0.5, 1.0)

_event_thread_lock = threading.Lock()
_event_thread: threading.Thread | None = None


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _need_event_thread() -> None:
    """libvirt has one event loop in a process; it must be there before the first connection."""
    global _event_thread
    with _event_thread_lock:
        if _event_thread is None:
            libvirt.registerErrorHandler(lambda *_: None, None)
            libvirt.virEventRegisterDefaultImpl()
            _event_thread = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
            _event_thread.start()


_AWAY = frozenset(
    {
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INTERNAL_ERROR,
    }
)


def cloud_error(error: libvirt.libvirtError, doing: str) -> CloudError:
    """libvirt's error as ours, with libvirt's words."""
    code = error.get_error_code()
    kind = {
        libvirt.VIR_ERR_NO_DOMAIN: ErrorKind.NOT_FOUND,
        libvirt.VIR_ERR_OPERATION_TIMEOUT: ErrorKind.TIMED_OUT,
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE: ErrorKind.TIMED_OUT,
        libvirt.VIR_ERR_NO_CONNECT: ErrorKind.UNAVAILABLE,
    }.get(code, ErrorKind.ENGINE)
    return CloudError(kind, f"{doing}: {error.get_error_message() or error}")


class Threads:
    """Runs blocking functions, at most `limit` at once. The threads are daemons: one that hangs inside libvirt does not
    keep the process from ending, as it would in concurrent.futures' pool."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    async def run(self, function: Callable[[], Result]) -> Result:
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def deliver(result: Result | None, error: BaseException | None) -> None:
            self._free.release()
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, failure = None, None
            try:
                result = function()
            except BaseException as error:
                failure = error
            try:
                loop.call_soon_threadsafe(deliver, result, failure)
            except RuntimeError:
                pass  # the event loop has ended: nobody waits for this any more

        threading.Thread(target=work, name="libvirt-call", daemon=True).start()
        return await future


class Connection:
    """`opened` runs in a thread after each connect, to register for events; `returned` in the event loop after each
    connect but the first."""

    def __init__(
        self,
        uri: str,
        *,
        opened: Callable[[Any], None],
        returned: Callable[[], None],
        call_timeout_s: float = 30.0,
    ) -> None:
        self._uri = uri
        self._opened = opened
        self._returned = returned
        self._call_timeout_s = call_timeout_s
        self._threads = Threads(THREADS)
        self._handle: Any = None
        self._generation = 0
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._refusal: str | None = None
        self._closed = False

    def need(self) -> None:
        """Begin to connect, and to stay connected."""
        if self._closed:
            raise CloudError(ErrorKind.UNAVAILABLE, "the connection to libvirt was closed")
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="libvirt-connection")

    async def call(self, doing: str, function: Callable[[Any], Result], timeout_s: float | None = None) -> Result:
        """`function(connection)` in a thread; it must be idempotent, for it is asked again when the daemon was away.

        `CloudError(TIMED_OUT)` after the deadline, `CloudError(UNAVAILABLE)` if there was no daemon to ask until then,
        `CloudError(ENGINE)` with libvirt's words.
        """
        self.need()
        limit = self._call_timeout_s if timeout_s is None else timeout_s
        deadline = asyncio.get_running_loop().time() + limit
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._ready.wait()
                    handle, generation = self._handle, self._generation
                    return await self._threads.run(partial(function, handle))
            except TimeoutError:
                if self._refusal is not None:
                    raise CloudError(ErrorKind.UNAVAILABLE, f"{doing}: libvirtd is away: {self._refusal}") from None
                raise CloudError(ErrorKind.TIMED_OUT, f"{doing}: no answer from libvirtd in {limit:g} s") from None
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _AWAY or _alive(handle):
                    raise cloud_error(error, doing) from error
                self._on_lost(generation)

    async def close(self) -> None:
        """Stop. Nothing is left but the threads of calls that never returned."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        handle, self._handle = self._handle, None
        self._generation += 1
        self._ready.clear()
        if handle is not None:
            try:
                async with asyncio.timeout(5):
                    await self._threads.run(partial(_close, handle))
            except TimeoutError:
                pass

    def _on_lost(self, generation: int) -> None:
        if generation == self._generation and self._handle is not None:
            self._ready.clear()
            self._lost.set()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            generation = self._generation + 1
            try:
                # Not under a deadline: an attempt that hangs is the only one under way, and ends with the daemon.
                handle = await self._threads.run(partial(self._open, loop, generation))
            except libvirt.libvirtError as error:
                self._refusal = error.get_error_message() or str(error)
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1
                continue
            attempt = 0
            self._refusal = None
            self._lost.clear()
            self._handle, self._generation = handle, generation
            if not _alive(handle):
                self._lost.set()
            else:
                self._ready.set()
                if generation > 1:
                    self._returned()
            await self._lost.wait()
            closing = asyncio.ensure_future(self._threads.run(partial(_close, handle)))
            await asyncio.wait({closing}, timeout=1)

    def _open(self, loop: asyncio.AbstractEventLoop, generation: int) -> Any:
        _need_event_thread()

        def on_close(_handle: Any, _reason: int, _opaque: Any) -> None:
            try:
                loop.call_soon_threadsafe(self._on_lost, generation)
            except RuntimeError:
                pass  # the event loop has ended: nobody is left to tell

        handle = libvirt.open(self._uri)
        try:
            handle.registerCloseCallback(on_close, None)
            handle.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            self._opened(handle)
        except libvirt.libvirtError:
            _close(handle)
            raise
        return handle


def _alive(handle: Any) -> bool:
    """Whether the connection's socket is open: asks nobody."""
    try:
        return bool(handle.isAlive())
    except libvirt.libvirtError:
        return False


def _close(handle: Any) -> None:
    for end in (handle.unregisterCloseCallback, handle.close):
        try:
            end()
        except libvirt.libvirtError:
            pass
