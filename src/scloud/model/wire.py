"""The messages between manager and agent. One JSON object a frame; `t` says which.

The agent dials the manager's link port over mutual TLS. The first frame of a connection says what it is for: `hello`
(the node's control connection, one at a time), `stream` (bytes of a console or a forwarded port), `fetch` (an image),
or, without a certificate, `enroll`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from scloud.model.base import Value
from scloud.model.connections import Connection
from scloud.model.desired import DesiredObject
from scloud.model.observed import NodeFacts, NodeLoad, Observed

# --- agent to manager


class Hello(Value):
    """`have` maps each object's key in the agent's journal to its generation, so only what differs is sent."""

    t: Literal["hello"] = "hello"
    facts: NodeFacts
    epoch: int
    have: dict[str, str]
    """Key to digest (`digest_of`) of the object as journalled."""


class Heartbeat(Value):
    """Every second."""

    t: Literal["heartbeat"] = "heartbeat"
    load: NodeLoad


class Report(Value):
    """What has become of desired objects. Sent on every change, and all of them after a hello.

    `network_revision` is the highest desired revision whose network objects are in the switch.
    """

    t: Literal["report"] = "report"
    items: tuple[Observed, ...] = ()
    network_revision: int = 0
    complete: bool = False


class Reply(Value):
    """The answer to a Call. `error` is (kind, message) of a CloudError."""

    t: Literal["reply"] = "reply"
    call: int
    result: Any = None
    error: tuple[str, str] | None = None


# --- manager to agent


class Welcome(Value):
    """`epoch` of the leader that speaks; an agent that has seen a higher one hangs up.

    `managers` are HOST:PORT of every manager's link, where there are several: any of them leads to the leader.
    """

    t: Literal["welcome"] = "welcome"
    epoch: int
    node: str
    managers: tuple[str, ...] = ()


class Beat(Value):
    """Every two seconds, so that a manager that hangs is noticed."""

    t: Literal["beat"] = "beat"
    epoch: int


class Desired(Value):
    """Objects to set and keys to forget. `full`: `have` was compared; what is not named here is as it should be.

    Revisions grow by one per message within a manager's life. Dropped keys are forgotten without any action: what had
    to be undone was said before by `absent`.
    """

    t: Literal["desired"] = "desired"
    epoch: int
    revision: int
    full: bool = False
    set: tuple[DesiredObject, ...] = ()
    drop: tuple[str, ...] = ()


class Call(Value):
    """A question or a command that is not desired state: `inventory`, `figures`, `console_log`, `trace`, `open`."""

    t: Literal["call"] = "call"
    epoch: int
    call: int
    method: str
    params: dict[str, Any] = {}


class Refused(Value):
    """Instead of an answer: (kind, message) of a CloudError; the connection is closed after it."""

    t: Literal["refused"] = "refused"
    error: tuple[str, str]


WAS_REMOVED = "this node was removed from the cloud; join it anew"


class Removed(Value):
    """Instead of a welcome, to a node that was taken out of the cloud: nothing that it has is the cloud's any more."""

    t: Literal["removed"] = "removed"
    epoch: int


AgentMessage = Annotated[Hello | Heartbeat | Report | Reply, Field(discriminator="t")]
ManagerMessage = Annotated[Welcome | Desired | Call | Beat | Refused, Field(discriminator="t")]
agent_message: TypeAdapter[Hello | Heartbeat | Report | Reply] = TypeAdapter(AgentMessage)
manager_message: TypeAdapter[Welcome | Desired | Call | Beat | Refused] = TypeAdapter(ManagerMessage)


# --- other first frames


class StreamHello(Value):
    """Sent on a new connection after an `open` call; raw bytes follow in both directions."""

    t: Literal["stream"] = "stream"
    stream: str


class FetchHello(Value):
    """Answered by a FetchStart frame (or Refused), then the image's raw file as sparse extents: see `link.images`."""

    t: Literal["fetch"] = "fetch"
    image: str


class FetchStart(Value):
    """`size` in bytes of the whole raw file; `sha256` of all its bytes, holes read as zeros."""

    t: Literal["image"] = "image"
    size: int
    sha256: str


class CaRequest(Value):
    """Asks for the CA's certificate before anything is trusted; what comes back is checked against the token's pin."""

    t: Literal["ca"] = "ca"


class CaAnswer(Value):
    t: Literal["ca"] = "ca"
    ca: str


class Enroll(Value):
    """The only frame taken without a client certificate. `csr` is PEM; the answer is an Enrolled frame."""

    t: Literal["enroll"] = "enroll"
    node: str
    secret: str
    csr: str


class Enrolled(Value):
    t: Literal["enrolled"] = "enrolled"
    certificate: str
    ca: str


FirstMessage = Annotated[Hello | StreamHello | FetchHello | Enroll | CaRequest, Field(discriminator="t")]
"""What a connection may begin with. Only Enroll and CaRequest are taken without a client certificate."""
first_message: TypeAdapter[Hello | StreamHello | FetchHello | Enroll | CaRequest] = TypeAdapter(FirstMessage)
welcome_answer: TypeAdapter[Welcome | Removed | Refused] = TypeAdapter(
    Annotated[Welcome | Removed | Refused, Field(discriminator="t")]
)
fetch_answer: TypeAdapter[FetchStart | Refused] = TypeAdapter(Annotated[FetchStart | Refused, Field(discriminator="t")])
enroll_answer: TypeAdapter[Enrolled | Refused] = TypeAdapter(Annotated[Enrolled | Refused, Field(discriminator="t")])
ca_answer: TypeAdapter[CaAnswer | Refused] = TypeAdapter(Annotated[CaAnswer | Refused, Field(discriminator="t")])


# --- between the agents of two nodes


class MoveHello(Value):
    """The first frame of the node that a VM leaves: which VM, and what the connection is for.

    `spec` is answered by a MoveSpec; `control`, `memory` and `disks` are raw bytes from here on. On `release` one byte
    says that the VM is gone at the source: it is let run at the target. A MoveConnections may follow.
    """

    t: Literal["move"] = "move"
    vm: str
    way: Literal["spec", "control", "memory", "disks", "release"]


class MoveSpec(Value):
    """What the VM's domain is to be at the target: `drivers.hypervisor.protocol.DomainSpec` as JSON."""

    t: Literal["spec"] = "spec"
    spec: dict[str, Any]


class MoveConnections(Value):
    """What the switch of the node that a VM leaves knows of the connections of each of its nics."""

    t: Literal["connections"] = "connections"
    of: dict[str, tuple[Connection, ...]]


move_hello: TypeAdapter[MoveHello] = TypeAdapter(MoveHello)
move_connections: TypeAdapter[MoveConnections] = TypeAdapter(MoveConnections)
move_answer: TypeAdapter[MoveSpec | Refused] = TypeAdapter(Annotated[MoveSpec | Refused, Field(discriminator="t")])
