"""A command to a cluster, as a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """`why` is for the log. `about` is the pool it is for, whose failure is that pool's alone; else the cluster's.

    `beside`: commands in a row that have the same one do not need each other, and go at the same time. Monitors answer
    a change only when it is agreed on, and agree on all that has come in meanwhile at once. Empty: alone.

    What makes a command unnecessary is not an error: each is repeated until what it brings about has been seen.
    """

    args: Mapping[str, Any]
    why: str
    target: str = "mon"
    data: str = field(default="", repr=False)
    about: str = ""
    beside: str = ""


def mon(why: str, prefix: str, *, data: str = "", about: str = "", beside: str = "", **args: Any) -> Command:
    return Command({"prefix": prefix, **args}, why, "mon", data, about, beside)


def mgr(why: str, prefix: str, **args: Any) -> Command:
    return Command({"prefix": prefix, **args}, why, "mgr")


def waves(steps: Iterable[Command]) -> Iterator[list[Command]]:
    """What may go at the same time, one after another."""
    for _, together in groupby(enumerate(steps), key=lambda item: item[1].beside or item[0]):
        yield [step for _, step in together]
