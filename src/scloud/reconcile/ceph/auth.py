"""Who may do what in a cluster: managers, the making of OSDs, and each node's client for its own pools. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
