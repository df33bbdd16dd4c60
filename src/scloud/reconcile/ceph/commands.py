"""A command to a cluster, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """`why` is for the log. `about` is the pool it is for, whose failure is that pool's alone; else the cluster's.

    What makes a command unnecessary is not an error: each is repeated until what it brings about has been seen.
    """

    args: Mapping[str, Any]
    why: str
    target: str = "mon"
    data: str = field(default="", repr=False)
    about: str = ""


def mon(why: str, prefix: str, *, data: str = "", about: str = "", **args: Any) -> Command:
    return Command({"prefix": prefix, **args}, why, "mon", data, about)


def mgr(why: str, prefix: str, **args: Any) -> Command:
    return Command({"prefix": prefix, **args}, why, "mgr")
