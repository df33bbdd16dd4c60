"""From a pool as it is wanted to the commands that make it so. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from scloud.model.storage import PoolSpec, copies_of
from scloud.reconcile.ceph.commands import Command, mon
from scloud.reconcile.ceph.redundancy import metadata_copies, min_size, pg_num
from scloud.reconcile.ceph.view import PoolSeen, Slow, View

APPLICATION, STAMP = "rbd", "scloud"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pool of ours; `id` is its stamp."""

    id: str
    spec: PoolSpec
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """One pool inside the cluster. `size` is None for an erasure-coded one, whose profile says it."""

    name: str
    rule: str
    size: int | None
    min_size: int
    pgs: int
    profile: str | None = None


def rule_of(spec: PoolSpec) -> str:
    """Replicated pools of the same kind share a rule."""
    return f"scloud-{spec.fault_domain.value}-{spec.media.value if spec.media else 'any'}"


def parts(spec: PoolSpec, osds: int) -> list[_Part]:
    """What the pool consists of, with so many OSDs: itself, or metadata and data."""
    data, more = copies_of(spec.redundancy)
    rule = rule_of(spec)
    if data == 1:
        return [_Part(spec.rados_name, rule, 1 + more, min_size(spec.redundancy), pg_num(osds, spec.redundancy))]
    copies = metadata_copies(spec.redundancy)
    like = f"replica:{copies}"
    name = spec.data_name or f"{spec.rados_name}.data"
    return [
        _Part(spec.rados_name, rule, copies, min_size(like), pg_num(osds, like, small=True)),
        _Part(name, name, None, min_size(spec.redundancy), pg_num(osds, spec.redundancy), profile=name),
    ]


def foreign(wanted: Wanted, view: View) -> str:
    """A pool of that name that somebody else made, or nothing. One that has just been made has no stamp and no data."""
    for name in filter(None, (wanted.spec.rados_name, wanted.spec.data_name)):
        seen = view.pools.get(name)
        if seen is None or seen.owner == wanted.id:
            continue
        if seen.owner or seen.objects or set(seen.applications) - {APPLICATION}:
            return name
    return ""


def plan(wanted: Wanted, view: View, slow: Slow) -> list[Command]:
    """Nothing if the pool is as it should be, or if it is somebody else's."""
    if foreign(wanted, view):
        return []
    osds = sum(1 for osd in view.osds if wanted.spec.media is None or osd.media == wanted.spec.media.value)
    steps: list[Command] = []
    for part in parts(wanted.spec, osds):
        seen = view.pools.get(part.name)
        if wanted.leaving:
            steps += _unmake(wanted, part, seen, view, slow)
        elif seen is None:
            steps += _make(wanted, part, slow)
        else:
            steps += _correct(wanted, part, seen, slow)
    return _in_waves(wanted, steps)


def undeleted(failure: str, deployed: bool) -> str:
    """Why a pool that is to be deleted is still there, and what to do; `failure` is what the cluster answered."""
    if "mon_allow_pool_delete" not in failure:
        return f"{failure}; it is tried again until it is gone"
    remedy = (
        # They are started with it: somebody has told those that run otherwise.
        "`ceph tell mon.* config set mon_allow_pool_delete true`"
        if deployed
        else "`ceph config set mon mon_allow_pool_delete true`, and `false` again once it is gone"
    )
    return f"the cluster does not let pools be deleted ({failure}): {remedy}; it is tried again until it is gone"


_WAVES = {"osd crush rule create-replicated": 0, "osd erasure-code-profile set": 0, "osd pool application set": 2}
"""What has to be there before the rest, and what comes after it."""


def _in_waves(wanted: Wanted, steps: list[Command]) -> list[Command]:
    """The parts of a pool do not wait for each other, nor do its settings."""
    if wanted.leaving:
        return steps

    def wave(step: Command) -> int:
        return _WAVES.get(step.args["prefix"], 1)

    return [replace(step, beside=f"{wanted.id}.{wave(step)}") for step in sorted(steps, key=wave)]


