"""The NoCloud disk, read back as a guest would."""

from __future__ import annotations

import io
import json

import pycdlib
from hypothesis import given, settings
from hypothesis import strategies as st

from scloud.images.nocloud import Seed, meta_data, seed_image

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def read(image: bytes, name: str) -> str:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    output = io.BytesIO()
    iso.get_file_from_iso_fp(output, rr_path=f"/{name}")
    iso.close()
    return output.getvalue().decode()


def test_the_label_is_where_guests_look() -> None:
    image = seed_image(Seed(instance_id="i-1", hostname="web-1"))
    assert image[0x8001:0x8006] == b"CD001"
    assert image[0x8028:0x8048].rstrip() == b"cidata"
    assert len(image) % 2048 == 0


def test_files() -> None:
    seed = Seed(
        instance_id="i-1",
        hostname="web-1",
        keys=("ssh-ed25519 AAAA me@there",),
        user_data="#!/bin/sh\necho ü\n",
        macs=("52:54:00:00:00:01", "52:54:00:00:00:02"),
    )
    image = seed_image(seed)
    assert read(image, "user-data") == seed.user_data
    assert read(image, "meta-data") == (
        'instance-id: "i-1"\nlocal-hostname: "web-1"\npublic-keys:\n  - "ssh-ed25519 AAAA me@there"\n'
    )
    network = json.loads(read(image, "network-config"))
    assert network["version"] == 2
    assert [nic["match"]["macaddress"] for nic in network["ethernets"].values()] == list(seed.macs)
    assert all(nic["dhcp4"] for nic in network["ethernets"].values())


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=5000).filter(lambda text: text != "").map(lambda t: t.encode(errors="replace").decode()))
def test_user_data_arrives_byte_for_byte(text: str) -> None:
    assert read(seed_image(Seed(instance_id="i", hostname="h", user_data=text)), "user-data") == text


@given(TEXT, st.lists(TEXT, max_size=3))
def test_no_key_or_name_adds_a_line(name: str, keys: list[str]) -> None:
    text = meta_data(Seed(instance_id="i", hostname=name, keys=tuple(keys)))
    lines = text.split("\n")
    assert len(lines) == 3 + (1 + len(keys) if keys else 0)
    assert json.loads(lines[1].removeprefix("local-hostname: ")) == name
    assert [json.loads(line.removeprefix("  - ")) for line in lines[3:-1]] == keys
