"""Who may do what in a cluster: managers, the making of OSDs, and each node's client for its own pools. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from scloud.reconcile.ceph.commands import Command, mon

Caps = Mapping[str, str]
MANAGER: Caps = {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"}
BOOTSTRAP_OSD: Caps = {"mon": "allow profile bootstrap-osd"}


@dataclass(frozen=True, slots=True)
class Entity:
    """As it is to be. `key` of a client may be replaced by the one that the cluster has already."""

    name: str
    key: str
    caps: Caps


def client_caps(pools: Iterable[str]) -> Caps:
    """Of a node: images in these pools, and cutting off other clients; nothing else."""
    names = sorted(pools)
    if not names:
        return {"mon": "profile rbd"}
    each = ", ".join(f"profile rbd pool={name}" for name in names)
    return {"mon": "profile rbd", "osd": each, "mgr": each}


def keyring(entity: Entity) -> str:
    lines = [f"[{entity.name}]", f"\tkey = {entity.key}"]
    lines += [f'\tcaps {service} = "{text}"' for service, text in sorted(entity.caps.items())]
    return "\n".join(lines) + "\n"


def plan(wanted: Iterable[Entity], gone: Iterable[str], present: Mapping[str, tuple[str, Caps]]) -> list[Command]:
    """Import what differs, delete what is gone."""
    steps = []
    for entity in wanted:
        known = present.get(entity.name)
        if known is None or known[0] != entity.key or dict(known[1]) != dict(entity.caps):
            steps.append(mon(f"make {entity.name} known", "auth import", data=keyring(entity)))
    steps += [mon(f"forget {name}", "auth del", entity=name) for name in sorted(set(gone)) if name in present]
    return steps


_POOL = re.compile(r"\bpool=([^\s,]+)")


def reached(caps: Caps) -> set[str]:
    """Names of the pools that capabilities name."""
    return {name for text in caps.values() for name in _POOL.findall(text)}


def taken(entity: str, pools: Collection[str]) -> str:
    """Why a node's key is not made, in words: there is one of that name, which reaches pools of somebody else."""
    node = entity.removeprefix(NODE_CLIENT)
    return (
        f"the cluster has a key {entity} already, which reaches pools that are not this cloud's "
        f"({', '.join(sorted(pools))}): another cloud has a node of that name, and its key is left as it is; have "
        f"other nodes than {node} use this cluster, or, if that cloud is gone, `ceph auth del {entity}`"
    )


NODE_CLIENT = "client.scloud-"
_CEPHS_OWN = ("client.admin", "client.bootstrap-")


def is_ours(name: str) -> bool:
    """Whether an entity is one that this cloud gives keys to, by its name: a node, or a daemon."""
    return name.startswith(NODE_CLIENT) or not name.startswith("client.")


def strangers(known: Iterable[str], present: Iterable[str], osds: Collection[int], deployed: bool) -> dict[str, str]:
    """Entities that belong to nobody, each with what it means and what to do.

    `known` are those that are wanted or on their way out; `osds` the numbers in the cluster's map. Of an adopted
    cluster only nodes' clients are judged: the rest is its own business.
    """
    mine, found = set(known), {}
    for name in sorted(set(present) - mine):
        kind, _, id = name.partition(".")
        if name.startswith(NODE_CLIENT):
            found[name] = (
                "no node of this storage cluster has this key, and whoever has it reaches disks; unless it is another "
                f"cloud's, take it away: `ceph auth del {name}`"
            )
        elif deployed and kind == "osd" and id.isdigit() and int(id) not in osds:
            found[name] = f"the key of an OSD that the cluster does not have: `ceph auth del {name}`"
        elif deployed and kind == "client" and not name.startswith(_CEPHS_OWN):
            found[name] = f"a key that this cloud did not give; if nobody needs it: `ceph auth del {name}`"
    return found
