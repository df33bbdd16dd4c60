"""Requests: what is parsed, what is raised, what is sent again and what never is."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fake_cloud import FakeCloud, Problem

from scloud.client import http
from scloud.client.contexts import Context
from scloud.client.http import Client
from scloud.model.errors import CloudError, ErrorKind, FieldError

HERE = Context("here", "http://127.0.0.1:1", "t")


@pytest.fixture
def client(context: Context) -> Client:
    return Client(context)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted instead of waited."""
    pauses: list[float] = []
    monkeypatch.setattr("scloud.client.http.time.sleep", pauses.append)
    return pauses


class Script:
    """A transport that plays one outcome after another and keeps the requests."""

    def __init__(self, *outcomes: Exception | httpx.Response) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def client(self) -> Client:
        return Client(HERE, transport=httpx.MockTransport(self))


def lost() -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError("Server disconnected without sending a response.")


def refused() -> httpx.ConnectError:
    error = httpx.ConnectError("[Errno 111] Connection refused")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    return error


def test_a_problem_becomes_an_error_with_everything_it_says(client: Client, cloud: FakeCloud) -> None:
    fields = [{"field": "spec.cpus", "rule": "must be at most 256"}]
    cloud.problems["POST /vms"] = Problem(422, "invalid", "spec.cpus: must be at most 256", fields=fields)
    cloud.problems["DELETE /images/micro"] = Problem(409, "in_use", "the image is in use", users=["vm a", "vm b"])
    with pytest.raises(CloudError) as caught:
        client.post("/vms", {"name": "a", "spec": {}})
    assert caught.value.kind is ErrorKind.INVALID
    assert caught.value.fields == (FieldError(field="spec.cpus", rule="must be at most 256"),)
    with pytest.raises(CloudError) as caught:
        client.delete("/images/micro")
    assert (caught.value.kind, caught.value.users) == (ErrorKind.IN_USE, ("vm a", "vm b"))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b"<html>gone</html>", ErrorKind.NOT_FOUND),
        (502, b"", ErrorKind.ENGINE),
        (418, b"teapot", ErrorKind.INTERNAL),
        (500, b'["not", "a", "problem"]', ErrorKind.INTERNAL),
        (409, b'{"detail": "no", "code": "of_the_future"}', ErrorKind.INTERNAL),
    ],
)
def test_answers_of_others_are_errors_too(status: int, body: bytes, kind: ErrorKind) -> None:
    with pytest.raises(CloudError) as caught:
        Script(httpx.Response(status, content=body)).client().get("/vms")
    assert caught.value.kind is kind
    assert caught.value.message


def test_nobody_at_the_address_says_what_to_do_at_once(impatient: list[float]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CloudError, match=r"scloud up") as caught:
        Client(Context("gone", f"http://127.0.0.1:{port}", "t")).get("/vms")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert impatient == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/vms"), ("POST", "/vms/a/actions/reboot"), ("PATCH", "/vms/a"), ("DELETE", "/vms/a")],
)
def test_a_change_is_sent_again_with_the_same_key_when_the_connection_is_lost(
    impatient: list[float], method: str, path: str
) -> None:
    script = Script(lost(), refused(), httpx.Response(202, json={"ok": True}))
    assert script.client().request(method, path, {"name": "a"}) == {"ok": True}
    keys = {request.headers["Idempotency-Key"] for request in script.requests}
    assert len(script.requests) == 3
    assert len(keys) == 1


def test_what_might_be_done_twice_is_not_sent_again(impatient: list[float]) -> None:
    script = Script(lost())
    with pytest.raises(CloudError, match="look before asking again") as caught:
        script.client().request("PUT", "/images/a/data", content=b"x")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert len(script.requests) == 1


def test_a_path_may_have_a_query_of_its_own() -> None:
    script = Script(httpx.Response(200, json={}))
    script.client().get("/vms?limit=5&all_accounts=true")
    assert script.requests[0].url.query == b"limit=5&all_accounts=true"


