"""Domain XML: what is written can be read back, and libvirt itself takes it, for any spec."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from hypervisor_rig import Rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scloud.drivers.hypervisor.domain_xml import (
    MAX_CPUS,
    DiskMode,
    domain_uuid,
    domain_xml,
    next_target,
    ordered_disks,
    target_name,
    view_of,
)
from scloud.drivers.hypervisor.protocol import DiskSource, DomainSpec, NicDevice
from scloud.drivers.storage.place import FilePlace, RbdPlace
from scloud.model.snapshots import DiskLimits

ids = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=16, max_size=16)
texts = st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc", "Cn")), min_size=1, max_size=30).filter(
    lambda text: text.strip() == text
)
paths = texts.map(lambda text: Path("/var/lib") / text.replace("/", "-"))
names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)
users = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
"""Libvirt's schema takes no dot in them; nodes' names, which they are made from, have none."""
places = st.builds(FilePlace, path=paths) | st.builds(
    RbdPlace,
    pool=names,
    image=names,
    monitors=st.just(("127.0.0.1:3300",)),
    user=users,
    secret=st.uuids().map(str),
    conf=st.just(Path("/var/lib/ceph.conf")),
)
rates = st.builds(DiskLimits, iops=st.integers(0, 10**6), kib_per_s=st.integers(0, 10**6))
disks = st.builds(DiskSource, disk=ids.map("dsk-{}".format), place=places, read_only=st.booleans(), limits=rates)
macs = st.integers(0, 2**24 - 1).map(lambda n: f"52:54:00:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}")
nics = st.builds(
    NicDevice,
    nic=ids.map("nic-{}".format),
    tap=ids.map(lambda text: f"t{text[:12]}"),
    mac=macs,
    mtu=st.integers(576, 9000),
    offload=st.booleans(),
)


pci = st.sampled_from(["0000:3b:00.0", "0000:3b:00.1", "00ff:fe:1f.7", "0001:00:00.0"])


@st.composite
def specs(draw: st.DrawFn) -> DomainSpec:
    max_cpus = draw(st.integers(1, MAX_CPUS))
    memory = draw(st.integers(64, 256 * 1024))
    return DomainSpec(
        vm=f"vm-{draw(ids)}",
        name=draw(texts),
        cpus=draw(st.integers(1, max_cpus)),
        max_cpus=max_cpus,
        memory_mib=memory,
        max_memory_mib=draw(st.just(memory) | st.integers(memory, 512 * 1024)),
        disks=tuple(draw(st.lists(disks, min_size=1, max_size=8, unique_by=lambda disk: disk.disk))),
        nics=tuple(draw(st.lists(nics, max_size=6, unique_by=lambda nic: nic.nic))),
        console_log=draw(paths),
        console_socket=Path("/run/scloud/console.sock"),
        gpus=tuple(draw(st.lists(pci, max_size=3, unique=True))),
    )


modes = st.lists(st.builds(DiskMode, block=st.booleans(), direct=st.booleans()), min_size=8, max_size=8)


def name_of(disk: DiskSource) -> str:
    place = disk.place
    return str(place.path) if isinstance(place, FilePlace) else f"{place.pool}/{place.image}"


def check_view(spec: DomainSpec, xml: str) -> None:
    view = view_of(xml)
    assert view is not None
    assert (view.vm, view.cpus, view.max_cpus) == (spec.vm, spec.cpus, spec.max_cpus)
    assert (view.memory_mib, view.max_memory_mib) == (spec.memory_mib, spec.max_memory_mib)
    assert view.nics == tuple(nic.nic for nic in spec.nics)
    assert view.disks == {disk.disk: target_name(index) for index, disk in enumerate(ordered_disks(spec.disks))}
    assert view.disks[spec.disks[0].disk] == "vda", "the guest finds its root on the first disk"
    assert host_devices(xml) == list(spec.gpus)


def host_devices(xml: str) -> list[str]:
    """Addresses of the host's PCI devices that libvirt is to take from their drivers and give back, in order."""
    wanted = "devices/hostdev[@mode='subsystem'][@type='pci'][@managed='yes']/source/address"
    found = [element.attrib for element in ET.fromstring(xml).findall(wanted)]
    parts = [[at[key][2:] for key in ("domain", "bus", "slot", "function")] for at in found]
    return ["{}:{}:{}.{}".format(*part) for part in parts]


