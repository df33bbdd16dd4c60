"""Defects put in on purpose: a simulation that does not find them finds nothing."""

from __future__ import annotations

from collections.abc import Callable

from scloud.agent.journal import MemoryJournal
from scloud.controllers import finishing
from scloud.store.database import Tx
from scloud.store.resources import Resource, save

from .hardware import JournalFile
from .processes import Journal
from .world import World


def _forgets_usage() -> None:
    """The manager does not take back what a deleted VM was promised."""

    def release_vm(tx: Tx, vm: Resource) -> Resource:
        return vm if vm.node is None else save(tx, vm, node=None)

    finishing.release_vm = release_vm


def _forgets_journal() -> None:
    """An agent that starts knows nothing of what it was told."""

    def make_journal(world: World, file: JournalFile) -> Journal:
        file.content = MemoryJournal()
        return Journal(file, world.rng, world.short)

    World.make_journal = make_journal  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "forgets-usage": _forgets_usage,
    "forgets-journal": _forgets_journal,
}


def apply(name: str) -> None:
    """Put the named defect into this process; nothing for ''."""
    if name:
        MUTATIONS[name]()
