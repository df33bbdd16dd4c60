"""Requests to the REST API: answers parsed, problems raised as CloudError, lists page by page, operations awaited.

A request whose connection is lost is sent again only where that is safe: reads, and changes, which the manager carries
out once for each Idempotency-Key; uploads are not. A manager that has answered once in the life of a client and is then
refused (it restarts) is tried again for a while; one that never answered is reported at once. Where a cloud has several
managers, one that hangs is soon given up for the next.
"""

from __future__ import annotations

import itertools
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from scloud.client.contexts import API_PREFIX, Context
from scloud.client.problems import failure, from_operation, from_response

if TYPE_CHECKING:
    from scloud.model.errors import CloudError

Json = Any
Progress = Callable[[Mapping[str, Any]], None]
CHANGES = ("POST", "PATCH", "DELETE")
"""Methods that take an Idempotency-Key."""

ENDED = frozenset({"done", "failed", "cancelled"})
CONNECT_S = 10.0
ANSWER_S = 60.0
LONG_POLL_S = 20.0
ONE_ROUND_S = 15.0
"""How long the other managers of a cloud are tried when one does not take a connection: takeovers are quicker."""
HURRY_S = 5.0
"""How long one of several managers may take to answer, beyond what it is asked to wait: one that hangs takes
connections all the same. The last of them has ANSWER_S, so that what takes long is answered."""
PATIENCE_S = 30.0
"""How long a manager that has gone away may stay away before a request gives up."""


