"""The commands that the systemd supervisor makes. Running them needs a machine whose init is systemd."""

from __future__ import annotations

from pathlib import Path

from scloud.drivers.supervisor.process import digest
from scloud.drivers.supervisor.protocol import ProcessSpec
from scloud.drivers.supervisor.systemd import run_argv

SPEC = ProcessSpec(name="dnsmasq", argv=("dnsmasq", "--keep-in-foreground"), env={"A": "1"}, netns="vpc-1")


def test_a_process_becomes_a_transient_unit_in_the_nodes_namespaces() -> None:
    enter = ("nsenter", "--mount=/x/ns/mnt", "--")
    argv = run_argv(
        SPEC, "scloud-n1-dnsmasq.service", enter, Path("/x/log/dnsmasq.log"), {"A": "0", "SCLOUD_NODE": "n1"}
    )
    options, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert options[0] == "systemd-run"
    assert "--unit=scloud-n1-dnsmasq.service" in options
    assert "--property=KillMode=process" in options, "guests outlive libvirtd's unit"
    assert "--property=StandardOutput=append:/x/log/dnsmasq.log" in options
    assert [option for option in options if option.startswith("--setenv")] == [
        "--setenv=A=1",
        "--setenv=SCLOUD_NODE=n1",
    ]
    assert command == [*enter, "nsenter", "--net=/run/netns/vpc-1", "--", "dnsmasq", "--keep-in-foreground"]


def test_the_description_tells_when_a_spec_has_changed() -> None:
    argv = run_argv(SPEC, "u.service", (), Path("/l"))
    assert f"--description=SCloudStack dnsmasq {digest(SPEC)[:16]}" in argv
    changed = SPEC.model_copy(update={"argv": ("dnsmasq",)})
    assert digest(changed)[:16] not in " ".join(argv)