def test_a_manager_that_restarts_is_waited_for(impatient: list[float]) -> None:
    script = Script(httpx.Response(200, json=1), refused(), refused(), httpx.Response(200, json=2))
    client = script.client()
    assert (client.get("/a"), client.get("/a")) == (1, 2)
    assert len(impatient) == 2


def test_patience_ends(monkeypatch: pytest.MonkeyPatch, impatient: list[float]) -> None:
    monkeypatch.setattr(http, "PATIENCE_S", 0.0)
    with pytest.raises(CloudError) as caught:
        Script(lost()).client().get("/a")
    assert caught.value.kind is ErrorKind.UNAVAILABLE


def test_a_slow_answer_is_a_time_out() -> None:
    with pytest.raises(CloudError) as caught:
        Script(httpx.ReadTimeout("slow")).client().get("/a")
    assert caught.value.kind is ErrorKind.TIMED_OUT


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://host", "unix:/run/x"])
def test_an_address_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(CloudError) as caught:
        Client(Context("bad", url, "t"))
    assert caught.value.kind is ErrorKind.INVALID


def test_a_ca_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CloudError, match=r"nowhere\.pem"):
        Client(Context("bad", "https://127.0.0.1", "t", tmp_path / "nowhere.pem"))


def test_pages_are_followed_to_the_end_or_to_the_limit(client: Client, cloud: FakeCloud) -> None:
    for number in range(1203):
        cloud.make("vpcs", f"v{number}", {"vni": number + 2})
    names = [item["name"] for item in client.pages("/vpcs")]
    assert names == ["default", *(f"v{number}" for number in range(1203))]
    assert len([body for method, *_, body, _ in cloud.requests if method == "GET"]) == 3
    assert [item["name"] for item in client.pages("/vpcs", limit=2)] == ["default", "v0"]
    assert len(list(client.pages("/vpcs", limit=501))) == 501


def test_waiting_tells_of_every_step_and_ends_with_the_operation(client: Client) -> None:
    operation = client.post("/vms", {"name": "a", "spec": {}})["operation"]
    heard: list[tuple[str, int]] = []
    ended = client.finish(operation["id"], lambda op: heard.append((op["state"], op["progress"])))
    assert ended["state"] == "done"
    assert heard == [("queued", 0), ("running", 40), ("done", 100)]


def test_a_failed_operation_raises_its_own_error(client: Client, cloud: FakeCloud) -> None:
    cloud.outcomes["vm.create"] = ("failed", "no_capacity", "no node has 64 CPUs free")
    operation = client.post("/vms", {"name": "a", "spec": {}})["operation"]
    with pytest.raises(CloudError, match="no node has 64 CPUs free") as caught:
        client.finish(operation["id"])
    assert caught.value.kind is ErrorKind.NO_CAPACITY


def test_waiting_ends_at_the_time_limit_and_says_how_to_go_on(client: Client) -> None:
    operation = client.post("/vms", {"name": "a", "spec": {}})["operation"]
    with pytest.raises(CloudError, match=f"scloud operation wait {operation['id']}") as caught:
        client.wait(operation["id"], timeout=0)
    assert caught.value.kind is ErrorKind.TIMED_OUT


def test_a_download_appears_whole_or_not_at_all(client: Client, cloud: FakeCloud, tmp_path: Path) -> None:
    cloud.uploads["micro"] = b"x" * 3_000_000
    heard: list[int] = []
    size = client.download("/images/micro/data", tmp_path / "out", lambda done, _: heard.append(done), format="raw")
    assert (tmp_path / "out").read_bytes() == b"raw" + b"x" * 3_000_000
    assert heard[-1] == size == 3_000_003
    with pytest.raises(CloudError):
        client.download("/images/none/data", tmp_path / "other", lambda *_: None, format="raw")
    assert [item.name for item in tmp_path.iterdir() if item.name != "config"] == ["out"]


