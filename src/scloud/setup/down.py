"""`scloud down`: stop the cloud on this host, or remove it."""

from __future__ import annotations

import contextlib
import shutil

from rich.console import Console

from scloud.client.contexts import config_dir, read_contexts, remove_context
from scloud.node.keep import read_units
from scloud.node.keeping import keeper_pid, set_units, start_keeper, stop_keeper, write_units
from scloud.node.layout import Layout, Unit
from scloud.node.stopping import clear, shut_guests, stop_node
from scloud.setup.defaults import DEFAULT
from scloud.setup.steps import Steps
from scloud.setup.up import CONTEXT


def down(layout: Layout, *, purge: bool, console: Console | None = None) -> None:
    """Guests are shut down, then everything is stopped; the data stay, unless they are purged, too."""
    steps = Steps(console)
    if layout.units.is_dir():
        _stop(layout, steps)
    if not purge:
        steps.console.print(
            f"The cloud is stopped; its data are in {layout.root}. `./scloud up` starts it, VMs too."
            if layout.root.exists()
            else f"There is no cloud in {layout.root}.",
            soft_wrap=True,
        )
        return
    with steps.step("Removing everything") as step:
        killed = clear(layout, isolated=False, keep_cache=False)
        forget(CONTEXT)
        step.say(f"{killed} processes were left" if killed else str(layout.root))
    steps.console.print("Nothing of the cloud is left on this machine.")


def _stop(layout: Layout, steps: Steps) -> None:
    sandboxes = layout.sandboxes(isolated=False)
    with steps.step("Agent") as step:
        # The agents first: they would start again what is stopped behind their backs.
        units = [layout.agent_unit(sandbox).model_copy(update={"wanted": "stop"}) for sandbox in sandboxes]
        before = {unit.name: layout.pid_of(unit.name) for unit in units}
        if keeper_pid(layout) is None:
            # Or else it would begin by starting all that is now to be stopped.
            write_units(layout, *units, *_manager_to_stop(layout))
            start_keeper(layout)
        set_units(layout, *units)
        if not any(before.values()):
            step.already("did not run")
    with steps.step("Guests") as step:
        counts = [shut_guests(layout, sandbox) for sandbox in sandboxes]
        total, stubborn = sum(count for count, _ in counts), sum(left for _, left in counts)
        if not total:
            step.already("none ran")
        else:
            step.say(f"{total} shut down" + (f", {stubborn} of them switched off" if stubborn else ""))
    with steps.step("Engines and namespaces"):
        for sandbox in sandboxes:
            stop_node(layout, sandbox)
    with steps.step("Manager"):
        set_units(layout, *_manager_to_stop(layout))
        stop_keeper(layout)


def _manager_to_stop(layout: Layout) -> list[Unit]:
    """The manager's unit, to be stopped; none on a host that only joined."""
    known = read_units(layout).get("manager")
    return [known.model_copy(update={"wanted": "stop"})] if known is not None else []


def forget(context: str) -> None:
    """Remove the context; with the last one go the default key and what else the command line keeps."""
    remove_context(context)
    if read_contexts().contexts:
        return
    folder = config_dir()
    shutil.rmtree(folder / "known_hosts", ignore_errors=True)
    for path in (folder / "contexts.json", *(folder / "keys" / name for name in (DEFAULT, f"{DEFAULT}.pub"))):
        path.unlink(missing_ok=True)
    for path in (folder / "keys", folder):
        with contextlib.suppress(OSError):
            path.rmdir()
