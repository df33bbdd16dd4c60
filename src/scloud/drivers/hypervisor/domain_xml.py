"""Domain XML, from typed values and back. Nothing here talks to libvirt.

Ours are recognised by a metadata element that holds the VM's id; disks and nics by their alias (`ua-` and their id),
which QEMU also uses as the device's name, so that removal events name them.
"""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from typing import Literal

from scloud.drivers.hypervisor.protocol import DiskSource, DomainSpec, NicDevice
from scloud.drivers.storage.place import FilePlace, Place, RbdPlace
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.snapshots import DiskLimits

NAMESPACE = "urn:scloud:domain:1"
"""The XML namespace of our stamp in a domain's metadata."""
_UUIDS = uuid.UUID("3b1f6f0e-5c10-4ad0-9a51-5c10ad000001")
DIMM_STEP_MIB = 128
"""The smallest piece of memory that x86 Linux brings online by itself."""
DIMM_SLOTS = 16
"""How often memory can be added before the next start."""
MAX_CPUS = 255
"""QEMU's limit for the machine type `pc`."""
BALLOON_PERIOD_S = 10
_SOCKET_PATH_BYTES = 107
_TCG_CACHE_MIB = 128
"""QEMU would take up to 1 GiB of translated code for each emulated guest."""
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PCI = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

Accelerated = Literal["kvm", "tcg"]


class DiskMode(Value):
    """How a disk's source can be opened: a block device or a file, with or without O_DIRECT. Of RBD images, nothing."""

    block: bool
    direct: bool


def domain_uuid(vm: str) -> str:
    """The same for a VM everywhere and always, so that a domain is found without searching."""
    return str(uuid.uuid5(_UUIDS, vm))


def target_name(index: int) -> str:
    """vda, vdb, ... vdz, vdaa, ..."""
    letters = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return f"vd{letters}"


def next_target(used: Iterable[str]) -> str:
    """The first target name that no disk has."""
    taken = set(used)
    index = 0
    while target_name(index) in taken:
        index += 1
    return target_name(index)


def alias_of(item: str) -> str:
    """The device name of a disk or a nic."""
    return f"ua-{item}"


def item_of(alias: str) -> str | None:
    """The disk or nic with this device name, if it is one of ours."""
    return alias[3:] if alias.startswith("ua-") else None


def ordered_disks(disks: Sequence[DiskSource]) -> list[DiskSource]:
    """The system disk, then the others by id: the names that the guest sees stay the same from start to start."""
    return [*disks[:1], *sorted(disks[1:], key=lambda disk: disk.disk)]


