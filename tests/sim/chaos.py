"""What goes wrong: processes die at some await, hosts lose power, wires break, engines hang, disks fill."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from scloud.model.errors import CloudError, ErrorKind

from .processes import AgentProcess
from .world import World


class Chaos:
    """Faults at random moments until cancelled; `heal` undoes all of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (8, self._manager_dies),
            (3, self._manager_hangs),
            (9, self._agent_dies),
            (3, self._agent_hangs),
            (3, self._power_failure),
            (4, self._partition),
            (5, self._cut_off),
            (3, self._without_storage),
            (4, self._apart),
            (4, self._dead_for_a_while),
            (3, self._wire_breaks),
            (2, self._lossy_wire),
            (3, self._libvirtd),
            (3, self._vswitchd),
            (2, self._dnsmasq),
            (4, self._guest_dies),
            (2, self._guest_stops),
            (2, self._deaf_guest),
            (4, self._engine_errors),
            (2, self._troubled_node),
            (2, self._disk_full),
        ]
        picked = [fault for fault in self._faults if self._rng.random() < 0.7]
        self._active = picked or self._faults

    async def run(self) -> None:
        """Each seed has its own choice of faults, and its own frequency of them."""
        mean = self._rng.choice([1.0, 2.5, 6.0])
        names = [fault for _, fault in self._active]
        weights = [weight for weight, _ in self._active]
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / mean))
            fault = self._rng.choices(names, weights)[0]
            self._world.count(fault.__name__.strip("_"))
            task = asyncio.get_running_loop().create_task(_as_task(fault()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def heal(self) -> None:
        """Everything works from now on."""
        world = self._world
        for task in list(self._tasks):
            task.cancel()
        world.calm = True
        manager = world.manager
        if manager.life is not None:
            manager.life.kill_at = None
            if manager.life.paused:
                manager.life.resume()
        for node in world.nodes:
            node.break_rate = node.trouble_rate = 0.0
            node.hardware.repair()
            for domain in node.hardware.host.domains.values():
                domain.deaf = False
            node.off = False
            node.mend()
            if node.life is not None:
                node.life.kill_at = None
                if node.life.paused:
                    node.life.resume()
        world.note("faults end; everything is healed")

    def raise_the_dead(self) -> None:
        """Start what does not live, as supervisors do."""
        if self._world.manager.life is None:
            self._world.manager.start()
        for node in self._world.nodes:
            if node.life is None and not node.off:
                node.start()

    def _node(self) -> AgentProcess:
        return self._rng.choice(self._world.nodes)

    def _pause(self) -> float:
        return self._rng.choice([0.05, 0.5, 3.0, 9.0, 20.0]) * (0.5 + self._rng.random())

    # --- processes

    async def _manager_dies(self) -> None:
        life = self._world.manager.life
        if life is None:
            return
        life.kill_soon(self._rng.choice([0, 5, 50, 400]) + self._rng.randrange(50))
        await asyncio.sleep(2.0)
        life.kill()
        await asyncio.sleep(self._pause())
        if self._world.manager.life is None:
            self._world.manager.start()

    async def _manager_hangs(self) -> None:
        life = self._world.manager.life
        if life is None or life.paused:
            return
        self._world.note("the manager hangs")
        life.pause()
        await asyncio.sleep(self._pause())
        self._world.note("the manager goes on")
        life.resume()

    async def _agent_dies(self) -> None:
        node = self._node()
        life = node.life
        if life is None:
            return
        life.kill_soon(self._rng.choice([0, 3, 20, 150]) + self._rng.randrange(20))
        await asyncio.sleep(2.0)
        life.kill()
        await asyncio.sleep(self._rng.choice([0.05, 0.5, 6.0]))
        if node.life is None and not node.off:
            node.start()

    async def _agent_hangs(self) -> None:
        life = self._node().life
        if life is None or life.paused:
            return
        self._world.note(f"{life.name} hangs")
        life.pause()
        await asyncio.sleep(self._pause())
        self._world.note(f"{life.name} goes on")
        life.resume()

    async def _power_failure(self) -> None:
        node = self._node()
        node.reboot()
        await asyncio.sleep(self._pause())
        if node.life is None and not node.off:
            node.start()

    async def _dead_for_a_while(self) -> None:
        """Long enough to be taken for dead."""
        node = self._node()
        if node.off:
            return
        node.reboot()
        node.off = True
        await asyncio.sleep(self._rng.choice([9.0, 20.0, 40.0]))
        node.off = False
        self._world.note(f"{node.name} has power again")
        if node.life is None:
            node.start()

    # --- wires

    async def _partition(self) -> None:
        node = self._node()
        if node.wire.dropping:
            return
        self._world.note(f"{node.name} is cut off")
        node.wire.part()
        await asyncio.sleep(self._pause())
        self._world.note(f"{node.name} can be reached again")
        node.wire.heal()

    async def _cut_off(self) -> None:
        """From the manager, the other nodes and the storage, all the while it runs."""
        node = self._node()
        if node.wire.dropping:
            return
        self._world.note(f"{node.name} is cut off from everything")
        node.cut_off()
        await asyncio.sleep(self._rng.choice([3.0, 9.0, 20.0, 40.0]))
        self._world.note(f"{node.name} is back on the wire")
        node.mend()

    async def _without_storage(self) -> None:
        """Its guests wait for their disks; the manager and the other nodes hear it."""
        node = self._node()
        self._world.note(f"{node.name} is cut off from the storage")
        self._world.wires.without_storage.add(node.id)
        await asyncio.sleep(self._pause())
        self._world.note(f"{node.name} reaches the storage again")
        self._world.wires.without_storage.discard(node.id)

    async def _apart(self) -> None:
        """Two nodes do not reach each other: probes are not answered, and nothing moves between them."""
        if len(self._world.nodes) < 2:
            return
        one, other = self._rng.sample(self._world.nodes, 2)
        pair = frozenset((one.id, other.id))
        self._world.note(f"{one.name} and {other.name} do not reach each other")
        self._world.wires.broken.add(pair)
        await asyncio.sleep(self._pause())
        self._world.note(f"{one.name} and {other.name} reach each other again")
        self._world.wires.broken.discard(pair)

    async def _wire_breaks(self) -> None:
        node = self._node()
        self._world.note(f"connections of {node.name} break")
        node.wire.cut()

    async def _lossy_wire(self) -> None:
        node = self._node()
        self._world.note(f"connections of {node.name} break now and then")
        node.break_rate = 0.05
        await asyncio.sleep(self._pause())
        node.break_rate = 0.0

    # --- engines and guests

    async def _libvirtd(self) -> None:
        node = self._node()
        host = node.hardware.host
        hangs = self._rng.random() < 0.4
        self._world.note(f"libvirtd of {node.name} {'hangs' if hangs else 'dies'}")
        if hangs:
            host.hung = True
        else:
            host.engine_dies()
        await asyncio.sleep(self._pause())
        self._world.note(f"libvirtd of {node.name} is back")
        host.engine_returns()

    async def _vswitchd(self) -> None:
        node = self._node()
        self._world.note(f"ovs-vswitchd of {node.name} dies")
        node.hardware.switch.stop()
        await asyncio.sleep(self._rng.choice([0.0, 0.0, 2.0, 10.0]))
        node.hardware.switch.restart()
        self._world.note(f"ovs-vswitchd of {node.name} is back")
        if node.daemon is not None and self._rng.random() < 0.5:
            assert node.life is not None
            told = node.daemon.reconciler.engine_started
            self._world.loop.call_soon(told, "ovs-vswitchd", context=node.life.context)

    async def _dnsmasq(self) -> None:
        kernel = self._node().hardware.kernel
        kernel.broken |= set(kernel.specs)

    def _guest(self) -> tuple[AgentProcess, str] | None:
        running = [
            (node, vm)
            for node in self._world.nodes
            for vm, domain in sorted(node.hardware.host.domains.items())
            if domain.running
        ]
        return self._rng.choice(running) if running else None

    async def _guest_dies(self) -> None:
        found = self._guest()
        if found is not None:
            self._world.note(f"QEMU of {found[1]} on {found[0].name} dies")
            found[0].hardware.host.crash(found[1])

    async def _guest_stops(self) -> None:
        found = self._guest()
        if found is not None:
            self._world.note(f"{found[1]} on {found[0].name} powers itself off")
            found[0].hardware.host.guest_poweroff(found[1])

    async def _deaf_guest(self) -> None:
        found = self._guest()
        if found is not None:
            found[0].hardware.host.domains[found[1]].deaf = True

    async def _engine_errors(self) -> None:
        node = self._node()
        error = CloudError(ErrorKind.ENGINE, "the engine failed, as the simulation has it")
        machine = node.hardware
        for failures in (machine.host.failures, machine.disk.failures, machine.kernel.failures):
            failures.extend([error] * self._rng.choice([0, 0, 1, 4]))

    async def _troubled_node(self) -> None:
        node = self._node()
        self._world.note(f"engines of {node.name} fail now and then")
        node.trouble_rate = self._rng.choice([0.02, 0.2, 0.6])
        await asyncio.sleep(self._pause())
        node.trouble_rate = 0.0

    async def _disk_full(self) -> None:
        node = self._node()
        self._world.note(f"the disk of {node.name} is full")
        node.hardware.disk.filled_mib = node.hardware.disk.capacity_mib
        await asyncio.sleep(self._pause())
        node.hardware.disk.filled_mib = 0


async def _as_task(work: Awaitable[None]) -> None:
    await work
