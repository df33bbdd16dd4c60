"""GPUs that are passed through to guests: what a node has, and which combinations a VM may be asked with."""

from __future__ import annotations

from collections.abc import Iterable

from scloud.model.base import Value

COMBINATIONS: dict[tuple[int, int], tuple[int, ...]] = {
    (1, 4): (8, 16),
    (1, 8): (16, 32),
    (2, 8): (16, 32),
    (2, 16): (32, 64),
    (4, 16): (32, 64),
    (4, 32): (64, 128),
}
"""(GPUs, CPUs) to the sizes of memory that go with them, in GiB. The table is the product's specification."""


class Gpu(Value):
    """One that can be given to a VM. `address` is its PCI address, such as 0000:3b:00.0.

    `companions` are the other functions of its IOMMU group (its sound device, say): they go to the same guest.
    `reason` says why it cannot be given to any, if it cannot.
    """

    address: str
    model: str
    companions: tuple[str, ...] = ()
    reason: str = ""


def refusal(gpus: int, cpus: int, memory_mib: int) -> str | None:
    """What is wrong with a combination, and what would be right; None if nothing is."""
    if gpus == 0:
        return None
    fitting = COMBINATIONS.get((gpus, cpus))
    if fitting is not None and memory_mib in [1024 * gib for gib in fitting]:
        return None
    right = [f"{n} CPUs with {_either(sizes)} GiB" for (count, n), sizes in COMBINATIONS.items() if count == gpus]
    if not right:
        return f"must be {_either(sorted({count for count, _ in COMBINATIONS}))}"
    return f"go with {'; or '.join(right)} of memory; not with {cpus} CPUs and {memory_mib} MiB"


def _either(numbers: Iterable[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