def _child(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def disk_element(disk: DiskSource, mode: DiskMode, target: str, boot: int | None = None) -> ET.Element:
    """A virtio disk, always raw."""
    if isinstance(disk.place, RbdPlace):
        element = _rbd_source(disk, disk.place)
    else:
        element = _file_source(disk, disk.place, mode)
    _child(element, "target", dev=target, bus="virtio")
    if disk.limits != DiskLimits():
        tune = _child(element, "iotune")
        for name, value in iotune_of(disk.limits).items():
            _child(tune, name, str(value))
    if disk.read_only:
        _child(element, "readonly")
    _child(element, "serial", disk.disk[-20:])
    if boot is not None:
        _child(element, "boot", order=str(boot))
    _child(element, "alias", name=alias_of(disk.disk))
    return element


def _file_source(disk: DiskSource, place: FilePlace, mode: DiskMode) -> ET.Element:
    """Writes to sparse files may block while space is found: those go through threads."""
    element = ET.Element("disk", {"type": "block" if mode.block else "file", "device": "disk"})
    driver = {"name": "qemu", "type": "raw", "cache": "none" if mode.direct else "writeback"}
    driver["io"] = "native" if mode.direct and mode.block else "threads"
    if not disk.read_only:
        driver["discard"] = "unmap"
    _child(element, "driver", **driver)
    _child(element, "source", **{"dev" if mode.block else "file": str(place.path)})
    return element


def _rbd_source(disk: DiskSource, place: RbdPlace) -> ET.Element:
    """`writeback` lets librbd hold writes together until the guest flushes, as a disk with a cache does; a guest that
    never flushes is written through. With `none`, small random writes were a third as fast. The monitors are those of
    the conf, which knows their protocol too."""
    element = ET.Element("disk", {"type": "network", "device": "disk"})
    driver = {"name": "qemu", "type": "raw", "cache": "writeback"}
    if not disk.read_only:
        driver["discard"] = "unmap"
    _child(element, "driver", **driver)
    auth = _child(element, "auth", username=place.user)
    _child(auth, "secret", type="ceph", uuid=place.secret)
    source = _child(element, "source", protocol="rbd", name=f"{place.pool}/{place.image}")
    _child(source, "config", file=str(place.conf))
    return element


def iotune_of(limits: DiskLimits) -> dict[str, int]:
    """As libvirt names them; 0 is without limit."""
    return {"total_bytes_sec": limits.kib_per_s * 1024, "total_iops_sec": limits.iops}


def nic_element(nic: NicDevice) -> ET.Element:
    """A virtio nic on a tap that is the network driver's. No boot ROM: guests boot from their disks."""
    element = ET.Element("interface", {"type": "ethernet"})
    _child(element, "mac", address=nic.mac)
    _child(element, "target", dev=nic.tap, managed="no")
    _child(element, "model", type="virtio")
    if not nic.offload:
        # The userspace datapath forwards packets whose checksum was left to the hardware as they are.
        driver = _child(element, "driver", name="qemu")
        _child(driver, "host", csum="off", gso="off", tso4="off", tso6="off", ecn="off", ufo="off")
        _child(driver, "guest", csum="off", tso4="off", tso6="off", ecn="off", ufo="off")
    _child(element, "mtu", size=str(nic.mtu))
    _child(element, "rom", enabled="no")
    _child(element, "alias", name=alias_of(nic.nic))
    return element


def host_device_element(address: str) -> ET.Element:
    """A PCI device of the host. libvirt takes it from its driver for as long as the domain runs, and gives it back."""
    domain, bus, slot, function = _pci(address)
    element = ET.Element("hostdev", {"mode": "subsystem", "type": "pci", "managed": "yes"})
    source = _child(element, "source")
    _child(source, "address", domain=f"0x{domain}", bus=f"0x{bus}", slot=f"0x{slot}", function=f"0x{function}")
    return element


def _pci(address: str) -> tuple[str, str, str, str]:
    match = _PCI.fullmatch(address)
    if match is None:
        raise invalid("gpus", f"a PCI address is such as 0000:3b:00.0, not {address!r}")
    return match[1], match[2], match[3], match[4]


def dimm_element(size_mib: int) -> ET.Element:
    """A DIMM to plug into the guest's only NUMA cell."""
    element = ET.Element("memory", {"model": "dimm"})
    target = _child(element, "target")
    _child(target, "size", str(size_mib), unit="MiB")
    _child(target, "node", "0")
    return element


def domain_xml(spec: DomainSpec, modes: Sequence[DiskMode], accelerator: Accelerated) -> str:
    """The whole domain. `modes` are those of `spec.disks`, in their order. `CloudError(INVALID)` names a bad field."""
    check_spec(spec)
    domain = ET.Element("domain", {"type": "kvm" if accelerator == "kvm" else "qemu"})
    _child(domain, "name", spec.vm)
    _child(domain, "uuid", domain_uuid(spec.vm))
    _child(domain, "title", spec.name)
    _child(_child(domain, "metadata"), f"{{{NAMESPACE}}}vm", id=spec.vm)
    if spec.max_memory_mib > spec.memory_mib:
        _child(domain, "maxMemory", str(spec.max_memory_mib), unit="MiB", slots=str(DIMM_SLOTS))
    _child(domain, "memory", str(spec.memory_mib), unit="MiB")
    _child(domain, "vcpu", str(spec.max_cpus), placement="static", current=str(spec.cpus))
    os = _child(domain, "os")
    _child(os, "type", "hvm", arch="x86_64", machine="pc")
    _child(os, "bootmenu", enable="no")
    features = _child(domain, "features")
    _child(features, "acpi")
    _child(features, "apic")
    if accelerator == "tcg":
        _child(_child(features, "tcg"), "tb-cache", str(_TCG_CACHE_MIB), unit="MiB")
    cpu = _child(domain, "cpu", mode="host-model" if accelerator == "kvm" else "maximum")
    _child(cpu, "topology", sockets="1", cores=str(spec.max_cpus), threads="1")
    cell = {"id": "0", "cpus": f"0-{spec.max_cpus - 1}", "memory": str(spec.memory_mib), "unit": "MiB"}
    _child(_child(cpu, "numa"), "cell", **cell)
    _child(domain, "clock", offset="utc")
    _child(domain, "on_poweroff", "destroy")
    _child(domain, "on_reboot", "restart")
    _child(domain, "on_crash", "destroy")
    devices = _child(domain, "devices")
    _child(devices, "controller", type="usb", model="none")
    modes_by_disk = {disk.disk: mode for disk, mode in zip(spec.disks, modes, strict=True)}
    boot_order = {disk.disk: position for position, disk in enumerate(spec.disks, 1)}
    for index, disk in enumerate(ordered_disks(spec.disks)):
        mode = modes_by_disk[disk.disk]
        devices.append(disk_element(disk, mode, target_name(index), boot_order[disk.disk]))
    for nic in spec.nics:
        devices.append(nic_element(nic))
    for address in spec.gpus:
        devices.append(host_device_element(address))
    serial = _child(devices, "serial", type="unix")
    _child(serial, "source", mode="bind", path=str(spec.console_socket))
    _child(serial, "log", file=str(spec.console_log), append="on")
    _child(serial, "target", port="0")
    _child(_child(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    _child(_child(devices, "memballoon", model="virtio"), "stats", period=str(BALLOON_PERIOD_S))
    ET.register_namespace("scloud", NAMESPACE)
    return ET.tostring(domain, encoding="unicode")


def check_spec(spec: DomainSpec) -> None:
    """`CloudError(INVALID)` names the first field that no domain can be made of."""
    if not 1 <= spec.cpus <= spec.max_cpus <= MAX_CPUS:
        raise invalid("cpus", f"must hold 1 <= cpus ({spec.cpus}) <= max_cpus ({spec.max_cpus}) <= {MAX_CPUS}")
    if not 1 <= spec.memory_mib <= spec.max_memory_mib:
        raise invalid("memory_mib", f"must be between 1 and max_memory_mib ({spec.max_memory_mib})")
    if not spec.disks:
        raise invalid("disks", "a domain needs a system disk")
    for field, items in (("disks", [disk.disk for disk in spec.disks]), ("nics", [nic.nic for nic in spec.nics])):
        for item in items:
            check_item(field, item)
        if len(set(items)) != len(items):
            raise invalid(field, "each may be given once")
    for address in spec.gpus:
        _pci(address)
    if len(set(spec.gpus)) != len(spec.gpus):
        raise invalid("gpus", "each may be given once")
    if len(str(spec.console_socket).encode()) > _SOCKET_PATH_BYTES:
        raise invalid("console_socket", f"a UNIX socket's path has at most {_SOCKET_PATH_BYTES} bytes")
    for field, text in (
        *(("vm", spec.vm), ("name", spec.name), ("console_log", str(spec.console_log))),
        *(("disks", text) for disk in spec.disks for text in _texts(disk.place)),
    ):
        if not text or _TEXT.search(text) or "\n" in text:
            raise invalid(field, "must be text without control characters")


def _texts(place: Place) -> list[str]:
    if isinstance(place, FilePlace):
        return [str(place.path)]
    return [place.pool, place.image, place.user, place.secret, str(place.conf)]


def check_item(field: str, item: str) -> None:
    """Device names are made of ids; anything else would let a name reach into the engine's own."""
    if not _ALIAS.fullmatch(item):
        raise invalid(field, f"an id is 1-64 of a-z, 0-9, '_' and '-', not {item!r}")


def moved_xml(xml: str, spec: DomainSpec) -> str:
    """A running domain's XML as it is to be on another node: what was plugged in stays, places are those of `spec`.

    `CloudError(CONFLICT)` if it has a disk that the spec lacks: it was attached after the other node was asked.
    """
    root = ET.fromstring(xml)
    places = {disk.disk: disk for disk in spec.disks}
    for element in root.findall("devices/disk"):
        alias, source = element.find("alias"), element.find("source")
        item = item_of((alias.get("name") if alias is not None else None) or "")
        if item is None or source is None:
            continue
        if item not in places:
            raise CloudError(ErrorKind.CONFLICT, f"disk {item} was attached meanwhile; migrate it again")
        place = places[item].place
        if isinstance(place, RbdPlace):
            made = _rbd_source(places[item], place)
            for tag in ("auth", "source"):
                old, new = element.find(tag), made.find(tag)
                if old is not None:
                    element.remove(old)
                if new is not None:
                    element.insert(1, new)
        else:
            name = "dev" if element.get("type") == "block" else "file"
            source.attrib = {name: str(place.path)}
    for serial in root.findall("devices/serial") + root.findall("devices/console"):
        if (source := serial.find("source")) is not None:
            source.set("path", str(spec.console_socket))
        if (log := serial.find("log")) is not None:
            log.set("file", str(spec.console_log))
    taps = {nic.nic: nic.tap for nic in spec.nics}
    for element in root.findall("devices/interface"):
        alias, target = element.find("alias"), element.find("target")
        item = item_of((alias.get("name") if alias is not None else None) or "")
        if item in taps and target is not None:
            target.set("dev", taps[item])
    ET.register_namespace("scloud", NAMESPACE)
    return ET.tostring(root, encoding="unicode")


class DomainView(Value):
    """What a domain's XML says: one of ours, with these devices. `targets` are all disk names in use."""

    vm: str
    cpus: int
    max_cpus: int
    memory_mib: int
    max_memory_mib: int
    disks: dict[str, str]
    """Disk id -> target name."""
    nics: tuple[str, ...]
    targets: tuple[str, ...]
    dimms: int


def stamp_of(root: ET.Element) -> str | None:
    """The VM's id if the domain carries our stamp."""
    stamp = root.find(f"metadata/{{{NAMESPACE}}}vm")
    return stamp.get("id") if stamp is not None else None


def _mib(element: ET.Element | None) -> int:
    """We write MiB; libvirt answers in KiB."""
    if element is None:
        return 0
    return int(element.text or 0) // (1 if element.get("unit") == "MiB" else 1024)


def view_of(xml: str) -> DomainView | None:
    """Read libvirt's XML of a domain; None if it is not one of ours."""
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise CloudError(ErrorKind.ENGINE, f"libvirt gave XML that cannot be read: {error}") from error
    vm = stamp_of(root)
    if vm is None:
        return None
    vcpu = root.find("vcpu")
    maximum = int(vcpu.text or 1) if vcpu is not None else 1
    memory = _mib(root.find("memory"))
    disks: dict[str, str] = {}
    targets = []
    for element in root.findall("devices/disk"):
        target, alias = element.find("target"), element.find("alias")
        name = (target.get("dev") if target is not None else None) or ""
        targets.append(name)
        item = item_of((alias.get("name") if alias is not None else None) or "")
        if item is not None:
            disks[item] = name
    aliases = [element.get("name") or "" for element in root.findall("devices/interface/alias")]
    return DomainView(
        vm=vm,
        cpus=int((vcpu.get("current") if vcpu is not None else None) or maximum),
        max_cpus=maximum,
        memory_mib=memory,
        max_memory_mib=_mib(root.find("maxMemory")) or memory,
        disks=disks,
        nics=tuple(item for item in map(item_of, aliases) if item is not None),
        targets=tuple(targets),
        dimms=len(root.findall("devices/memory")),
    )
