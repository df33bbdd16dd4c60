"""Whom a command is for."""

from __future__ import annotations

from scloud.model.errors import invalid


def check_target(target: str) -> None:
    """`CloudError(INVALID)` for what is none."""
    kind, _, name = target.partition(".")
    good = {"mon": True, "mgr": not name, "osd": name.isdigit(), "pg": bool(name)}
    if not good.get(kind, False):
        raise invalid("target", f"'{target}' is none of mon, mgr, osd.NUMBER, pg.ID")
