"""librados handles as all of ours are: quiet, and quick to notice that an OSD is dead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rados

from scloud.drivers.ceph.conf import CLIENT_OPTIONS

_QUIET = {
    "log file": "",
    "log to stderr": "false",
    "err to stderr": "false",
    "admin socket": "",
}


def new_handle(entity: str, options: Mapping[str, str]) -> Any:
    """Not connected yet. `entity` as `client.admin`; what goes wrong is raised, and never printed."""
    merged = {**CLIENT_OPTIONS, **_QUIET, **options}
    handle = rados.Rados(name=entity, conf={key.replace(" ", "_"): value for key, value in merged.items()})
    # Options that are set are taken note of when the connection stands. What goes wrong before, such as a key that is
    # refused, would still be printed; after reading a file, even an empty one, all options hold.
    handle.conf_read_file("/dev/null")
    return handle
