"""The tables. Specs and statuses are JSON text, validated by the types in `model` before they are written."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

resource = Table(
    "resource",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(24), nullable=False),
    Column("account", String(32), nullable=False),  # '' for what belongs to the administrator
    Column("name", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("node", String(32)),
    Column("parent", String(32)),  # the VPC of a subnet or nic, the VM of an attached disk
    Column("generation", Integer, nullable=False),
    Column("observed_generation", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("gone", Boolean, nullable=False),  # deleted for its owner; kept until its node confirms
    UniqueConstraint("kind", "account", "name", name="uq_resource_name"),
    Index("ix_resource_list", "kind", "account", "gone", "id"),
    Index("ix_resource_node", "node", "kind"),
    Index("ix_resource_parent", "parent", "kind"),
    Index("ix_resource_state", "kind", "state", "gone"),  # with all that counts ask for
)

reference = Table(
    "reference",
    metadata,
    Column("source", String(32), primary_key=True),
    Column("target", String(32), primary_key=True),
    Column("role", String(16), primary_key=True),
    Index("ix_reference_target", "target"),
)

claim = Table(
    "claim",
    metadata,
    Column("scope", String(48), primary_key=True),  # what must be unique within: 'vni', 'mac', 'ip:<vpc>'
    Column("value", String(64), primary_key=True),
    Column("owner", String(32), nullable=False),
    Index("ix_claim_owner", "owner"),
)

usage = Table(
    "node_usage",
    metadata,
    Column("node", String(32), primary_key=True),
    Column("cpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
)

operation = Table(
    "operation",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("action", String(48), nullable=False),
    Column("account", String(32), nullable=False),
    Column("resource_kind", String(24), nullable=False),
    Column("resource_id", String(32), nullable=False),
    Column("resource_name", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("progress", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("error", Text),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("deadline_at", Float, nullable=False),
    Index("ix_operation_list", "account", "id"),
    Index("ix_operation_resource", "resource_id", "state"),
    Index("ix_operation_open", "state", "deadline_at"),
)

event = Table(
    "event",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("at", Float, nullable=False),
    Column("level", String(8), nullable=False),
    Column("account", String(32), nullable=False),
    Column("resource_kind", String(24), nullable=False),
    Column("resource_id", String(32), nullable=False),
    Column("resource_name", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Index("ix_event_list", "account", "id"),
    Index("ix_event_resource", "resource_id", "id"),
)

work = Table(
    "work",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("due_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Index("ix_work_due", "due_at"),
)

token = Table(
    "token",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("account", String(32), nullable=False),
    Column("name", String(64), nullable=False),
    Column("purpose", String(8), nullable=False),  # 'api', or 'join' for a node's enrolment
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Index("ix_token_account", "account", "id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("account", String(32), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("response", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(64), primary_key=True),  # of the leader, or of a standby that says that it is there
    Column("holder", Text, nullable=False),  # JSON of a lease.Holder
    Column("epoch", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
)

counter = Table(
    "counter",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Integer, nullable=False),
)

secret = Table(
    "secret",
    metadata,
    Column("owner", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

sample = Table(
    "sample",
    metadata,
    Column("owner", String(32), primary_key=True),
    Column("at", Float, primary_key=True),
    Column("used_mib", BigInteger, nullable=False),
)

incident = Table(
    "incident",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("node", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("began_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("data", Text, nullable=False),
    Index("ix_incident_state", "state"),
    Index("ix_incident_node", "node", "id"),
)

relocation = Table(
    "relocation",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("subject", String(32), nullable=False),
    Column("began_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("data", Text, nullable=False),
    Index("ix_relocation_subject", "kind", "subject", "id"),
)
