"""A node joins a cloud: the manager is told its name, its agent gets a certificate for the token of the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from scloud.agent.config import AgentConfig, save_config
from scloud.client.http import Client
from scloud.drivers.supervisor.process import tail
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.layout import Layout, python
from scloud.node.sandbox import Sandbox
from scloud.setup.defaults import find

ENROL_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 120.0
_LOOK_S = 0.1


def enrolled(sandbox: Sandbox) -> bool:
    """Whether the node has a certificate."""
    return (sandbox.root / "agent" / "pki" / "cert.pem").exists()


def join_token(client: Client, node: str) -> str:
    """Announce the node and return the token it joins with; another token for one that was announced before."""
    if find(client, "nodes", node) is not None:
        answer = client.post(f"/nodes/{node}/actions/join-token")
    else:
        answer = client.post("/nodes", {"name": node, "spec": {}})
    return str(answer["join"]["token"])


def enrol(sandbox: Sandbox, config: AgentConfig, token: str) -> None:
    """Fetch the node's certificate, from inside its namespaces."""
    path = sandbox.root / "agent.json"
    save_config(config, path)
    sandbox.run(*python("scloud.agent.enroll"), "--config", str(path), "--token", token, timeout_s=ENROL_TIMEOUT_S)


def wait_nodes(client: Client, layout: Layout, names: Sequence[str], since: float = 0.0) -> list[dict[str, Any]]:
    """Wait until all are ready, and have been heard of after `since` (seconds since 1970).

    The error names those that are not, and how the first one's log ends.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        nodes = [client.get(f"/nodes/{name}") for name in names]
        late = [node for node in nodes if not _ready(node["status"], since)]
        if not late:
            return nodes
        if time.monotonic() > deadline:
            log = layout.keeper / "log" / f"agent-{late[0]['name']}.log"
            states = ", ".join(f"{node['name']} is {node['status']['state']}" for node in late)
            raise CloudError(
                ErrorKind.TIMED_OUT, f"{states} after {READY_TIMEOUT_S:g} s; the agent's log {log} ends: {tail(log)}"
            )
        # The API has no way to wait for a node's state.
        time.sleep(_LOOK_S)


def _ready(status: dict[str, Any], since: float) -> bool:
    return status["state"] == "ready" and (status.get("last_seen") or 0.0) >= since