def _make(wanted: Wanted, part: _Part, slow: Slow) -> list[Command]:
    """Its rule and the pool; the rest follows when it has been seen."""
    spec, id = wanted.spec, wanted.id
    steps = []
    if part.profile is None:
        if part.rule not in slow.rules:
            steps.append(_rule(wanted))
        more: dict[str, Any] = {"pool_type": "replicated", "rule": part.rule, "size": part.size}
    else:
        data, more_chunks = copies_of(spec.redundancy)
        profile = [
            f"k={data}",
            f"m={more_chunks}",
            "plugin=jerasure",
            "technique=reed_sol_van",
            f"crush-failure-domain={spec.fault_domain.value}",
            *([f"crush-device-class={spec.media.value}"] if spec.media else []),
        ]
        steps.append(
            mon("how chunks are made", "osd erasure-code-profile set", about=id, name=part.profile, profile=profile)
        )
        more = {"pool_type": "erasure", "erasure_code_profile": part.profile}
    if part.size == 1:
        more["yes_i_really_mean_it"] = True
    steps.append(
        mon(
            f"make pool {part.name}",
            "osd pool create",
            about=id,
            pool=part.name,
            pg_num=part.pgs,
            pgp_num=part.pgs,
            autoscale_mode="off",
            **more,
        )
    )
    return steps


def _rule(wanted: Wanted) -> Command:
    spec = wanted.spec
    media = {"class": spec.media.value} if spec.media else {}
    return mon(
        "where copies go",
        "osd crush rule create-replicated",
        about=wanted.id,
        name=rule_of(spec),
        root="default",
        type=spec.fault_domain.value,
        **media,
    )


def _correct(wanted: Wanted, part: _Part, seen: PoolSeen, slow: Slow) -> list[Command]:
    id = wanted.id

    def set_(var: str, val: str, **more: Any) -> Command:
        why = f"{part.name}: {var} {val}"
        return mon(why, "osd pool set", about=id, pool=part.name, var=var, val=val, **more)

    steps = []
    if APPLICATION not in seen.applications:
        steps.append(mon("it is for disks", "osd pool application enable", about=id, pool=part.name, app=APPLICATION))
    if seen.owner != id:
        steps.append(
            mon(
                "it is ours",
                "osd pool application set",
                about=id,
                pool=part.name,
                app=APPLICATION,
                key=STAMP,
                value=id,
            )
        )
    if part.size is not None and seen.size != part.size:
        really = {"yes_i_really_mean_it": True} if part.size == 1 else {}
        steps.append(set_("size", str(part.size), **really))
    if seen.min_size != part.min_size:
        steps.append(set_("min_size", str(part.min_size)))
    if part.profile is not None and not seen.overwrites:
        steps.append(set_("allow_ec_overwrites", "true"))
    if seen.autoscale != "off":
        steps.append(set_("pg_autoscale_mode", "off"))
    if part.pgs >= 2 * seen.pg_num:
        # Only ever more, and only with twice the OSDs: splitting moves data.
        steps.append(set_("pg_num", str(part.pgs)))
    if part.profile is None:
        number = slow.rules.get(part.rule)
        if number is None:
            steps.append(_rule(wanted))
        elif number != seen.rule:
            steps.append(set_("crush_rule", part.rule))
    return steps


def _unmake(wanted: Wanted, part: _Part, seen: PoolSeen | None, view: View, slow: Slow) -> list[Command]:
    """The pool, and then what only it used."""
    id = wanted.id
    if seen is not None:
        return [
            mon(
                f"delete pool {part.name}",
                "osd pool delete",
                about=id,
                pool=part.name,
                pool2=part.name,
                yes_i_really_really_mean_it=True,
            )
        ]
    steps = []
    if part.profile is not None and part.rule in slow.rules:
        steps.append(mon("its rule goes with it", "osd crush rule rm", about=id, name=part.rule))
    if part.profile is not None and part.profile in view.profiles:
        steps.append(mon("its profile goes with it", "osd erasure-code-profile rm", about=id, name=part.profile))
    return steps
