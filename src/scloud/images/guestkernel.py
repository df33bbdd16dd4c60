"""Finds Debian's cloud kernel and its modules on this host."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind

_SUFFIXES = (".ko", ".ko.xz")


def missing(package: str, what: str) -> CloudError:
    """The error for an input that is not there: names the Debian package that brings it."""
    return CloudError(
        ErrorKind.UNAVAILABLE, f"{what} is missing: install the Debian package {package} (apt-get install {package})"
    )


def _version_key(version: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"[.+~-]", version)]


class GuestKernel(Value):
    """A kernel and where its modules are."""

    version: str
    image: Path
    modules: Path

    def module_files(self, *names: str) -> list[Path]:
        """The modules asked for and all they depend on, each after what it needs. Built-in ones are left out."""
        depends: dict[str, list[str]] = {}
        by_name: dict[str, str] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needed = line.partition(":")
            depends[path] = needed.split()
            by_name[_module_name(path)] = path
        builtin = {_module_name(line) for line in (self.modules / "modules.builtin").read_text().split()}
        order: list[str] = []

        def visit(path: str) -> None:
            if path not in order:
                for needed in depends[path]:
                    visit(needed)
                order.append(path)

        for name in names:
            wanted = name.replace("-", "_")
            if wanted in builtin:
                continue
            if wanted not in by_name:
                raise missing("linux-image-cloud-amd64", f"the module {name} of kernel {self.version}")
            visit(by_name[wanted])
        return [self.modules / path for path in order]


def _module_name(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    for suffix in reversed(_SUFFIXES):
        name = name.removesuffix(suffix)
    return name.replace("-", "_")


def module_bytes(path: Path) -> bytes:
    """A module as the kernel loads it: Debian 13 keeps them compressed, Debian 12 does not."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def find_kernel(root: Path = Path("/")) -> GuestKernel:
    """The newest cloud kernel installed under `root`; `CloudError(UNAVAILABLE)` names the package if there is none."""
    found: list[GuestKernel] = []
    for image in (root / "boot").glob("vmlinuz-*-cloud-amd64"):
        version = image.name.removeprefix("vmlinuz-")
        for base in (root / "lib/modules", root / "usr/lib/modules"):
            if (base / version / "modules.dep").is_file():
                found.append(GuestKernel(version=version, image=image, modules=base / version))
                break
    if not found:
        raise missing("linux-image-cloud-amd64", "a cloud kernel in /boot with its modules in /lib/modules")
    return max(found, key=lambda kernel: _version_key(kernel.version))
