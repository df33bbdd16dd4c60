"""GPUs as a made-up sysfs tells them."""

from __future__ import annotations

from pathlib import Path

from scloud.agent.gpus import find_gpus


class Pci:
    """`devices` in `groups`, as the kernel lays them out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "bus/pci/devices"
        self.folder.mkdir(parents=True)

    def add(self, address: str, number: str, kind: str, group: int | None, *, console: bool = False) -> None:
        device = self.folder / address
        device.mkdir()
        vendor, _, model = number.partition(":")
        files = {"vendor": f"0x{vendor}", "device": f"0x{model}", "class": kind}
        if kind.startswith("0x03"):
            files["boot_vga"] = "1" if console else "0"
        for name, text in files.items():
            (device / name).write_text(f"{text}\n")
        if group is not None:
            members = self.root / f"kernel/iommu_groups/{group}/devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(device)
            (device / "iommu_group").symlink_to(members.parent)


def test_gpus_are_found_with_what_goes_along_and_why_some_cannot(tmp_path: Path) -> None:
    pci = Pci(tmp_path)
    pci.add("0000:00:02.0", "1a03:2000", "0x030000", 1, console=True)
    pci.add("0000:00:03.0", "8086:2f08", "0x060400", 2)
    pci.add("0000:3b:00.0", "10de:1eb8", "0x030200", 2)
    pci.add("0000:5e:00.0", "10de:1e07", "0x030000", 3)
    pci.add("0000:5e:00.1", "10de:10f7", "0x040300", 3)
    pci.add("0000:86:00.0", "10de:102d", "0x030200", 4)
    pci.add("0000:87:00.0", "10de:102d", "0x030200", 4)
    pci.add("0000:af:00.0", "19e5:d100", "0x120000", None)
    pci.add("0000:d8:00.0", "1002:740f", "0x038000", 5)
    pci.add("0000:d9:00.0", "8086:1572", "0x020000", 5)
    found = {gpu.address: gpu for gpu in find_gpus(tmp_path)}
    assert list(found) == sorted(found) and "0000:00:02.0" not in found
    assert (found["0000:3b:00.0"].model, found["0000:3b:00.0"].companions) == ("t4", ()), "bridges stay behind"
    assert found["0000:5e:00.0"].companions == ("0000:5e:00.1",)
    assert "0000:87:00.0" in found["0000:86:00.0"].reason and "0000:86:00.0" in found["0000:87:00.0"].reason
    assert "IOMMU is off" in found["0000:af:00.0"].reason and found["0000:af:00.0"].model == "atlas300"
    assert "0000:d9:00.0" in found["0000:d8:00.0"].reason and found["0000:d8:00.0"].model == "1002:740f"


def test_a_host_without_pci_has_none(tmp_path: Path) -> None:
    assert find_gpus(tmp_path) == ()
