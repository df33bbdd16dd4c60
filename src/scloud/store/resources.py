"""Resources as rows: reading, making, changing, forgetting; always within an account unless asked otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Final, Literal, TypeVar, cast

import orjson
from sqlalchemy import Row, Update, bindparam, delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind, not_found
from scloud.model.ids import is_id
from scloud.model.kinds import PREFIX, Kind, State
from scloud.model.specs import DiskSpec
from scloud.model.statuses import Status
from scloud.store.database import Tx
from scloud.store.tables import claim, reference, resource

V = TypeVar("V", bound=Value)


class _Keep(Enum):
    KEEP = 1


KEEP: Final = _Keep.KEEP
"""Leave a column as it is, where None means something."""
# Built once: building an expression costs more than running it. The same text serves SQLite and PostgreSQL.
_BY_ID = select(resource).where(resource.c.id == bindparam("id"))
_BY_IDS = select(resource).where(resource.c.id.in_(bindparam("ids", expanding=True)))
_USING = (
    select(resource)
    .join(reference, reference.c.source == resource.c.id)
    .where(reference.c.target == bindparam("target"), reference.c.role == bindparam("role"))
    .order_by(resource.c.id)
)
_LIVE = select(resource).where(resource.c.kind == bindparam("kind"), resource.c.gone.is_(False))
_ALL = _LIVE.order_by(resource.c.id)
_LIVE_BY_ID = _LIVE.where(resource.c.id == bindparam("ref"))
_LIVE_BY_ID_OF = _LIVE_BY_ID.where(resource.c.account == bindparam("account"))
_LIVE_BY_NAME_OF = _LIVE.where(resource.c.account == bindparam("account"), resource.c.name == bindparam("ref"))
_OF_KIND = select(resource).where(resource.c.kind == bindparam("kind")).order_by(resource.c.id)
_CHILDREN_EVER = _OF_KIND.where(resource.c.parent == bindparam("parent"))
_CHILDREN = _CHILDREN_EVER.where(resource.c.gone.is_(False))
_CHILDREN_OF = _OF_KIND.where(resource.c.parent.in_(bindparam("parents", expanding=True)))
_IN_STATE = _ALL.where(resource.c.state == bindparam("state"))
_ON_NODE = _OF_KIND.where(resource.c.node == bindparam("node"))
_INSERT = insert(resource)
_REFER = text("INSERT INTO reference (source, target, role) VALUES (:source, :target, :role) ON CONFLICT DO NOTHING")
_CLAIM = text("INSERT INTO claim (scope, value, owner) VALUES (:scope, :value, :owner) ON CONFLICT DO NOTHING")
_CLAIM_OWNER = text("SELECT owner FROM claim WHERE scope = :scope AND value = :value")

BUILT_UPON = frozenset({Kind.IMAGE, Kind.SUBNET, Kind.SECURITY_GROUP, Kind.KEYPAIR, Kind.DISK_TYPE})
"""Kinds that every VM names some of, and that rarely change: who writes remembers them."""
SYSTEM = ""
"""The account of what belongs to the administrator."""


SHORT = 1024
"""Characters of a value's text up to which what it was read as is remembered: subnets, images and states recur."""


@lru_cache(maxsize=4096)
def _parse_short(type_: type[Value], text: str) -> Value:
    return type_.model_validate_json(text)


def _parse(type_: type[V], text: str) -> V:
    """Values never change, so that one may serve all who ask for it."""
    if len(text) > SHORT:
        return type_.model_validate_json(text)
    return cast(V, _parse_short(type_, text))


@dataclass(frozen=True, slots=True)
class Resource:
    """One row. Spec and status stay text until someone needs them as values."""

    id: str
    kind: str
    account: str
    name: str
    state: str
    node: str | None
    parent: str | None
    generation: int
    observed_generation: int
    spec: str
    status: str
    created_at: float
    updated_at: float
    gone: bool

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.id}"

    def spec_as(self, type_: type[V]) -> V:
        return _parse(type_, self.spec)

    def status_as(self, type_: type[V]) -> V:
        return _parse(type_, self.status)

    def public(self) -> dict[str, Any]:
        """As the API shows it; `orjson` splices spec and status in without parsing them."""
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "account": self.account or None,
            "generation": self.generation,
            "spec": orjson.Fragment(self.spec),
            "status": orjson.Fragment(self.status),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


