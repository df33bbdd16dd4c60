"""What every new cloud has, made through the REST API as anyone would: image, network, group, key and first VM."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scloud.client.http import Client
from scloud.client.keys import ensure_key
from scloud.images import micro
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.command import run

DEFAULT = "default"
HELLO = "hello"
MICRO = "micro"
SUBNET_CIDR = "10.10.0.0/24"
HELLO_CPUS = 1
HELLO_MEMORY_MIB = 256
IMPORT_TIMEOUT_S = 300.0
VM_TIMEOUT_S = 300.0


def micro_image(cache: Path) -> tuple[Path, bool]:
    """The micro image's file, built unless one from the same inputs is there; whether it was built."""
    path = cache / f"micro-{_micro_inputs()}.raw"
    if path.exists():
        return path, False
    cache.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".building")
    fresh.unlink(missing_ok=True)
    micro.build(fresh)
    fresh.replace(path)
    for older in cache.glob("micro-*.raw"):
        if older != path:
            older.unlink()
    return path, True


def _micro_inputs() -> str:
    """A hash of all that the image is made from: our own files, and the versions of Debian's packages."""
    total = hashlib.sha256()
    folder = Path(micro.__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(folder)} {path.stat().st_mode:o}\n".encode() + path.read_bytes())
    versions = run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", "linux-image-*", *micro.DEBIAN_PACKAGES])
    total.update("\n".join(sorted(set(versions.splitlines()))).encode())
    return total.hexdigest()[:16]


def find(client: Client, kind: str, name: str) -> dict[str, Any] | None:
    """The resource of this name, or None."""
    try:
        found: dict[str, Any] = client.get(f"/{kind}/{name}")
    except CloudError as error:
        if error.kind is ErrorKind.NOT_FOUND:
            return None
        raise
    return found


def ensure(
    client: Client, kind: str, name: str, spec: Mapping[str, Any], timeout_s: float = 60.0
) -> tuple[dict[str, Any], bool]:
    """The resource of this name, made and ready; whether it was made. One that is there stays as it is."""
    if (found := find(client, kind, name)) is not None:
        return found, False
    answer = client.post(f"/{kind}", {"name": name, "spec": dict(spec)})
    client.finish(answer["operation"]["id"], timeout=timeout_s)
    return client.get(f"/{kind}/{name}"), True


def ensure_image(client: Client, path: Path) -> bool:
    """Import the micro image for everyone. One that is there stays: its users rely on it."""
    spec = {"source": f"file://{path}", "format": "raw", "login_user": "root", "public": True}
    return ensure(client, "images", MICRO, spec, IMPORT_TIMEOUT_S)[1]


def ensure_network(client: Client) -> bool:
    """VPC and subnet; and in the account's default security group, rules that let pings and SSH in from anywhere."""
    vpc, made_vpc = ensure(client, "vpcs", DEFAULT, {})
    if find(client, "subnets", DEFAULT) is not None:
        return made_vpc
    # The rules before the subnet, whose absence says that they are still to be made: later they are their owner's.
    group, _ = ensure(client, "security-groups", DEFAULT, {})
    for wanted in (
        {"direction": "inbound", "protocol": "tcp", "port_min": 22, "port_max": 22, "cidr": "0.0.0.0/0"},
        {"direction": "inbound", "protocol": "icmp", "cidr": "0.0.0.0/0"},
        {"direction": "outbound", "protocol": "any", "cidr": "0.0.0.0/0"},
        {"direction": "inbound", "protocol": "any", "group": group["id"]},
    ):
        if not any(wanted.items() <= rule.items() for rule in group["spec"]["rules"]):
            answer = client.post(f"/security-groups/{group['id']}/rules", wanted)
            client.finish(answer["operation"]["id"], timeout=60.0)
    return ensure(client, "subnets", DEFAULT, {"vpc": vpc["id"], "cidr": SUBNET_CIDR})[1]


def ensure_keypair(client: Client) -> bool:
    """The default key: made here, its public half given to the cloud."""
    key = ensure_key(DEFAULT)
    found = find(client, "keypairs", DEFAULT)
    if found is not None and found["spec"]["public_key"].split()[:2] == key.public_key.split()[:2]:
        return False
    if found is not None:
        # The private half is gone, or was made for another cloud of ours; what is there opens nothing any more.
        client.finish(client.delete(f"/keypairs/{DEFAULT}")["operation"]["id"], timeout=60.0)
    ensure(client, "keypairs", DEFAULT, {"public_key": key.public_key})
    return True


def ensure_hello(client: Client) -> bool:
    """The first VM."""
    spec = {
        **{"image": MICRO, "cpus": HELLO_CPUS, "memory_mib": HELLO_MEMORY_MIB},
        **{"nics": [{"subnet": DEFAULT, "security_groups": [DEFAULT]}], "keypairs": [DEFAULT]},
    }
    return ensure(client, "vms", HELLO, spec, VM_TIMEOUT_S)[1]


def wait_hello(client: Client) -> dict[str, Any]:
    """The first VM, when it runs: after a start of the whole cloud it is being started, too. Not if it is to be off."""
    deadline = time.monotonic() + VM_TIMEOUT_S
    while True:
        vm: dict[str, Any] = client.get(f"/vms/{HELLO}")
        state = vm["status"]["state"]
        if state in ("running", "stopped", "error") or vm["spec"]["power"] == "off" or time.monotonic() > deadline:
            return vm
        # Nobody's operation starts it, so there is none to wait for.
        time.sleep(0.2)
