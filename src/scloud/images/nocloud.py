"""The NoCloud disk: an ISO 9660 image with label `cidata`, from which cloud-init learns who it is.

Its format is cloud-init's: `meta-data`, `user-data` and `network-config` (version 2) in the root folder.
"""

from __future__ import annotations

import io
import json

import pycdlib

from scloud.model.base import Value


class Seed(Value):
    """What the guest is to know. `macs` are those of its nics: each asks DHCP for its address.

    `user_data` is given to the guest as it is; empty stands for none.
    """

    instance_id: str
    hostname: str
    keys: tuple[str, ...] = ()
    user_data: str = ""
    macs: tuple[str, ...] = ()


def meta_data(seed: Seed) -> str:
    """YAML; JSON strings are YAML strings."""
    lines = [f"instance-id: {json.dumps(seed.instance_id)}", f"local-hostname: {json.dumps(seed.hostname)}"]
    if seed.keys:
        lines.append("public-keys:")
        lines += [f"  - {json.dumps(key, ensure_ascii=False)}" for key in seed.keys]
    return "\n".join(lines) + "\n"


def network_config(seed: Seed) -> str:
    """DHCP on every nic, told apart by MAC; a nic that is not there does not hold up the boot."""
    ethernets = {
        f"nic{index}": {"match": {"macaddress": mac}, "dhcp4": True, "optional": index > 0}
        for index, mac in enumerate(seed.macs)
    }
    return json.dumps({"version": 2, "ethernets": ethernets}, indent=1) + "\n"


def seed_image(seed: Seed) -> bytes:
    """The whole disk, a few hundred KiB at most for the largest user data."""
    files = {
        "meta-data": meta_data(seed),
        # An empty file makes cloud-init warn; an empty cloud-config does not.
        "user-data": seed.user_data or "#cloud-config\n{}\n",
        "network-config": network_config(seed),
    }
    output = io.BytesIO()
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for index, (name, text) in enumerate(files.items()):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{index}.;1", rr_name=name, joliet_path=f"/{name}")
    iso.write_fp(output)
    iso.close()
    return output.getvalue()
