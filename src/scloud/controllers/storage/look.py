"""Looking at a cluster: all questions of one round, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scloud.controllers.storage.line import COMMAND_S, Line
from scloud.controllers.storage.load import Load
from scloud.model.errors import CloudError, ErrorKind
from scloud.reconcile.ceph import devices
from scloud.reconcile.ceph.commands import Command
from scloud.reconcile.ceph.view import (
    MGR_QUESTIONS,
    MON_QUESTIONS,
    SLOW_QUESTIONS,
    Slow,
    View,
    damaged_objects,
    inconsistent,
    laggy,
    read,
    read_slow,
    safe,
)

FIRST_S = 12.0
"""For the question that shows whether the cluster answers at all; a new connection is part of it."""

MGR_S = 6.0
"""A manager answers at once or is not reached; what can be done without it is not to wait for it."""


@dataclass(frozen=True)
class Look:
    view: View
    slow: Slow
    safe: frozenset[int] = frozenset()
    inconsistent: tuple[str, ...] | None = ()
    """None: not known, as nobody said which."""
    objects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    owners: Mapping[str, tuple[str, int] | None] = field(default_factory=dict)
    """Whose bytes the damaged objects hold: (`disk/ID` or `image/ID`, from which MiB on); None if nobody said."""
    laggy: Mapping[str, int] | None = field(default_factory=dict)
    """Placement groups that wait for a lease, and the OSDs that lead them; None: not known."""


async def _ask(line: Line, load: Load, target: str, questions: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The answers there are; the manager may be busy starting, and its answers can be missed for a while."""

    async def one(name: str, args: dict[str, Any]) -> tuple[str, Any]:
        try:
            return name, await line.send(load, Command(args, "", target), MGR_S if target == "mgr" else COMMAND_S)
        except CloudError:
            if target == "mgr":
                return name, None
            raise

    return dict(await asyncio.gather(*(one(name, args) for name, args in questions.items())))


async def look(line: Line, load: Load, known: Slow | None) -> Look:
    """CloudError if the monitors do not answer. `known` is kept instead of asking the slow questions again."""
    first = await line.send(load, Command(MON_QUESTIONS["status"], ""), FIRST_S)
    rest = {name: args for name, args in MON_QUESTIONS.items() if name != "status"}
    if known is None:
        rest |= SLOW_QUESTIONS
    answers = {"status": first, **await _ask(line, load, "mon", rest)}
    if read({"status": first}).manager:
        answers |= await _ask(line, load, "mgr", MGR_QUESTIONS)
    view = read(answers)
    slow = read_slow(answers) if known is None else known
    unsafe = devices.draining(load.spec.devices, view)
    more = Look(view, slow)
    if unsafe and view.manager:
        args = {"prefix": "osd safe-to-destroy", "ids": [str(number) for number in unsafe]}
        more = Look(view, slow, safe=safe(await _said(line, load, "mgr", args)))
    states = {part for state in view.pg_states for part in state.split("+")}
    if not view.manager or "unknown" in states:
        # What the monitors have of placement groups is from before, or not yet all.
        more = replace(more, inconsistent=None)
    elif "inconsistent" in states:
        said = await _said(line, load, "mgr", {"prefix": "pg ls", "states": ["inconsistent"]})
        found = inconsistent(said) if said is not None else None
        # Which objects these are is in the log, whoever tells of the groups.
        groups = load.status.inconsistent if found is None else found
        log = await _said(line, load, "mon", {"prefix": "log last", "num": 500, "level": "error", "channel": "cluster"})
        damaged = damaged_objects(log, groups)
        owners = await _owners(line, load, view, damaged)
        more = replace(more, inconsistent=found, objects=damaged, owners=owners)
    if "laggy" in states:
        said = await _said(line, load, "mgr", {"prefix": "pg ls", "states": ["laggy"]}) if view.manager else None
        more = replace(more, laggy=laggy(said) if said is not None else None)
    return more


async def _owners(
    line: Line, load: Load, view: View, damaged: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, int] | None]:
    """Only pools of ours: what is in those of others is nobody's disk."""
    ours = {view.pools[name].id: pool.row.id for pool in load.pools for name in pool.names if name in view.pools}
    found: dict[str, tuple[str, int] | None] = {}
    for group, objects in damaged.items():
        pool = ours.get(int(group.partition(".")[0]))
        if pool is not None:
            try:
                found |= await line.owners(load, pool, objects)
            except CloudError:
                found |= dict.fromkeys(objects)
    return found


async def _said(line: Line, load: Load, target: str, args: dict[str, Any]) -> Any:
    """An answer that there may be none to: OSDs that are still needed make an error of it."""
    try:
        return await line.send(load, Command(args, "", target), MGR_S)
    except CloudError as error:
        if error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.TIMED_OUT, ErrorKind.IN_USE, ErrorKind.NOT_FOUND):
            return None
        raise
