"""`python -m lab_ceph --minutes 20` in tests/, as root: random faults in a lab of three nodes with a storage cluster.

Three users create, use, migrate and delete VMs and disks meanwhile, and a guest writes and is migrated. Throughout, no
VM has a process and no disk is open in two places, unless the cloud says that it is on its way between them. At the end
all is healed: what users were promised is so, what runs is what should run, the audit is clean, and every write that
was acknowledged to the guest is on its disk. The seed is printed; it fixes what is done, not when the machine gets
round to it.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from lab.cloud import Lab
from lab_ceph import protected
from lab_ceph.chaos_run import chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab_ceph", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sclab-") as name:
        Path(name).chmod(0o711)
        lab = Lab(Path(name))
        try:
            lab.up(3, "--ceph")
            with lab.own_client() as lab.client:
                wrong = chaos(lab, options.minutes * 60.0, options.seed, *protected.make(lab))
        finally:
            for guest in lab.guests:
                guest.forget()
            lab.scloud("lab", "down", "--purge", timeout=300.0)
    print("\n".join(["FAILED:", *wrong]) if wrong else "passed", flush=True)
    print(f"again: python -m lab_ceph --minutes {options.minutes:g} --seed {options.seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
