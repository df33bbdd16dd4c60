"""A storage cluster for controllers' tests: answers `ceph_command` as Ceph 16 does, from what its nodes were told.

Every scripted node that is part of a cluster answers for it. Monitors are up as soon as their node has been told of
them; managers and OSDs once the cluster has their key, as with the real ones. `moving` is the number of objects still
to be moved; `full` is how full devices are, 0..1; `silent` makes all monitors unreachable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scloud.model.desired import DesiredStore, MgrDaemon, MonDaemon, OsdDaemon
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import Observed
from support.node import ScriptedNode

MIB = 1 << 20


def unavailable() -> CloudError:
    return CloudError(ErrorKind.UNAVAILABLE, "no quorum of the monitors answers")


class FakeCeph:
    """One cluster. `commands` are all that changed something, as `prefix key=value ...`."""

    def __init__(self, admin_key: str | None = None) -> None:
        self.nodes: list[ScriptedNode] = []
        self.cluster = ""
        self.admin_key = admin_key
        """Of one that somebody else made; else the first node's told one is taken."""
        self.commands: list[str] = []
        self.looks = 0
        """How often its status was asked for."""
        self.auth: dict[str, dict[str, Any]] = {}
        self.config: dict[tuple[str, str], str] = {}
        self.rules = {"replicated_rule": 0}
        self.profiles: set[str] = {"default"}
        self.pools: dict[str, dict[str, Any]] = {}
        self.osds: dict[str, dict[str, Any]] = {}
        self.noout: set[str] = set()
        self.monitors: set[str] = set()
        """The monitors' map; those that run are the quorum, if they are more than half of it."""
        self.quorum: set[str] = set()
        self.removed: set[str] = set()
        self.places: dict[str, dict[str, str]] = {}
        self.moving = 0
        self.toofull = False
        """What moves finds no room."""
        self.full = 0.1
        self.silent = False
        self.broken: set[str] = set()
        """Paths of devices on which no OSD can be made."""
        self.dead: set[str] = set()
        """Uuids of OSDs that do not run."""
        self.checks: dict[str, Any] = {}
        self.blocklist: dict[str, str] = {}
        """Addresses, and until when."""
        self.inconsistent: list[str] = []
        self.laggy: dict[str, int] = {}
        """Placement groups that wait for a lease, and their primaries' numbers."""
        self.unknown = 0
        """Placement groups that a manager which has just begun knows nothing of yet."""
        self.log: list[str] = []
        self.refuse: dict[str, CloudError] = {}
        """Prefix to the error it is answered with."""

    def join(self, *nodes: ScriptedNode) -> None:
        for node in nodes:
            self.nodes.append(node)
            node.answers["ceph_command"] = lambda params: self.answer(params)
            node.stores = lambda item, node=node: self.report(item, node)  # type: ignore[misc]

    # --- what agents do

    def told(self) -> dict[str, DesiredStore]:
        found = {}
        for node in self.nodes:
            for item in node.objects.values():
                if isinstance(item, DesiredStore) and not item.absent and item.cluster == self.cluster:
                    found[node.name] = item
        return found

    def report(self, item: DesiredStore, node: ScriptedNode) -> Observed:
        self.cluster = self.cluster or item.cluster
        key = f"store/{item.id}"
        if item.absent:
            return Observed(key=key, generation=item.generation, state="absent", settled=True)
        osds = {daemon.uuid: 0 for daemon in item.daemons if isinstance(daemon, OsdDaemon) and not daemon.absent}
        return Observed(key=key, generation=item.generation, state="ready", settled=True, osds=osds)

    def _live(self) -> None:
        """Let daemons come up and go as the nodes have been told."""
        wanted: dict[str, OsdDaemon] = {}
        running: set[str] = set()
        for store in self.told().values():
            for daemon in store.daemons:
                if isinstance(daemon, MonDaemon):
                    running.add(daemon.name)
                    self.auth.setdefault("client.admin", {"key": store.admin_key, "caps": {"mon": "allow *"}})
                known = self.auth.get("client.bootstrap-osd", {}).get("key")
                fit = isinstance(daemon, OsdDaemon) and not daemon.absent and daemon.path not in self.broken
                if isinstance(daemon, OsdDaemon) and fit and known == store.bootstrap_key:
                    wanted[daemon.uuid] = daemon
        self.removed &= running
        if not self.monitors or len(self.monitors & running) > len(self.monitors) // 2:
            self.monitors |= running - self.removed
        self.quorum = self.monitors & running
        for uuid, daemon in wanted.items():
            if uuid not in self.osds:
                numbers = {osd["osd"] for osd in self.osds.values()}
                number = min(set(range(len(numbers) + 1)) - numbers)
                self.osds[uuid] = {"osd": number, "uuid": uuid, "in": 1, "class": daemon.media}
                place = {level: name for level, name in daemon.crush.items() if level != "root"}
                self.places.setdefault(daemon.crush["host"], place)
                self.osds[uuid]["host"] = daemon.crush["host"]
        for uuid, osd in self.osds.items():
            if "fixed" not in osd:
                osd["up"] = int(uuid in wanted and uuid not in self.dead)

    def _manager(self) -> bool:
        known = {name: entry["key"] for name, entry in self.auth.items()}
        return self.admin_key is not None or any(
            known.get(f"mgr.{daemon.name}") == daemon.key
            for store in self.told().values()
            for daemon in store.daemons
            if isinstance(daemon, MgrDaemon)
        )

    # --- commands

    def answer(self, params: dict[str, Any]) -> Any:
        self._live()
        if self.silent or not (self.admin_key or len(self.quorum) > len(self.monitors) // 2):
            raise unavailable()
        expected = self.admin_key or self.auth["client.admin"]["key"]
        if params["key"] != expected:
            raise CloudError(ErrorKind.FORBIDDEN, f"the cluster does not take the key of client.{params['user']}")
        command = dict(params["command"])
        prefix = command.pop("prefix")
        if prefix in self.refuse:
            raise self.refuse[prefix]
        ask: Callable[[], Any] | None = {
            "status": self._status,
            "health": lambda: {"status": "HEALTH_OK", "checks": self.checks},
            "quorum_status": self._quorum,
            "osd dump": self._dump,
            "osd tree": self._tree,
            "df": self._df,
            "auth ls": lambda: {"auth_dump": [{"entity": name, **entry} for name, entry in self.auth.items()]},
            "auth get-key": lambda: self._key(command["entity"]),
            "config dump": lambda: [
                {"section": section, "name": name, "value": value} for (section, name), value in self.config.items()
            ],
            "osd crush rule dump": lambda: [{"rule_name": name, "rule_id": id} for name, id in self.rules.items()],
            "versions": lambda: {"overall": {"ceph version 16.2.15 (x) pacific (stable)": 3}},
            "osd df": self._fill,
            "osd perf": lambda: {"osdstats": {"osd_perf_infos": []}},
            "osd pool stats": lambda: [{"pool_name": name, "client_io_rate": {}} for name in self.pools],
            "osd safe-to-destroy": lambda: self._safe(command["ids"]),
            "pg ls": lambda: {"pg_stats": self._groups(command["states"])},
            "log last": lambda: [{"message": text} for text in self.log],
        }.get(prefix)
        if ask is not None:
            return ask()
        said = " ".join([prefix, *(f"{name}={value}" for name, value in command.items())])
        self.commands.append(said)
        getattr(self, "_do_" + prefix.replace(" ", "_").replace("-", "_"))(command, params.get("data", ""))
        return ""

    def _key(self, entity: str) -> dict[str, str]:
        if entity not in self.auth:
            raise CloudError(ErrorKind.NOT_FOUND, f"auth get-key: don't have {entity}")
        return {"key": self.auth[entity]["key"]}

    def _groups(self, states: list[str]) -> list[dict[str, Any]]:
        (state,) = states
        if state == "laggy":
            return [{"pgid": group, "acting_primary": osd} for group, osd in self.laggy.items()]
        assert state == "inconsistent"
        return [{"pgid": group} for group in self.inconsistent]

    def _status(self) -> Any:
        self.looks += 1
        groups = sum(pool["pg_num"] for pool in self.pools.values())
        bad = len(self.inconsistent)
        hurt = min(1, self.moving, groups - bad)
        states = [{"state_name": "active+clean", "count": groups - bad - hurt}] if groups - bad - hurt else []
        if hurt:
            waits = "+backfill_toofull" if self.toofull else ""
            states.append({"state_name": f"active+undersized+degraded{waits}", "count": hurt})
        if bad:
            states.append({"state_name": "active+clean+inconsistent", "count": bad})
        if self.unknown:
            states.append({"state_name": "unknown", "count": self.unknown})
        if self.laggy:
            states.append({"state_name": "active+clean+laggy", "count": len(self.laggy)})
        return {
            "mgrmap": {"available": self._manager()},
            "pgmap": {"pgs_by_state": states, "num_pgs": groups, "misplaced_objects": self.moving},
        }

    def _quorum(self) -> Any:
        names = sorted(self.quorum) or ["a"]
        return {
            "quorum_names": names,
            "quorum_leader_name": names[0],
            "monmap": {"mons": [{"name": name} for name in sorted(self.monitors) or names]},
        }

    def _dump(self) -> Any:
        return {
            "osds": [{"osd": o["osd"], "uuid": o["uuid"], "up": o["up"], "in": o["in"]} for o in self.osds.values()],
            "pools": list(self.pools.values()),
            "crush_node_flags": {name: ["noout"] for name in self.noout},
            "blocklist": dict(self.blocklist),
            "nearfull_ratio": 0.85,
            "erasure_code_profiles": {name: {} for name in self.profiles},
        }

    def _tree(self) -> Any:
        nodes: dict[str, dict[str, Any]] = {"default": {"id": -1, "name": "default", "type": "root", "children": []}}

        def bucket(level: str, name: str, parent: str) -> None:
            if name not in nodes:
                nodes[name] = {"id": -1 - len(nodes), "name": name, "type": level, "children": []}
                nodes[parent]["children"].append(nodes[name]["id"])

        for host, place in self.places.items():
            parent = "default"
            for level in ("datacenter", "rack"):
                if level in place:
                    bucket(level, place[level], parent)
                    parent = place[level]
            bucket("host", host, parent)
        for osd in self.osds.values():
            nodes[f"osd.{osd['osd']}"] = {"id": osd["osd"], "type": "osd", "device_class": osd["class"], "name": ""}
            if osd["host"] in nodes:
                nodes[osd["host"]]["children"].append(osd["osd"])
        return {"nodes": list(nodes.values())}

    def _df(self) -> Any:
        size = 10240 * MIB
        total = size * len(self.osds)
        stats = {"stored": 100 * MIB, "max_avail": int(total * (1 - self.full) / 3), "percent_used": self.full}
        return {
            "stats": {
                "total_bytes": total,
                "total_used_raw_bytes": int(total * self.full),
                "total_avail_bytes": int(total * (1 - self.full)),
            },
            "pools": [{"name": name, "stats": stats} for name in self.pools],
        }

    def _fill(self) -> Any:
        kb = 10240 * 1024
        return {
            "nodes": [{"id": o["osd"], "kb": kb, "kb_used": int(kb * self.full), "pgs": 8} for o in self.osds.values()]
        }

    def _safe(self, ids: list[str]) -> Any:
        return {"safe_to_destroy": [] if self.moving else [int(id) for id in ids]}

    def _osd(self, number: Any) -> dict[str, Any]:
        return next(osd for osd in self.osds.values() if osd["osd"] == int(number))

    def _do_auth_import(self, command: dict[str, Any], data: str) -> None:
        name = ""
        for line in data.splitlines():
            if line.startswith("["):
                name = line.strip("[]")
                self.auth[name] = {"key": "", "caps": {}}
            else:
                field, _, value = line.strip().partition(" = ")
                if field == "key":
                    self.auth[name]["key"] = value
                else:
                    self.auth[name]["caps"][field.removeprefix("caps ")] = value.strip('"')

    def _do_auth_del(self, command: dict[str, Any], data: str) -> None:
        self.auth.pop(command["entity"], None)

    def _do_config_set(self, command: dict[str, Any], data: str) -> None:
        self.config[command["who"], command["name"]] = command["value"]

    def _do_osd_set_group(self, command: dict[str, Any], data: str) -> None:
        self.noout |= set(command["who"])

    def _do_osd_unset_group(self, command: dict[str, Any], data: str) -> None:
        self.noout -= set(command["who"])

    def _do_osd_out(self, command: dict[str, Any], data: str) -> None:
        self._osd(command["ids"][0])["in"] = 0

    def _do_osd_in(self, command: dict[str, Any], data: str) -> None:
        self._osd(command["ids"][0])["in"] = 1

    def _do_osd_purge(self, command: dict[str, Any], data: str) -> None:
        osd = self._osd(command["id"])
        assert not osd["up"] and command["yes_i_really_mean_it"]
        del self.osds[osd["uuid"]]

    def _do_mon_remove(self, command: dict[str, Any], data: str) -> None:
        self.monitors.discard(command["name"])
        self.removed.add(command["name"])

    def _do_osd_crush_rm(self, command: dict[str, Any], data: str) -> None:
        self.places.pop(command["name"], None)

    def _do_osd_crush_add_bucket(self, command: dict[str, Any], data: str) -> None:
        """Shows once something is in it."""

    def _do_osd_crush_move(self, command: dict[str, Any], data: str) -> None:
        if command["name"] in self.places:
            place = dict(item.split("=") for item in command["args"])
            place.pop("root")
            self.places[command["name"]] = {**place, "host": command["name"]}

    def _do_osd_crush_rule_create_replicated(self, command: dict[str, Any], data: str) -> None:
        self.rules.setdefault(command["name"], len(self.rules))

    def _do_osd_crush_rule_rm(self, command: dict[str, Any], data: str) -> None:
        self.rules.pop(command["name"], None)

    def _do_osd_erasure_code_profile_set(self, command: dict[str, Any], data: str) -> None:
        self.profiles.add(command["name"])

    def _do_osd_erasure_code_profile_rm(self, command: dict[str, Any], data: str) -> None:
        self.profiles.discard(command["name"])

    def _do_osd_pool_create(self, command: dict[str, Any], data: str) -> None:
        erasure = command["pool_type"] == "erasure"
        if erasure:
            assert command["erasure_code_profile"] in self.profiles
            self.rules.setdefault(command["pool"], len(self.rules))
        self.pools[command["pool"]] = {
            "pool_name": command["pool"],
            "pool": len(self.pools) + 1,
            "type": 3 if erasure else 1,
            "size": command.get("size", 6),
            "min_size": 1,
            "pg_num": command["pg_num"],
            "crush_rule": self.rules[command["pool"] if erasure else command["rule"]],
            "flags_names": "",
            "pg_autoscale_mode": command["autoscale_mode"],
            "application_metadata": {},
        }

    def _do_osd_pool_application_enable(self, command: dict[str, Any], data: str) -> None:
        self.pools[command["pool"]]["application_metadata"].setdefault(command["app"], {})

    def _do_osd_pool_application_set(self, command: dict[str, Any], data: str) -> None:
        self.pools[command["pool"]]["application_metadata"][command["app"]][command["key"]] = command["value"]

    def _do_osd_pool_set(self, command: dict[str, Any], data: str) -> None:
        pool, var, val = self.pools[command["pool"]], command["var"], command["val"]
        if var == "allow_ec_overwrites":
            pool["flags_names"] += ",ec_overwrites"
        elif var == "crush_rule":
            pool["crush_rule"] = self.rules[val]
        else:
            pool[var] = int(val) if val.isdigit() else val

    def _do_osd_pool_delete(self, command: dict[str, Any], data: str) -> None:
        assert command["yes_i_really_really_mean_it"] and command["pool"] == command["pool2"]
        self.pools.pop(command["pool"], None)

    def _do_osd_down(self, command: dict[str, Any], data: str) -> None:
        """It comes back at once, with new leases."""
        self.laggy = {group: osd for group, osd in self.laggy.items() if str(osd) not in command["ids"]}

    def _do_osd_pool_deep_scrub(self, command: dict[str, Any], data: str) -> None:
        """Finds what `inconsistent` says."""

    def _do_pg_repair(self, command: dict[str, Any], data: str) -> None:
        self.inconsistent.remove(command["pgid"])
