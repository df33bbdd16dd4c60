"""GPUs of this host that can be passed through, as sysfs tells."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scloud.model.gpus import Gpu

CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")
"""PCI classes: VGA controller, 3D controller, other display controller, processing accelerator."""
BRIDGE = "0x06"
MODELS = {
    "10de:102d": "k80",
    "10de:1b38": "p40",
    "10de:1db1": "v100",
    "10de:1db4": "v100",
    "10de:1db5": "v100",
    "10de:1db6": "v100",
    "10de:1e04": "2080ti",
    "10de:1e07": "2080ti",
    "10de:1e82": "2080",
    "10de:1e87": "2080",
    "10de:1eb8": "t4",
    "19e5:d100": "atlas300",
}
"""Short names by PCI vendor and device (pci.ids); anything else goes by its numbers."""


def find_gpus(sys: Path = Path("/sys")) -> tuple[Gpu, ...]:
    """All but the one that the host's own console is on, in order of address; none where there is no PCI.

    One that cannot be passed through is listed with the reason.
    """
    devices = sys / "bus/pci/devices"
    if not devices.is_dir():
        return ()
    addresses = sorted(path.name for path in devices.iterdir())
    mine = [one for one in addresses if _read(devices / one / "class").startswith(CLASSES)]
    offered = [one for one in mine if _read(devices / one / "boot_vga") != "1"]
    return tuple(_gpu(devices, one, mine) for one in offered)


def _gpu(devices: Path, address: str, gpus: Iterable[str]) -> Gpu:
    folder = devices / address
    number = f"{_read(folder / 'vendor')[2:]}:{_read(folder / 'device')[2:]}"
    model = MODELS.get(number, number)
    group = folder / "iommu_group/devices"
    if not group.is_dir():
        reason = "the host's IOMMU is off: switch it on in its firmware and with intel_iommu=on or amd_iommu=on"
        return Gpu(address=address, model=model, reason=reason)
    others = sorted(path.name for path in group.iterdir() if path.name != address)
    # bridges stay with the host: VFIO allows it
    others = [one for one in others if not _read(devices / one / "class").startswith(BRIDGE)]
    shared = [one for one in others if one in gpus]
    if shared:
        reason = f"its IOMMU group has {', '.join(shared)} too: they cannot be given to different VMs"
        return Gpu(address=address, model=model, reason=reason)
    foreign = [one for one in others if one.rpartition(".")[0] != address.rpartition(".")[0]]
    if foreign:
        reason = f"its IOMMU group has other devices of the host: {', '.join(foreign)}"
        return Gpu(address=address, model=model, reason=reason)
    return Gpu(address=address, model=model, companions=tuple(others))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
