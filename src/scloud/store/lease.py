"""The leader's lease: one row with an epoch that grows with each change of hands, judged by the database's own clock.

Every write of a manager that can have rivals asks first whether the row still has its epoch, and keeps it from changing
until the commit: what an old leader writes late is refused, whatever it believes.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError
from sqlalchemy import Connection, delete, insert, select, text, update

from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind
from scloud.store.database import Tx
from scloud.store.tables import lease

LEADER, STANDBY, STRANDED = "leader", "standby/", "stranded/"
FORGOTTEN_S = 60.0
OFFER_S = 2.0
"""How long a standby's word of stranded nodes counts."""
_ANNOUNCE = text(
    "INSERT INTO lease (name, holder, epoch, expires_at) VALUES (:name, :holder, :epoch, :expires_at) "
    "ON CONFLICT (name) DO UPDATE "
    "SET holder = excluded.holder, epoch = excluded.epoch, expires_at = excluded.expires_at"
)


class Holder(Value):
    """Who leads: HOST:PORT of its API and of its link, and a name that no other process has."""

    id: str
    api: str
    link: str


class Lease(Value):
    """As it is in the database; `left_s` may be negative."""

    holder: Holder
    epoch: int
    left_s: float


class Offer(Value):
    """Of a standby: so many nodes called at it lately that it could not bring to the leader."""

    holder: Holder
    nodes: int


def read_lease(tx: Tx) -> Lease | None:
    row = tx.conn.execute(select(lease).where(lease.c.name == LEADER)).first()
    if row is None:
        return None
    try:
        holder = Holder.model_validate_json(row.holder)
    except ValidationError:
        return None  # of a version that did not say where it is reached
    return Lease(holder=holder, epoch=row.epoch, left_s=row.expires_at - _database_now(tx))


def take_lease(tx: Tx, holder: Holder, ttl_s: float, *, alone: bool = False) -> int | None:
    """Become or stay leader; the epoch if that was possible. None if another holds it.

    `alone` says that the caller knows by other means (a lock on the database's file) that no other is alive.
    """
    query = select(lease).where(lease.c.name == LEADER)
    row = tx.conn.execute(query.with_for_update() if tx.has_rivals else query).first()
    now = _database_now(tx)
    values = {"holder": holder.model_dump_json(), "expires_at": now + ttl_s}
    if row is None:
        tx.conn.execute(insert(lease), [{"name": LEADER, "epoch": 1, **values}])
        return 1
    mine = bool(row.holder == values["holder"])
    if not mine and row.expires_at > now and not alone:
        return None
    epoch = int(row.epoch) + (not mine)
    tx.conn.execute(update(lease).where(lease.c.name == LEADER).values(epoch=epoch, **values))
    return epoch


def give_up_lease(tx: Tx, epoch: int) -> None:
    """Let the next take it at once; nothing if it is another's already."""
    query = update(lease).where(lease.c.name == LEADER, lease.c.epoch == epoch)
    tx.conn.execute(query.values(expires_at=_database_now(tx)))


def hand_over(tx: Tx, epoch: int, to: Holder, ttl_s: float) -> None:
    """Make another the leader of the next epoch; nothing if the lease is another's already."""
    query = update(lease).where(lease.c.name == LEADER, lease.c.epoch == epoch)
    expires_at = _database_now(tx) + ttl_s
    tx.conn.execute(query.values(holder=to.model_dump_json(), epoch=epoch + 1, expires_at=expires_at))


def announce(tx: Tx, standby: Holder, ttl_s: float, *, epoch: int = 0, stranded: int = 0) -> None:
    """Say that a standby is there, for so long; and how many nodes it cannot bring to the leader of this epoch."""
    now = _database_now(tx)
    for kind in (STANDBY, STRANDED):
        tx.conn.execute(delete(lease).where(lease.c.name.startswith(kind), lease.c.expires_at < now - FORGOTTEN_S))
    row = {"name": STANDBY + standby.id, "holder": standby.model_dump_json(), "epoch": 0, "expires_at": now + ttl_s}
    tx.conn.execute(_ANNOUNCE, row)
    if stranded:
        offer = Offer(holder=standby, nodes=stranded).model_dump_json()
        row = {"name": STRANDED + standby.id, "holder": offer, "epoch": epoch, "expires_at": now + OFFER_S}
        tx.conn.execute(_ANNOUNCE, row)


def offers_to(tx: Tx, epoch: int) -> list[Offer]:
    """What standbys say of the leader of this epoch."""
    query = select(lease).where(
        lease.c.name.startswith(STRANDED), lease.c.epoch == epoch, lease.c.expires_at > _database_now(tx)
    )
    return [Offer.model_validate_json(row.holder) for row in tx.conn.execute(query.order_by(lease.c.name))]


def managers(tx: Tx) -> list[tuple[str, Holder]]:
    """(leader or standby, who) of every manager that was heard of lately."""
    now = _database_now(tx)
    rows = tx.conn.execute(select(lease).where(lease.c.expires_at > now).order_by(lease.c.name))
    found = []
    for row in rows:
        if row.name == LEADER or row.name.startswith(STANDBY):
            role = "leader" if row.name == LEADER else "standby"
            found.append((role, Holder.model_validate_json(row.holder)))
    leaders = {holder.id for role, holder in found if role == "leader"}
    return [(role, holder) for role, holder in found if role == "leader" or holder.id not in leaders]


def guard_of(epoch: int) -> Callable[[Connection], None]:
    """For `Store.guard`: CONFLICT in each transaction from the moment that another leads."""
    query = text("SELECT epoch FROM lease WHERE name = :name FOR SHARE")

    def guard(conn: Connection) -> None:
        found = conn.execute(query, {"name": LEADER}).scalar()
        if found != epoch:
            raise LeaseLost(epoch, found)

    return guard


class LeaseLost(CloudError):
    """Another manager leads (epoch `found`), or may lead, for the lease has run out."""

    def __init__(self, mine: int, found: int | None) -> None:
        now = "its lease has run out" if found is None else f"another leads now (epoch {found})"
        text_ = f"this manager led in epoch {mine}, and {now}; nothing was done; ask again"
        super().__init__(ErrorKind.CONFLICT, text_)


def _database_now(tx: Tx) -> float:
    if tx.conn.dialect.name == "sqlite":
        return tx.now
    return float(tx.conn.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
