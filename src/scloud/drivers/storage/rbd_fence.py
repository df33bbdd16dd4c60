"""Cutting a node off from a cluster. Blocking; meant for a thread.

First the node is written down as fenced, so that its agent opens nothing any more; then every session of it that has
anything open is put on the OSDs' blocklist, until there is none that was not; then every OSD is made to know. A node's
key should be taken away as well, which the manager does: then no new session can begin at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import rados
import rbd

from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.rbd_cluster import Session, command, omap, remove_omap, set_omap
from scloud.model.errors import CloudError, ErrorKind

FOR_GOOD_S = 10 * 365 * 86400.0
"""An entry of the blocklist has to have an end; a session that was cut off never lives so long."""
_PASSES = 10
_PROBES = 40
"""Names guessed for each placement group, at most: to miss one by chance is out of the question."""


def fence(session: Session, pools: list[str], data_pools: list[str], node: str) -> None:
    """Returns when no OSD takes anything from the node's sessions any more. `CloudError` if that is not certain.

    Erasure-coded pools have their data in others, where there are no images. In a pool that is gone nothing is written.
    """
    there = _pools(session)
    pools, data_pools = ([pool for pool in some if pool in there] for some in (pools, data_pools))
    contexts = {pool: session.open(pool) for pool in pools}
    cut: set[str] = set()
    for context in contexts.values():
        _note(context, node, set())
    for _ in range(_PASSES):
        found = set().union(*(_addresses(context, session, node) for context in contexts.values()))
        if not found - cut:
            break
        for address in sorted(found - cut):
            _blocklist(session, "add", address, FOR_GOOD_S)
        cut |= found
        for context in contexts.values():
            _note(context, node, cut)
    else:
        raise CloudError(ErrorKind.ENGINE, f"fence {node}: it opens new sessions as fast as they are cut off")
    session.rados.wait_for_latest_osdmap()
    for pool in (*pools, *data_pools):
        _reach_every_primary(session, pool)
    for context in contexts.values():
        for disk in _disks_of(context, node):
            _break_locks(context, disk, cut)


def is_fenced(session: Session, context: Any, node: str) -> bool:
    """Written down as such, and every session that was cut off is still on the list."""
    found = omap(context, names.FENCED)
    if node not in found:
        return False
    listed = {entry["addr"] for entry in command(session, {"prefix": "osd blocklist ls"})}
    return set(found[node].split()) <= listed


def is_cut_off(session: Session) -> bool:
    """Whether the session itself is on the list. Whoever fences its node puts it there, if it was written down."""
    if not session.registered:
        raise CloudError(ErrorKind.UNAVAILABLE, "this session has no pool yet, and would not be found")
    listed = {_plain(entry["addr"]) for entry in command(session, {"prefix": "osd blocklist ls"})}
    return session.address in listed


def unfence(session: Session, pools: list[str], node: str) -> None:
    """What was cut off is dead by now: where this key may not take it off the list, it stays there."""
    for pool in _pools(session).keys() & pools:
        context = session.open(pool)
        for address in omap(context, names.FENCED).get(node, "").split():
            with suppress(CloudError):
                _blocklist(session, "rm", address)
        remove_omap(context, names.FENCED, node)
        remove_omap(context, names.SESSIONS, node)


def _note(context: Any, node: str, addresses: set[str]) -> None:
    """Never fewer than are written down already: a fencing that died in the middle is gone on with by the next."""
    known = set(omap(context, names.FENCED).get(node, "").split())
    set_omap(context, names.FENCED, node, " ".join(sorted(known | addresses)))


def _disks_of(context: Any, node: str) -> list[str]:
    """Images of disks that were last given to the node, or that a guest was to take along from it."""
    given = omap(context, names.NODES)
    found = (names.parse_disk(name) for name in rbd.RBD().list(context))
    return [names.disk_image(*one) for one in found if one is not None and node in given.get(one[0], "").split()]


def _addresses(context: Any, session: Session, node: str) -> set[str]:
    """Of the node's agent, and of what has disks open that were given to the node and comes from no other node.

    A disk on its way between two nodes is open on both, and only one of them is to be cut off.
    """
    agents = omap(context, names.SESSIONS)
    found = set(agents.get(node, "").split())
    for name in _disks_of(context, node):
        with suppress(rbd.ImageNotFound), rbd.Image(context, name, read_only=True) as image:
            found |= {watcher["addr"] for watcher in image.watchers_list()}
            lockers = image.list_lockers() or {"lockers": []}
            found |= {address for _, _, address in lockers["lockers"]}
    return own({_plain(address) for address in found}, agents, node) - {session.address}


def own(addresses: set[str], agents: Mapping[str, str], node: str) -> set[str]:
    """Those of the addresses, IP:PORT/NONCE, that may be the node's: neither another node's agent, nor of its IP.

    `agents` has the addresses of each node's agent. Nodes that share an IP cannot be told apart by it.
    """
    others = {address for other, told in agents.items() if other != node for address in told.split()}
    elsewhere = {_ip(address) for address in others} - {_ip(address) for address in agents.get(node, "").split()}
    return {one for one in addresses if one and one not in others and _ip(one) not in elsewhere}


def _ip(address: str) -> str:
    return address.rpartition(":")[0]


def _break_locks(context: Any, name: str, cut: set[str]) -> None:
    with suppress(rbd.ImageNotFound), rbd.Image(context, name) as image:
        lockers = image.list_lockers() or {"lockers": []}
        for client, cookie, address in lockers["lockers"]:
            if _plain(address) in cut:  # who loses its lock is put on the blocklist by librbd, too
                with suppress(rbd.ImageNotFound):
                    image.break_lock(client, cookie)


def _pools(session: Session) -> dict[str, int]:
    """The cluster's pools by name: how many placement groups each has."""
    return {one["pool_name"]: one["pg_num"] for one in command(session, {"prefix": "osd dump"})["pools"]}


def _reach_every_primary(session: Session, pool: str) -> None:
    """An OSD answers a request only once it has the map that the asker has: from then on it knows the blocklist.

    So something is asked of the first OSD of each of the pool's placement groups; names that lead to them are guessed.
    """
    context = session.rados.open_ioctx(pool)
    groups = _pools(session).get(pool, 0)
    seen: set[str] = set()
    asked: set[int] = set()
    for number in range(_PROBES * groups):
        if len(seen) == groups:
            return
        name = names.probe(number)
        place = command(session, {"prefix": "osd map", "pool": pool, "object": name})
        seen.add(place["pgid"])
        primary = int(place["acting_primary"])
        if primary >= 0 and primary not in asked:  # a group without any takes nothing from anybody
            asked.add(primary)
            with suppress(rados.ObjectNotFound):
                context.stat(name)


def _blocklist(session: Session, what: str, address: str, expire_s: float | None = None) -> None:
    asked: dict[str, Any] = {"prefix": "osd blocklist", "blocklistop": what, "addr": address}
    if expire_s is not None:
        asked["expire"] = expire_s
    command(session, asked)


def _plain(address: str) -> str:
    first = address.strip("[]").split(",")[0]
    return first.split(":", 1)[1] if first.startswith(("v1:", "v2:")) else first