def _row(row: Row[Any]) -> Resource:
    return Resource(*tuple(row))


def dump(value: Value) -> str:
    return value.model_dump_json()


# --- reading


def find(tx: Tx, id: str, *, gone: bool = False) -> Resource | None:
    """By id alone, whoever owns it; tombstones only when asked for."""
    row = tx.conn.execute(_BY_ID, {"id": id}).first()
    if row is None or (row.gone and not gone):
        return None
    return _row(row)


def get(tx: Tx, kind: Kind, ref: str, account: str | None) -> Resource:
    """By id or name; `account` None means an administrator, who sees all by id and the system's by name.

    Raises NOT_FOUND, the same for what is not there and what is another's.
    """
    if kind in BUILT_UPON and tx.memory.lasting:
        known = tx.memory.named(PREFIX[kind])
        if (ref, account) not in known:
            known[ref, account] = _look_for(tx, kind, ref, account)
        row: Resource | None = known[ref, account]
    else:
        row = _look_for(tx, kind, ref, account)
    if row is None:
        raise not_found(kind, ref)
    return row


def _look_for(tx: Tx, kind: Kind, ref: str, account: str | None) -> Resource | None:
    given = {"kind": kind.value, "ref": ref}
    if not is_id(ref):
        row = tx.conn.execute(_LIVE_BY_NAME_OF, {**given, "account": account or SYSTEM}).first()
    elif account is None:
        row = tx.conn.execute(_LIVE_BY_ID, given).first()
    else:
        row = tx.conn.execute(_LIVE_BY_ID_OF, {**given, "account": account}).first()
    return None if row is None else _row(row)


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Each once, so many at a time as every database takes in one question."""
    wanted = list(dict.fromkeys(ids))
    for start in range(0, len(wanted), 500):
        yield wanted[start : start + 500]


def find_many(tx: Tx, ids: Iterable[str], *, gone: bool = True) -> dict[str, Resource]:
    """Rows by id; includes tombstones unless told not to."""
    found: dict[str, Resource] = {}
    for chunk in _chunks(ids):
        for row in tx.conn.execute(_BY_IDS, {"ids": chunk}):
            if gone or not row.gone:
                found[row.id] = _row(row)
    return found


def page(
    tx: Tx,
    kind: Kind,
    account: str | Sequence[str] | None,
    *,
    limit: int,
    after: str | None = None,
    filters: Mapping[str, Any] | None = None,
    without: Mapping[str, Any] | None = None,
) -> tuple[list[Resource], str | None]:
    """One page in order of id (that is, of making) and the cursor of the next; of one account, several, or all.

    `filters` are what columns must be, `without` what they must not be.
    """
    query = select(resource).where(resource.c.kind == kind, resource.c.gone.is_(False))
    if isinstance(account, str):
        query = query.where(resource.c.account == account)
    elif account is not None:
        query = query.where(resource.c.account.in_(account))
    for column, value in (filters or {}).items():
        query = query.where(resource.c[column] == value)
    for column, value in (without or {}).items():
        query = query.where(resource.c[column] != value)
    if after:
        query = query.where(resource.c.id > after)
    rows = [_row(row) for row in tx.conn.execute(query.order_by(resource.c.id).limit(limit + 1))]
    if len(rows) > limit:
        return rows[:limit], rows[limit - 1].id
    return rows, None


def all_of(tx: Tx, kind: Kind, *, gone: bool = False) -> list[Resource]:
    return [_row(row) for row in tx.conn.execute(_OF_KIND if gone else _ALL, {"kind": kind.value})]


def children(tx: Tx, kind: Kind, parent: str, *, gone: bool = False) -> list[Resource]:
    query = _CHILDREN_EVER if gone else _CHILDREN
    return [_row(row) for row in tx.conn.execute(query, {"parent": parent, "kind": kind})]


def children_of(tx: Tx, kind: Kind, parents: Iterable[str]) -> dict[str, list[Resource]]:
    """`children` of many, by parent, tombstones included; nothing of a parent that has none."""
    found: defaultdict[str, list[Resource]] = defaultdict(list)
    for chunk in _chunks(parents):
        for row in tx.conn.execute(_CHILDREN_OF, {"parents": chunk, "kind": kind}):
            found[row.parent].append(_row(row))
    return dict(found)


def on_node(tx: Tx, kind: Kind, node: str) -> list[Resource]:
    """Everything of a kind on a node, tombstones included."""
    return [_row(row) for row in tx.conn.execute(_ON_NODE, {"node": node, "kind": kind})]


def in_state(tx: Tx, kind: Kind, state: State) -> list[Resource]:
    return [_row(row) for row in tx.conn.execute(_IN_STATE, {"kind": kind, "state": state})]


# --- writing


def create(
    tx: Tx,
    kind: Kind,
    account: str,
    name: str,
    spec: Value,
    status: Status,
    *,
    id: str | None = None,
    node: str | None = None,
    parent: str | None = None,
) -> Resource:
    """Insert; CONFLICT if the account has one of that name already."""
    made = Resource(
        id=id or tx.new_id(PREFIX[kind]),
        kind=kind,
        account=account,
        name=name,
        state=status.state,
        node=node,
        parent=parent,
        generation=1,
        observed_generation=0,
        spec=dump(spec),
        status=dump(status),
        created_at=tx.now,
        updated_at=tx.now,
        gone=False,
    )
    try:
        tx.conn.execute(_INSERT, [_columns(made)])
    except IntegrityError as error:
        raise CloudError(
            ErrorKind.CONFLICT, f"there is already a {kind} named '{name}' in this account; choose another name"
        ) from error
    tx.touch(made.key)
    if node is not None:
        _moved(tx, made, None, node)
    return made


def _columns(row: Resource) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Resource.__slots__}


def save(
    tx: Tx,
    row: Resource,
    *,
    spec: Value | None = None,
    status: Status | None = None,
    name: str | None = None,
    node: str | Literal[_Keep.KEEP] | None = KEEP,
    parent: str | Literal[_Keep.KEEP] | None = KEEP,
    observed_generation: int | None = None,
    gone: bool | None = None,
) -> Resource:
    """Write what is given. A new spec raises the generation. Returns the row as it now is."""
    values: dict[str, Any] = {"updated_at": tx.now}
    if spec is not None:
        values["spec"] = dump(spec)
        values["generation"] = row.generation + 1
    if status is not None:
        values["status"] = dump(status)
        values["state"] = status.state.value
    if name is not None:
        values["name"] = name
    if node is not KEEP:
        values["node"] = node
    if parent is not KEEP:
        values["parent"] = parent
    if observed_generation is not None:
        values["observed_generation"] = observed_generation
    if gone is not None:
        values["gone"] = gone
    try:
        tx.conn.execute(_update_of(tuple(values)), {**values, "which": row.id})
    except IntegrityError as error:
        raise CloudError(
            ErrorKind.CONFLICT, f"there is already a {row.kind} named '{name}' in this account; choose another name"
        ) from error
    tx.touch(row.key if _matters_to_nodes(row, values) else f"status/{row.id}")
    if node is not KEEP:
        _moved(tx, row, row.node, node)
    return Resource(**{**_columns(row), **values})


def _moved(tx: Tx, row: Resource, before: str | None, after: str | None) -> None:
    if row.kind == Kind.VM and before != after and tx.memory.placement is not None:
        tx.memory.placement.moved(row.account, before, after)


def _matters_to_nodes(row: Resource, values: Mapping[str, Any]) -> bool:
    """Nodes are told specs, places, names and departures; most changes are of a status only."""
    told = {"spec", "name", "node", "gone"} & values.keys()
    leaves = State.DELETING in (row.state, values.get("state"))
    return bool(told) or leaves or row.kind in (Kind.NODE, Kind.CLUSTER, Kind.IMAGE)


@cache
def _update_of(columns: tuple[str, ...]) -> Update:
    return (
        update(resource).where(resource.c.id == bindparam("which")).values({name: bindparam(name) for name in columns})
    )


def remove(tx: Tx, row: Resource) -> None:
    """Forget a resource, its references and its claims."""
    tx.conn.execute(delete(reference).where(reference.c.source == row.id))
    tx.conn.execute(delete(claim).where(claim.c.owner == row.id))
    tx.conn.execute(delete(resource).where(resource.c.id == row.id))
    tx.touch(row.key)
    _moved(tx, row, row.node, None)


# --- references


def refer(tx: Tx, source: str, target: str, role: str) -> None:
    """Note that `source` uses `target`; noting it twice is the same as once."""
    refer_all(tx, [(source, target, role)])


def refer_all(tx: Tx, uses: Iterable[tuple[str, str, str]]) -> None:
    """Several of (source, target, role) at once."""
    rows = [{"source": source, "target": target, "role": role} for source, target, role in uses]
    if rows:
        tx.conn.execute(_REFER, rows)


def unrefer(tx: Tx, source: str, target: str | None = None, role: str | None = None) -> None:
    query = delete(reference).where(reference.c.source == source)
    if target is not None:
        query = query.where(reference.c.target == target)
    if role is not None:
        query = query.where(reference.c.role == role)
    tx.conn.execute(query)


def users_of(tx: Tx, target: str, *, limit: int = 50) -> list[Resource]:
    """Who uses a resource, tombstones not counted."""
    query = (
        select(resource)
        .join(reference, reference.c.source == resource.c.id)
        .where(reference.c.target == target, resource.c.gone.is_(False))
        .distinct()
        .order_by(resource.c.id)
        .limit(limit)
    )
    return [_row(row) for row in tx.conn.execute(query)]


def using(tx: Tx, target: str, role: str) -> list[Resource]:
    """What uses a resource in a role, tombstones too, in order of id."""
    return [_row(row) for row in tx.conn.execute(_USING, {"target": target, "role": role})]


def referred_to(tx: Tx, target: str) -> bool:
    """Whether anything uses a resource, tombstones too."""
    return tx.conn.execute(select(reference.c.source).where(reference.c.target == target).limit(1)).first() is not None


def sources_of(tx: Tx, target: str, role: str) -> list[str]:
    """Ids of what uses a resource in a role, tombstones too."""
    query = select(reference.c.source).where(reference.c.target == target, reference.c.role == role)
    return [row.source for row in tx.conn.execute(query.order_by(reference.c.source))]


def refuse_if_used(tx: Tx, row: Resource, *, ignore: Sequence[str] = ()) -> None:
    """IN_USE with the list of users."""
    users = [user for user in users_of(tx, row.id) if user.id not in ignore]
    if users:
        names = [_called(user) for user in users]
        raise CloudError(
            ErrorKind.IN_USE,
            f"{row.kind} '{row.name}' is in use by {', '.join(names[:5])}"
            + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            + "; delete or detach them first",
            users=names,
        )


def _called(user: Resource) -> str:
    """A disk in the trash by the name that it had before."""
    former = user.spec_as(DiskSpec).former_name if user.kind == Kind.DISK and user.state == State.TRASHED else None
    return f"{user.kind} {former} (in the trash)" if former else f"{user.kind} {user.name}"


# --- claims


def claim_value(tx: Tx, scope: str, value: str, owner: str) -> bool:
    """Take a value nobody else has; False if somebody does."""
    given = {"scope": scope, "value": value, "owner": owner}
    if tx.conn.execute(_CLAIM, given).rowcount:
        return True
    return bool(tx.conn.execute(_CLAIM_OWNER, given).scalar() == owner)


def unclaim(tx: Tx, scope: str, owner: str) -> int:
    """Give back all values of a scope that the owner has; how many they were."""
    return tx.conn.execute(delete(claim).where(claim.c.scope == scope, claim.c.owner == owner)).rowcount


def claimed(tx: Tx, scope: str) -> set[str]:
    return {row.value for row in tx.conn.execute(select(claim.c.value).where(claim.c.scope == scope))}
