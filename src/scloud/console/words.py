"""Sizes, times, rules and logs in the words of a page. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNITS = ("MiB", "GiB", "TiB", "PiB")
_NOUNS = {"vm": "VM", "vpc": "VPC", "nic": "NIC"}
_VERBS = {
    "vm.create": "Create",
    "vm.rebuild": "Rebuild",
    "security-group.rule.add": "Add a rule to",
    "security-group.rule.remove": "Remove a rule from",
    "node.create": "Wait for",
    "node.join-token": "New join token for",
}


def size(mib: float | None) -> str:
    """A size in MiB for people: 512 MiB, 1.5 GiB."""
    if mib is None:
        return "–"
    value = float(mib)
    for unit in _UNITS[:-1]:
        if value < 1023.95:  # above, it would be printed as 1024
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + f" {_UNITS[-1]}"


def ago(seconds: float) -> str:
    """`3 min ago`; seconds may be a little below 0 when clocks differ."""
    rest = max(0, int(seconds))
    if rest < 5:
        return "just now"
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if rest < limit:
            return f"{rest // divisor} {unit} ago"
    return f"{rest // 86400} d ago"


def moment(at: float) -> str:
    """Seconds since 1970 as UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plain(text: str) -> str:
    """What a terminal would leave to read: without escape sequences and control characters."""
    return _CONTROL.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def noun(kind: str) -> str:
    """`security group`, `VM`."""
    return _NOUNS.get(kind, kind.replace("-", " "))


def counted(number: int, kind: str) -> str:
    """`1 VM`, `3 subnets`."""
    return f"{number} {noun(kind)}" + ("" if number == 1 else "s")


def action(operation: Mapping[str, Any]) -> str:
    """What an operation does, without the resource's name: `Create VM`."""
    name = str(operation["action"])
    verb = _VERBS.get(name) or name.rpartition(".")[2].replace("-", " ").capitalize()
    return f"{verb} {noun(operation['resource']['kind'])}"


def ports(rule: Mapping[str, Any]) -> str:
    """`22`, `8000–8100`, `any`."""
    low, high = rule.get("port_min"), rule.get("port_max")
    if low is None:
        return "any"
    return str(low) if low == high else f"{low}–{high}"


def percent(value: float, total: float) -> float:
    """0..100, for the length of a bar."""
    return round(max(0.0, min(100.0, 100.0 * value / total)), 1) if total else 0.0


def mood(state: str) -> str:
    """The look of a state: good, idle, busy, bad, or unsure. The word is always shown beside it."""
    if state in ("running", "ready", "done", "ok", "up", "recovered"):
        return "good"
    if state in ("stopped", "cancelled", "trashed", "closed", "left", "gone"):
        return "idle"
    if state in ("error", "down", "failed"):
        return "bad"
    return "unsure" if state in ("unknown", "warning", "up, out", "waiting") else "busy"


def progress(state: str) -> str:
    """The look of an operation's state: one that is running has not ended well yet."""
    return "busy" if state == "running" else mood(state)


def zipped(names: Iterable[str]) -> list[tuple[str, str]]:
    """Choices whose value is their text."""
    return [(name, name) for name in names]