def test_another_manager_is_asked_when_one_does_not_take_the_connection(impatient: list[float]) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url.host))
        if request.url.host != "three":
            raise refused()
        return httpx.Response(200, json={"by": "three"})

    context = Context("c", "http://one", "t", others=("http://two", "http://three"))
    client = Client(context, transport=httpx.MockTransport(answer))
    assert client.delete("/vms/a") == {"by": "three"}
    assert asked == ["one", "two", "three"]
    client.get("/vms")
    assert asked[3:] == ["three"]


def test_while_nobody_leads_it_asks_again(impatient: list[float]) -> None:
    nobody = httpx.Response(503, headers={"Retry-After": "2"}, json={"detail": "nobody", "code": "unavailable"})
    script = Script(nobody, nobody, httpx.Response(200, json=1))
    assert script.client().get("/a") == 1
    assert len(impatient) == 2
    with pytest.raises(CloudError, match="nobody"):
        Script(nobody).client().request("PUT", "/a", content=b"x")


def test_a_manager_that_knows_of_no_leader_is_left_for_another(impatient: list[float]) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url.host))
        if request.url.host == "two":
            return httpx.Response(200, json={"by": "two"})
        return httpx.Response(503, headers={"Retry-After": "2"}, json={"detail": "nobody", "code": "unavailable"})

    client = Client(Context("c", "http://one", "t", others=("http://two",)), transport=httpx.MockTransport(answer))
    assert client.post("/vms", {}) == {"by": "two"}
    assert asked == ["one", "two"]


@pytest.mark.parametrize("gone", ["refuses", "knows nobody"])
def test_what_is_read_piece_by_piece_comes_from_another_as_well(gone: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url.host))
        if request.url.host == "two":
            return httpx.Response(200, content=b"bytes")
        if gone == "refuses":
            raise refused()
        return httpx.Response(503, headers={"Retry-After": "2"}, json={"detail": "nobody", "code": "unavailable"})

    client = Client(Context("c", "http://one", "t", others=("http://two",)), transport=httpx.MockTransport(answer))
    assert client.download("/images/micro/data", tmp_path / "out", lambda *_: None) == 5
    assert asked == ["one", "two"] and (tmp_path / "out").read_bytes() == b"bytes"


@pytest.fixture
def hung() -> Iterator[str]:
    """The URL of one that takes connections and never answers, as a process that is stopped does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HURRY_S", 0.3)
    monkeypatch.setattr(http, "ANSWER_S", 8.0)


def test_a_manager_that_takes_the_connection_and_never_answers_is_given_up_for_another(
    hurried: None, hung: str, context: Context, cloud: FakeCloud
) -> None:
    client = Client(replace(context, url=hung, others=(hung, context.url)))
    began = time.monotonic()
    assert client.get("/vms")["items"] == []
    assert 0.6 <= time.monotonic() - began < 4.0, "each of the two that hang has its time, and no more"

    client = Client(replace(context, url=hung, others=(context.url,)))
    operation = client.post("/vms", {"name": "a", "spec": {}})["operation"]
    assert len([one for one in cloud.requests if one[0] == "POST"]) == 1 and operation["id"]


def test_what_takes_long_is_answered_by_the_last(hurried: None) -> None:
    waits: list[float] = []
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        asked.append(str(request.url.host))
        if len(waits) < 3:
            raise httpx.ReadTimeout("slow", request=request)
        return httpx.Response(200, json={})

    context = Context("c", "http://one", "t", others=("http://two", "http://three"))
    client = Client(context, transport=httpx.MockTransport(answer))
    client.get("/operations/o", wait=20.0)
    assert waits == [20.3, 20.3, 8.0] and asked == ["one", "two", "three"]
    client.get("/vms")
    assert asked[3:] == ["three"], "the one that answered is asked first from now on"


def test_an_upload_to_a_manager_that_hangs_is_not_sent_to_another(
    hurried: None, hung: str, context: Context, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ANSWER_S", 1.0)
    with pytest.raises(CloudError) as caught:
        Client(replace(context, url=hung, others=(context.url,))).request("PUT", "/images/a/data", content=b"x")
    assert caught.value.kind is ErrorKind.TIMED_OUT and not cloud.requests
