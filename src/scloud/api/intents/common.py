"""What all intents share: finding what a request names, and names for what is made along with something else."""

from __future__ import annotations

from scloud.controllers import migration
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.ids import is_id
from scloud.model.kinds import Kind, State
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, Resource, get


def resolve(tx: Tx, field: str, kind: Kind, ref: str, account: str) -> Resource:
    """What a field names; INVALID, naming the field, if there is no such thing in the account."""
    try:
        return get(tx, kind, ref, account)
    except CloudError as error:
        raise invalid(field, f"names no {kind} of this account: '{ref}'") from error


def resolve_image(tx: Tx, field: str, ref: str, account: str) -> Resource:
    """The account's own image of that name, or else a public one."""
    for owner in (account, SYSTEM):
        try:
            image = get(tx, Kind.IMAGE, ref, owner)
        except CloudError:
            continue
        if image.state != State.READY:
            raise CloudError(
                ErrorKind.CONFLICT, f"image '{image.name}' is {image.state}, not ready; see `scloud image show`"
            )
        return image
    raise invalid(field, f"names no image of this account and no public one: '{ref}'")


def resolve_node(tx: Tx, field: str, ref: str) -> Resource:
    """Nodes are the administrator's, but a VM may be asked onto one by its name."""
    try:
        return get(tx, Kind.NODE, ref, SYSTEM)
    except CloudError as error:
        raise invalid(field, f"names no node: '{ref}'") from error


def side_name(tx: Tx, kind: Kind, account: str, base: str, suffix: str, id: str) -> str:
    """A free name for something made along with another: `web-system`, or with the id's end if that is taken."""
    plain = f"{base}-{suffix}"
    if len(plain) <= 63 and not is_id(plain) and not _exists(tx, kind, account, plain):
        return plain
    return f"{base[:40].rstrip('-')}-{suffix}-{id[-8:]}"


def _exists(tx: Tx, kind: Kind, account: str, name: str) -> bool:
    try:
        get(tx, kind, name, account)
    except CloudError:
        return False
    return True


def refuse_while_leaving(row: Resource) -> None:
    if row.state == State.DELETING:
        raise CloudError(ErrorKind.CONFLICT, f"{row.kind} '{row.name}' is being deleted")
    if row.kind == Kind.VM:
        migration.refuse_while_moving(row)