@given(specs(), modes, st.sampled_from(["kvm", "tcg"]))
def test_what_is_written_can_be_read_back(spec: DomainSpec, modes: list[DiskMode], accelerator: Any) -> None:
    xml = domain_xml(spec, modes[: len(spec.disks)], accelerator)
    check_view(spec, xml)
    root = ET.fromstring(xml)
    assert root.findtext("title") == spec.name
    for element, disk in zip(root.findall("devices/disk"), ordered_disks(spec.disks), strict=True):
        assert element.find("driver").attrib["type"] == "raw"  # type: ignore[union-attr]
        assert name_of(disk) in element.find("source").attrib.values()  # type: ignore[union-attr]
        told = [int(element.findtext(f"iotune/{name}") or 0) for name in ("total_iops_sec", "total_bytes_sec")]
        assert told == [disk.limits.iops, disk.limits.kib_per_s * 1024]
        assert element.findtext("serial") == disk.disk[-20:]
        assert (element.find("readonly") is not None) == disk.read_only


@given(specs(), st.randoms())
def test_disk_names_do_not_depend_on_the_order_of_data_disks(spec: DomainSpec, random: Any) -> None:
    data = list(spec.disks[1:])
    random.shuffle(data)
    other = spec.model_copy(update={"disks": (spec.disks[0], *data)})
    plain = [DiskMode(block=False, direct=True)] * len(spec.disks)
    views = [view_of(domain_xml(each, plain, "tcg")) for each in (spec, other)]
    assert views[0] == views[1]


@given(st.sets(st.integers(0, 800)))
def test_the_next_target_is_the_first_that_is_free(taken: set[int]) -> None:
    name = next_target(map(target_name, taken))
    free = next(index for index in range(802) if index not in taken)
    assert name == target_name(free)


def test_target_names() -> None:
    assert [target_name(index) for index in (0, 1, 25, 26, 27, 701, 702)] == [
        *("vda", "vdb", "vdz", "vdaa", "vdab", "vdzz", "vdaaa")
    ]


def test_foreign_xml_is_not_ours() -> None:
    assert view_of("<domain><name>vm-x</name><metadata/></domain>") is None


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    with Rig() as rig:
        opened = libvirt.open(rig.uri)
        yield opened
        opened.close()


@pytest.mark.engine
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs(), modes=modes)
def test_libvirt_takes_any_spec(connection: Any, spec: DomainSpec, modes: list[DiskMode]) -> None:
    xml = domain_xml(spec, modes[: len(spec.disks)], "tcg")
    domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        assert domain.UUIDString() == domain_uuid(spec.vm)
        check_view(spec, domain.XMLDesc())
    finally:
        domain.undefine()


GPUS = ("0000:3b:00.0", "0000:3b:00.1", "00ff:fe:1f.7")
WITH_GPUS = DomainSpec(
    vm="vm-0123456789abcdef",
    name="render",
    cpus=2,
    max_cpus=4,
    memory_mib=2048,
    max_memory_mib=4096,
    disks=(DiskSource(disk="dsk-0123456789abcdef", place=FilePlace(path=Path("/var/lib/root.raw"))),),
    nics=(),
    console_log=Path("/var/lib/console.log"),
    console_socket=Path("/run/scloud/console.sock"),
    gpus=GPUS,
)


@pytest.mark.engine
@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_libvirt_gives_a_guest_its_gpus(connection: Any, accelerator: Any) -> None:
    """As libvirt has it, each has an address of the guest's own PCI bus; nothing here starts, and no such device is
    needed. What libvirt would not take it says, so the others are taken because they are right."""
    plain = [DiskMode(block=False, direct=True)]
    xml = domain_xml(WITH_GPUS, plain, accelerator)
    domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        defined = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        assert host_devices(defined) == list(GPUS)
        inside = [element.attrib for element in ET.fromstring(defined).findall("devices/hostdev/address[@type='pci']")]
        assert len({tuple(sorted(at.items())) for at in inside}) == len(GPUS)
    finally:
        domain.undefine()
    for right, wrong in (
        ('managed="yes"', 'managed="perhaps"'),
        ('slot="0x1f"', 'slot="0x2f"'),
        ('bus="0xfe"', 'bus="0xfe0"'),
        ('slot="0x1f"', 'slot="0x00" of="other"'),
    ):
        assert right in xml
        with pytest.raises(libvirt.libvirtError):
            connection.defineXMLFlags(xml.replace(right, wrong), libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
