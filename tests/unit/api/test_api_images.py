"""Images: uploads, files, checks, downloads, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.cloud import Cloud

MIB = 1024 * 1024
RAW = (b"\x01" * 4096).ljust(MIB, b"\0") + b"tail"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def upload(cloud: Cloud, data: bytes, name: str = "img", *, state: str = "done", **spec: Any) -> dict[str, Any]:
    body = {"name": name, "spec": {"source": "upload", "format": "raw", **spec}}
    made = await cloud.alice.do("POST", "/images", body)
    answer = await cloud.alice.ask("PUT", f"/images/{name}/data", content=data)
    assert answer.status_code == 202, answer.text
    assert answer.json()["id"] == made["operation"]["id"]
    return await cloud.alice.wait(made, state)


async def test_an_upload_comes_back_as_it_went(cloud: Cloud) -> None:
    await upload(cloud, RAW, sha256=digest(RAW))
    image = await cloud.alice.get("/images/img")
    padded = RAW.ljust(2 * MIB, b"\0")
    assert image["status"]["state"] == "ready"
    assert (image["status"]["size_mib"], image["status"]["sha256"]) == (2, digest(padded))
    answer = await cloud.alice.ask("GET", "/images/img/data")
    assert answer.content == padded and answer.headers["content-type"] == "application/octet-stream"
    await cloud.alice.fail("PUT", "/images/img/data", status=409, code="conflict", content=b"again")
    await cloud.alice.end("DELETE", "/images/img")
    assert list((cloud.folder / "images").iterdir()) == []


async def test_formats_are_converted_as_stated(cloud: Cloud, tmp_path: Path) -> None:
    await upload(cloud, RAW)
    answer = await cloud.alice.ask("GET", "/images/img/data", params={"format": "qcow2"})
    assert answer.content[:4] == b"QFI\xfb"
    await upload(cloud, answer.content, "again", format="qcow2")
    sums = {(await cloud.alice.get(f"/images/{name}"))["status"]["sha256"] for name in ("img", "again")}
    assert len(sums) == 1
    op = await upload(cloud, RAW, "wrong", format="qcow2", state="failed")
    assert op["error"]["message"]
    assert (await cloud.alice.get("/images/wrong"))["status"]["state"] == "error"
    await cloud.alice.end("DELETE", "/images/wrong")


async def test_a_qcow2_that_refers_to_other_files_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    evil = tmp_path / "evil"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(evil)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    op = await upload(cloud, evil.read_bytes(), "evil", format="qcow2", state="failed")
    assert "backing" in op["message"]


async def test_a_checksum_that_differs_fails_the_import(cloud: Cloud) -> None:
    op = await upload(cloud, RAW, sha256="0" * 64, state="failed")
    assert digest(RAW) in op["message"]
    await cloud.alice.fail("GET", "/images/img/data", status=409, code="conflict")
    await cloud.alice.end("DELETE", "/images/img")
    assert list((cloud.folder / "images").iterdir()) == []


async def test_a_file_of_the_managers_host_is_an_administrators(cloud: Cloud, tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(RAW)
    image = await cloud.admin.create("images", "img", source=f"file://{source}", format="raw", public=True)
    assert image["status"]["size_mib"] == 2 and image["account"] is None
    op = await cloud.admin.end(
        "POST", "/images", {"name": "no", "spec": {"source": "file:///none/x", "format": "raw"}}, state="failed"
    )
    assert "/none/x" in op["message"]


@pytest.mark.parametrize("source", ["ftp://x/y", "file://relative", "/etc/passwd", "", "http:/x", "a\nb"])
async def test_sources_have_rules(cloud: Cloud, source: str) -> None:
    body = {"name": "x", "spec": {"source": source, "format": "raw"}}
    problem = await cloud.admin.fail("POST", "/images", body, status=422, code="invalid")
    assert problem["fields"][0]["field"] == "spec.source"


async def test_a_source_that_cannot_be_read_is_the_operations_error(cloud: Cloud) -> None:
    body = {"name": "x", "spec": {"source": "http://127.0.0.1:9/none", "format": "raw"}}
    op = await cloud.alice.end("POST", "/images", body, state="failed")
    assert "http://127.0.0.1:9/none" in op["message"]


async def test_two_uploads_at_once_are_two_whole_files(cloud: Cloud) -> None:
    await cloud.alice.do("POST", "/images", {"name": "img", "spec": {"source": "upload", "format": "raw"}})
    first, second = b"\x01" * (3 * MIB), b"\x02" * (3 * MIB)

    async def slowly(data: bytes):  # type: ignore[no-untyped-def]
        for start in range(0, len(data), MIB // 4):
            yield data[start : start + MIB // 4]
            await asyncio.sleep(0)

    answers = await asyncio.gather(
        *(cloud.alice.ask("PUT", "/images/img/data", content=slowly(data)) for data in (first, second))
    )
    assert sorted(answer.status_code for answer in answers) in ([202, 202], [202, 409])
    image = await cloud.until(cloud.alice, "/images/img", "ready")
    assert image["status"]["sha256"] in (digest(first), digest(second))


async def test_a_cancelled_import_leaves_nothing(cloud: Cloud) -> None:
    made = await cloud.alice.do("POST", "/images", {"name": "img", "spec": {"source": "upload", "format": "raw"}})
    await cloud.alice.do("POST", f"/operations/{made['operation']['id']}/cancel")
    await cloud.until_gone(made["resource"]["id"])
    assert await cloud.alice.list("/operations", state="running") == []


async def test_an_import_goes_on_with_the_next_manager(cloud: Cloud) -> None:
    await cloud.alice.do("POST", "/images", {"name": "img", "spec": {"source": "upload", "format": "raw"}})
    await cloud.alice.ask("PUT", "/images/img/data", content=RAW)
    await cloud.restart()
    await cloud.until(cloud.alice, "/images/img", "ready")


async def test_an_image_that_is_not_ready_makes_no_vm(cloud: Cloud) -> None:
    await cloud.alice.do("POST", "/images", {"name": "img", "spec": {"source": "upload", "format": "raw"}})
    problem = await cloud.alice.fail(
        "POST", "/vms", {"name": "a", "spec": {"image": "img"}}, status=409, code="conflict"
    )
    assert "pending" in problem["detail"]


async def test_an_upload_that_never_comes_ends_in_an_error(cloud: Cloud) -> None:
    made = await cloud.alice.do("POST", "/images", {"name": "img", "spec": {"source": "upload", "format": "raw"}})
    cloud.clock.advance(3601)
    await cloud.alice.wait(made, "failed")
    assert (await cloud.alice.get("/images/img"))["status"]["state"] == "error"
    await cloud.alice.fail("PUT", "/images/img/data", status=409, code="conflict", content=RAW)
    await cloud.alice.end("DELETE", "/images/img")
