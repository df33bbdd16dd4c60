"""A program for inside a node: says again and again who has the disks of a pool open, one line of JSON each time.

`at` is the machine's monotonic clock; `open` has for each disk the addresses of its watchers that are not on the OSDs'
blocklist. RBD watchers are there as long as somebody has the image open to write.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress

import rados
import rbd

from scloud.drivers.storage.rbd_names import parse_disk

EVERY_S = 0.25
OPTIONS = {"client_mount_timeout": "10", "rados_mon_op_timeout": "5", "rados_osd_op_timeout": "5"}


def look(handle: rados.Rados, io: rados.Ioctx) -> dict[str, list[str]]:
    found = {}
    for name in rbd.RBD().list(io):
        disk = parse_disk(name)
        with suppress(rbd.ImageNotFound):
            if disk is not None:
                with rbd.Image(io, name, read_only=True) as image:
                    found[disk[0]] = [str(one["addr"]).removeprefix("v2:") for one in image.watchers_list()]
    code, text, words = handle.mon_command(json.dumps({"prefix": "osd blocklist ls", "format": "json"}), b"")
    if code != 0:
        raise rados.OSError(words, code)
    # Pacific's monitors answer with a second, empty list behind the first.
    cut = {entry["addr"] for entry in json.JSONDecoder().raw_decode(text.decode().strip())[0]}
    return {disk: [address for address in addresses if address not in cut] for disk, addresses in found.items()}


def main(conf: str, name: str, pool: str) -> None:
    with rados.Rados(name=name, conffile=conf, conf=OPTIONS) as handle, handle.open_ioctx(pool) as io:
        while True:
            at = time.monotonic()
            try:
                print(json.dumps({"at": at, "open": look(handle, io)}), flush=True)
            except (rados.Error, rbd.Error) as error:
                print(json.dumps({"at": at, "failed": str(error)}), flush=True)
            time.sleep(EVERY_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
