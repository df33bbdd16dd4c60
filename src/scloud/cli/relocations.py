"""A drain or a rebalance, VM by VM."""

from __future__ import annotations

import time

from scloud.cli.human import age
from scloud.cli.output import Column, Resource, say, show, table

_WORDS = {"moving": "under way", "blocked": "what is left cannot leave now", "done": "done", "ended": "ended"}


def print_relocation(item: Resource) -> None:
    """One line that says how far it is, then each VM; reasons are below, whole."""
    counts = ", ".join(f"{number} {state}" for state, number in item["counts"].items() if number) or "no VMs"
    since = age(time.time() - item["began_at"])
    say(f"{item['subject_name']}: {_WORDS[item['state']]}, asked for by {item['by']} {since} ago; {counts}")
    if item["moves"]:
        show(table(_DRAIN if item["kind"] == "drain" else _REBALANCE, item["moves"]))
    for move in item["moves"]:
        if move["reason"] and move["state"] != "moved":
            say(f"{move['name']}: {move['reason']}")


def took(move: Resource) -> str:
    """From the beginning of its move to the end, or until now."""
    if move["began_at"] is None or move["state"] not in ("moving", "moved"):
        return "-"
    return f"{(move['ended_at'] or time.time()) - move['began_at']:.1f} s"


_VM = Column("VM", lambda move: str(move["name"]))
_TO = Column("TO", lambda move: move["target"] or "-")
_STATE = Column("STATE", lambda move: str(move["state"]), state=True)
_TOOK = Column("TOOK", took, right=True)
_DRAIN = (_VM, _STATE, _TO, _TOOK, Column("FAILED", lambda move: str(move["tries"] or "-"), right=True))
_REBALANCE = (
    _VM,
    _STATE,
    Column("FROM", lambda move: str(move["node"])),
    _TO,
    Column("GAIN", lambda move: f"{move['gain']:.2f}", right=True),
    _TOOK,
)