def tls_context(context: Context) -> ssl.SSLContext:
    """What to trust: for https the system's authorities and the context's own; nothing is read for http."""
    if urlsplit(context.url).scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return ssl.create_default_context(cafile=str(context.ca) if context.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise failure("invalid", f"the context's CA file {context.ca} cannot be used: {error}") from error


def is_local(url: str) -> bool:
    """Whether the URL is on this machine; proxies named in the environment are not for those."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


class Client:
    """A connection to one cloud as one account. Not for several threads at once."""

    def __init__(self, context: Context, *, transport: httpx.BaseTransport | None = None) -> None:
        if urlsplit(context.url).scheme not in ("http", "https"):
            raise failure("invalid", f"'{context.url}' is not the URL of a cloud: say http://HOST:PORT or https://...")
        self.context = context
        self._answered = False
        self._managers = itertools.cycle((*context.others, context.url))
        self._http = httpx.Client(
            base_url=context.url.rstrip("/"),
            headers={"Authorization": f"Bearer {context.token}", "Accept": "application/json"},
            timeout=httpx.Timeout(ANSWER_S, connect=HURRY_S if context.others else CONNECT_S),
            verify=tls_context(context),
            trust_env=not is_local(context.url),
            transport=transport,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        json: Json = None,
        params: Mapping[str, Any] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        """The parsed answer, or None if it is empty; text if it is not JSON. `path` is below /api/v1.

        Raises the CloudError that the answer describes; UNAVAILABLE if there is no answer.
        """
        response = self._send(method, path, json, params, content, headers)
        if not response.content:
            return None
        if "json" in response.headers.get("content-type", ""):
            return response.json()
        return response.text

    def get(self, path: str, **params: Any) -> Json:
        return self.request("GET", path, params=params)

    def post(self, path: str, body: Json = None, **params: Any) -> Json:
        return self.request("POST", path, json={} if body is None else body, params=params)

    def patch(self, path: str, body: Json) -> Json:
        return self.request("PATCH", path, json=body)

    def delete(self, path: str, **params: Any) -> Json:
        return self.request("DELETE", path, params=params)

    def pages(
        self, path: str, params: Mapping[str, Any] | None = None, *, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page; at most `limit` of them."""
        query = {**(params or {}), "limit": min(limit or 500, 500)}
        seen = 0
        while True:
            page = self.request("GET", path, params=query)
            for item in page["items"]:
                yield item
                seen += 1
                if seen == limit:
                    return
            if not page.get("next"):
                return
            query["cursor"] = page["next"]

    def wait(
        self, operation_id: str, on_progress: Progress | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Wait until the operation ends, in whatever way, and return it. TIMED_OUT after `timeout` seconds.

        `on_progress` is called with the operation whenever it has been heard of. The manager may restart meanwhile.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        operation: dict[str, Any] = self.get(f"/operations/{operation_id}")
        while True:
            if on_progress:
                on_progress(operation)
            if operation["state"] in ENDED:
                return operation
            left = LONG_POLL_S if deadline is None else min(LONG_POLL_S, deadline - time.monotonic())
            if left <= 0:
                raise failure(
                    "timed_out",
                    f"{operation['action']} is still {operation['state']} after {timeout:g} s; it goes on: "
                    f"`scloud operation wait {operation_id}` waits for it",
                )
            operation = self.get(f"/operations/{operation_id}", wait=round(left, 3), seen=operation["progress"])

    def finish(
        self, operation_id: str, on_progress: Progress | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Like `wait`, but raises the operation's error unless it ends done."""
        operation = self.wait(operation_id, on_progress, timeout)
        if operation["state"] != "done":
            raise from_operation(operation)
        return operation

    @contextmanager
    def stream(self, method: str, path: str, **params: Any) -> Iterator[httpx.Response]:
        """An answer whose body is read piece by piece, by the first of the cloud's managers that knows of a leader."""
        url = self._path(path)
        try:
            with ExitStack() as stack:
                response = self._begin(stack, method, url, _query(params))
                if response.is_error:
                    raise from_response(response.status_code, response.read(), what=f"{method} {url}")
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _begin(self, stack: ExitStack, method: str, url: str, query: Mapping[str, Any] | None) -> httpx.Response:
        """The beginning of an answer, which ends with `stack`."""
        for _ in self.context.others:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                response = stack.enter_context(self._http.stream(method, url, params=query))
                if not _nobody_leads(response):
                    return response
            self._ask_another()
        return stack.enter_context(self._http.stream(method, url, params=query))

    def download(self, path: str, target: Path, on_bytes: Callable[[int, int | None], None], **params: Any) -> int:
        """Save an answer's body to a file, which appears only when it is whole. Returns its bytes.

        `on_bytes` hears of the bytes so far and the total, if that is known.
        """
        partial = target.with_name(f"{target.name}.partial")
        done = 0
        try:
            with self.stream("GET", path, **params) as response, partial.open("wb") as file:
                length = response.headers.get("content-length")
                for piece in response.iter_bytes(1 << 20):
                    file.write(piece)
                    done += len(piece)
                    on_bytes(done, int(length) if length else None)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return done

    def _send(
        self,
        method: str,
        path: str,
        json: Json,
        params: Mapping[str, Any] | None,
        content: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str] | None,
    ) -> httpx.Response:
        own = dict(headers or {})
        if method in CHANGES:
            own.setdefault("Idempotency-Key", str(uuid.uuid4()))
        url, query = self._path(path), _query(params or {})
        repeatable = method == "GET" or method in CHANGES
        pause, give_up = 0.1, time.monotonic() + PATIENCE_S
        in_haste = len(self.context.others) if repeatable else 0
        while True:
            limit = httpx.Timeout(HURRY_S + float((query or {}).get("wait", 0))) if in_haste else self._http.timeout
            try:
                response = self._http.request(
                    method, url, json=json, params=query, content=content, headers=own, timeout=limit
                )
                if not (repeatable and _nobody_leads(response) and time.monotonic() < give_up):
                    break
                if self.context.others:  # one that is cut off from the database knows of no leader, and another does
                    self._ask_another()
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
            except httpx.TransportError as error:
                if in_haste and isinstance(error, httpx.ReadTimeout):
                    in_haste -= 1
                    self._ask_another()
                    continue
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                lost = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and not unsent
                if unsent and self.context.others and time.monotonic() < give_up - PATIENCE_S + ONE_ROUND_S:
                    # Nothing was sent: another manager of the same cloud can be asked whatever it is.
                    self._ask_another()
                    time.sleep(pause)
                    continue
                again = repeatable and (lost or (unsent and self._answered)) and time.monotonic() + pause < give_up
                if not again:
                    raise self._unreachable(error) from error
                # A lost connection shows that somebody was there: the refusals that follow are a restart.
                self._answered = True
                time.sleep(pause)
                pause = min(pause * 2, 2.0)
        self._answered = True
        if response.is_error:
            raise from_response(response.status_code, response.content, what=f"{method} {url}")
        return response

    def _ask_another(self) -> None:
        """From now on."""
        self._http.base_url = httpx.URL(next(self._managers).rstrip("/"))

    def _path(self, path: str) -> str:
        full = path if path.startswith("/") else f"/{path}"
        return full if full.startswith(API_PREFIX) else API_PREFIX + full

    def _unreachable(self, error: httpx.TransportError) -> CloudError:
        url = self.context.url
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
            return failure("timed_out", f"{url} took too long to answer: `scloud status` shows how it is")
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return failure("unavailable", f"{url} is not trusted: {cause.verify_message}; the context names its CA")
        if any(isinstance(cause, ConnectionRefusedError) for cause in causes) or "refused" in str(error):
            return failure(
                "unavailable",
                f"nothing answers at {url}: start the cloud with `./scloud up` (as root) or `./scloud lab up`, or "
                "choose another with `scloud context use NAME`",
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return failure("unavailable", f"{url} cannot be reached ({error}): check `scloud context show`")
        return failure(
            "unavailable",
            f"the connection to {url} was lost before the answer came ({error}); what was asked for may have happened: "
            "look before asking again",
        )


def _query(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Without what was not given; booleans as the API spells them. None if nothing is left.

    httpx takes an empty mapping for "no query", and drops the one that the path itself may have.
    """
    spelt = {True: "true", False: "false"}
    query = {
        key: spelt[value] if isinstance(value, bool) else value for key, value in params.items() if value is not None
    }
    return query or None


def _nobody_leads(response: httpx.Response) -> bool:
    """A standby says so while the lease of a leader that died runs out."""
    return response.status_code == 503 and "retry-after" in response.headers


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
