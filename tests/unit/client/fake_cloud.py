"""A small cloud behind a real socket: the API's shapes and status codes, and levers for what goes wrong.

Operations move on whenever they are asked about (queued, running at 40 %, ended), so nothing here needs time to pass.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

PREFIXES = {
    **{"vms": "vm", "disks": "dsk", "nics": "nic", "images": "img", "vpcs": "vpc", "subnets": "sub"},
    **{"security-groups": "sg", "placement-groups": "pg", "keypairs": "key", "nodes": "nod", "clusters": "clu"},
    **{"storage-clusters": "stc", "pools": "pol", "disk-types": "dty"},
    "accounts": "acc",
}
STATES = {"vms": "running"}
SECRET = "sct-fake"


class Problem(Exception):
    def __init__(self, status: int, code: str, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.more = status, code, detail, more


class FakeCloud:
    """The state, and the levers. `requests` is what was asked: (method, path, query, body, headers)."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.numbers = itertools.count()
        self.kinds: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in PREFIXES}
        self.operations: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[str, tuple[str, str, str]] = {}
        """Action to (state, code, message): how its next operation ends, instead of done."""
        self.problems: dict[str, Problem] = {}
        """`METHOD /path` to the problem it is answered with, once."""
        self.requests: list[tuple[str, str, dict[str, str], Any, dict[str, str]]] = []
        self.uploads: dict[str, bytes] = {}
        self.events: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        """Path to the answer of a plain GET or of the trace."""
        self.closed_forwards: list[str] = []
        """Reasons with which the next forwarded connections are closed."""
        self.guest_port: int | None = None
        """Where forwarded connections really go on this machine."""
        self.seed()

    def seed(self) -> None:
        self.make("accounts", "admin", {"admin": True})
        self.make("vpcs", "default", {"vni": 1})
        vpc = self.find("vpcs", "default")["id"]
        self.make("subnets", "default", {"vpc": vpc, "cidr": "10.0.0.0/24"})
        self.make("security-groups", "default", {"rules": []})
        self.make("images", "micro", {"source": "upload", "format": "raw", "login_user": "root"})
        self.make("clusters", "default", {"architecture": "x86_64", "cpu_overcommit": 4.0})
        cluster = self.find("clusters", "default")["id"]
        node = self.make("nodes", "n1", {"cluster": cluster, "cordoned": False})
        capacity = node["status"]["capacity"] = {"cpus": 8, "memory_mib": 16384, "disk_mib": 102400}
        load = {"cpu": 0.125, "memory": 0.5, "disk": 0.9, "network": 0.25, "storage": 0.625, "storage_ms": 4.5}
        usage = {"node": node["id"], "promised": {"cpus": 2, "memory_mib": 512, "disk_mib": 1024}, "smoothed": load}
        self.answers["usage"] = {"items": [{**usage, "promisable": {**capacity, "cpus": 32}}]}

    def id(self, prefix: str) -> str:
        return f"{prefix}-{next(self.numbers):016d}"

    def make(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        now = time.time()
        resource = {
            "id": self.id(PREFIXES[kind]),
            "kind": kind.removesuffix("s"),
            "name": name,
            "account": "acc-0000000000000000",
            "generation": 1,
            "spec": spec,
            "status": {"state": STATES.get(kind, "ready"), "reason": ""},
            "created_at": now,
            "updated_at": now,
        }
        if kind == "vms":
            node = self.find("nodes", "n1")["id"]
            resource["status"] |= {"node": node, "addresses": ["10.0.0.5"], "cpus": None, "memory_mib": None}
        self.kinds[kind][resource["id"]] = resource
        return resource

    def find(self, kind: str, ref: str) -> dict[str, Any]:
        for resource in self.kinds[kind].values():
            if ref in (resource["id"], resource["name"]):
                return resource
        raise Problem(404, "not_found", f"there is no {kind.removesuffix('s')} '{ref}' in this account")

    def begin(self, action: str, resource: dict[str, Any], *, ended: bool = False) -> dict[str, Any]:
        now = time.time()
        operation = {
            **{"id": self.id("op"), "kind": "operation", "action": action, "account": resource["account"]},
            "resource": {key: resource[key] for key in ("kind", "id", "name")},
            **{"state": "done" if ended else "queued", "progress": 100 if ended else 0, "message": "", "error": None},
            **{"created_at": now, "started_at": None, "finished_at": now if ended else None, "deadline_at": now + 60},
        }
        self.operations[operation["id"]] = operation
        return {"operation": dict(operation), "resource": json.loads(json.dumps(resource))}

    def advance(self, operation: dict[str, Any]) -> None:
        if operation["state"] == "queued":
            operation |= {"state": "running", "progress": 40, "message": "making its disk"}
        elif operation["state"] == "running":
            state, code, message = self.outcomes.pop(operation["action"], ("done", "", ""))
            operation |= {"state": state, "finished_at": time.time()}
            if state == "done":
                operation |= {"progress": 100, "message": "done"}
            else:
                operation["error"] = {"code": code, "message": message}

    def event(self, message: str, level: str = "info") -> None:
        about = {"kind": "vm", "id": "vm-0000000000000000", "name": "web"}
        self.events.append(
            {"id": self.id("ev"), "at": time.time(), "level": level, "resource": about, "message": message}
        )

    def asked(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests that were made so."""
        return [body for verb, where, _, body, _ in self.requests if (verb, where) == (method, path)]


def build(cloud: FakeCloud) -> FastAPI:
    app = FastAPI()

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        body = {"type": "about:blank", "title": error.code, "status": error.status, "code": error.code}
        return JSONResponse(
            {**body, "detail": error.detail, **error.more}, error.status, media_type="application/problem+json"
        )

    @app.middleware("http")
    async def record(request: Request, call_next: Any) -> Response:
        path = request.url.path.removeprefix("/api/v1")
        raw = await request.body() if not path.endswith("/data") else b""
        body = json.loads(raw) if raw else None
        cloud.requests.append((request.method, path, dict(request.query_params), body, dict(request.headers)))
        failing = cloud.problems.pop(f"{request.method} {path}", None)
        if request.headers.get("authorization") != f"Bearer {SECRET}":
            failing = Problem(401, "unauthenticated", "this token is unknown or out of date; ask for a new one")
        if failing:
            return await problem(request, failing)
        answer: Response = await call_next(request)
        return answer

    @app.get("/api/v1/operations/{ref}")
    async def operation(ref: str, wait: float = 0, seen: int | None = None) -> Any:
        found = cloud.operations.get(ref)
        if found is None:
            raise Problem(404, "not_found", f"there is no operation '{ref}' in this account")
        shown = dict(found)
        cloud.advance(found)
        return dict(found) if wait and shown["progress"] == seen else shown

    @app.get("/api/v1/operations")
    async def operations(limit: int = 100) -> Any:
        return {"items": [*cloud.operations.values()][::-1][:limit], "next": None}

    @app.post("/api/v1/operations/{ref}/cancel", status_code=202)
    async def cancel(ref: str) -> Any:
        cloud.operations[ref] |= {"state": "cancelled"}
        return {"operation": cloud.operations[ref], "resource": {}}

    @app.get("/api/v1/events")
    async def events(limit: int = 100, after: str = "", wait: float = 0) -> Any:
        found = [item for item in cloud.events if item["id"] > after]
        if not found and wait:
            cloud.event("something happened")
            found = cloud.events[-1:]
        return {"items": found[::-1][:limit], "next": None}

    @app.get("/api/v1/tokens")
    async def tokens() -> Any:
        return {"items": cloud.answers.get("tokens", []), "next": None}

    @app.post("/api/v1/tokens", status_code=201)
    async def make_token(request: Request) -> Any:
        body = await request.json()
        token = {"id": cloud.id("tok"), "name": body["name"], "created_at": time.time(), "expires_at": None}
        return {"token": token, "secret": "sct-new"}

    @app.delete("/api/v1/tokens/{ref}", status_code=204)
    async def delete_token(ref: str) -> Response:
        return Response(status_code=204)

    @app.get("/api/v1/usage/storage")
    async def storage_usage() -> Any:
        return {"items": cloud.answers.get("usage/storage", [])}

    @app.get("/api/v1/{name}")
    async def plain_or_page(name: str, request: Request, limit: int = 100, cursor: str = "") -> Any:
        if name in cloud.answers:
            return cloud.answers[name]
        if name not in cloud.kinds:
            raise Problem(404, "not_found", "there is nothing at this path; see /docs")
        items = sorted(cloud.kinds[name].values(), key=lambda item: item["id"])
        for key in ("vm", "vpc", "subnet"):
            if key in request.query_params:
                wanted = cloud.find(f"{key}s", request.query_params[key])["id"]
                items = [item for item in items if item["spec"].get(key) == wanted]
        items = [item for item in items if item["id"] > cursor]
        return {"items": items[:limit], "next": items[limit - 1]["id"] if len(items) > limit else None}

    @app.post("/api/v1/network/trace")
    async def trace() -> Any:
        return cloud.answers["trace"]

    @app.get("/api/v1/vms/{ref}/log")
    async def log(ref: str) -> Response:
        return PlainTextResponse(f"{cloud.find('vms', ref)['name']} login:")

    @app.get("/api/v1/vms/{ref}/figures")
    async def figures(ref: str) -> Any:
        return {"vm": cloud.find("vms", ref)["id"], "cpu_seconds": 12.5, "cpu_fraction": 0.25, "memory_mib": 256}

    @app.put("/api/v1/images/{ref}/data", status_code=202)
    async def upload(ref: str, request: Request) -> Any:
        image = cloud.find("images", ref)
        data = b"".join([piece async for piece in request.stream()])
        image["status"]["sha256"] = hashlib.sha256(data).hexdigest()
        cloud.uploads[image["name"]] = data
        return next(op for op in cloud.operations.values() if op["resource"]["id"] == image["id"])

    @app.get("/api/v1/images/{ref}/data")
    async def download(ref: str, format: str) -> Response:
        data = cloud.uploads[cloud.find("images", ref)["name"]]
        return StreamingResponse(iter([format.encode(), data]), media_type="application/octet-stream")

    @app.get("/api/v1/{kind}/{ref}")
    async def show(kind: str, ref: str) -> Any:
        return cloud.find(kind, ref)

    @app.post("/api/v1/{kind}", status_code=202)
    async def create(kind: str, request: Request, dry_run: bool = False) -> Any:
        body = await request.json()
        if dry_run:
            return JSONResponse(cloud.answers["dry_run"])
        if any(item["name"] == body["name"] for item in cloud.kinds[kind].values()):
            raise Problem(409, "conflict", f"there is a {kind.removesuffix('s')} '{body['name']}' already")
        if kind == "nodes":
            node = cloud.make(kind, body["name"], body["spec"])
            command = f"./scloud node join --token {node['id']}"
            return {**cloud.begin("node.add", node, ended=True), "join": {"token": node["id"], "command": command}}
        action = f"{kind.removesuffix('s')}.create"
        instant = kind not in ("vms", "disks", "images")
        count = body.get("count", 1)
        if count == 1:
            return cloud.begin(action, cloud.make(kind, body["name"], body["spec"]), ended=instant)
        names = [f"{body['name']}-{number}" for number in range(1, count + 1)]
        made = [cloud.begin(action, cloud.make(kind, name, body["spec"])) for name in names]
        return {key + "s": [item[key] for item in made] for key in ("operation", "resource")}

    @app.patch("/api/v1/{kind}/{ref}", status_code=202)
    async def change(kind: str, ref: str, request: Request) -> Any:
        body, resource = await request.json(), cloud.find(kind, ref)
        resource["name"] = body.get("name", resource["name"])
        resource["spec"].update(body.get("spec") or {})
        return cloud.begin(f"{kind.removesuffix('s')}.change", resource, ended=True)

    @app.delete("/api/v1/{kind}/{ref}", status_code=202)
    async def delete(kind: str, ref: str) -> Any:
        resource = cloud.find(kind, ref)
        del cloud.kinds[kind][resource["id"]]
        return cloud.begin(f"{kind.removesuffix('s')}.delete", resource)

    @app.post("/api/v1/{kind}/{ref}/actions/{action}", status_code=202)
    async def act(kind: str, ref: str, action: str) -> Any:
        return cloud.begin(f"{kind.removesuffix('s')}.{action}", cloud.find(kind, ref))

    @app.post("/api/v1/security-groups/{ref}/rules", status_code=202)
    async def add_rule(ref: str, request: Request) -> Any:
        group = cloud.find("security-groups", ref)
        group["spec"]["rules"].append({"id": cloud.id("rul"), **(await request.json())})
        return cloud.begin("security-group.add-rule", group)

    @app.delete("/api/v1/security-groups/{ref}/rules/{rule}", status_code=202)
    async def remove_rule(ref: str, rule: str) -> Any:
        group = cloud.find("security-groups", ref)
        group["spec"]["rules"] = [item for item in group["spec"]["rules"] if item["id"] != rule]
        return cloud.begin("security-group.remove-rule", group)

    @app.websocket("/api/v1/vms/{ref}/console")
    async def console(websocket: WebSocket, ref: str) -> None:
        """A guest that answers in capitals, and closes when it is told `exit`."""
        await websocket.accept()
        try:
            cloud.find("vms", ref)
        except Problem as error:
            await websocket.close(4000, f"{error.code}: {error.detail}")
            return
        with suppress(WebSocketDisconnect):
            while (data := await websocket.receive_bytes()) != b"exit\n":
                await websocket.send_bytes(data.upper())
            await websocket.close()

    @app.websocket("/api/v1/vms/{ref}/forward")
    async def forward(websocket: WebSocket, ref: str, port: int) -> None:
        if websocket.headers.get("authorization") != f"Bearer {SECRET}":
            await websocket.close(1008)
            return
        await websocket.accept()
        if cloud.closed_forwards:
            await websocket.close(4000, cloud.closed_forwards.pop(0))
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", cloud.guest_port)

        async def up() -> None:
            try:
                while True:
                    writer.write(await websocket.receive_bytes())
            except (WebSocketDisconnect, RuntimeError):
                writer.close()

        task = asyncio.create_task(up())
        with suppress(WebSocketDisconnect):
            while data := await reader.read(65536):
                await websocket.send_bytes(data)
            await websocket.close()
        task.cancel()

    return app


@contextmanager
def serve(cloud: FakeCloud) -> Iterator[str]:
    """Run it in a thread on a free port; gives the URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = uvicorn.Server(uvicorn.Config(build(cloud), log_level="error", lifespan="off", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
