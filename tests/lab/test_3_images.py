"""Images: in from files, URLs and uploads, out in both formats; what must be refused."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cloud import Lab


@pytest.fixture(scope="module")
def files(lab: Lab, micro: Path) -> Path:
    """A folder with the micro image as qcow2, and others."""
    folder = lab.folder / "files"
    folder.mkdir()
    raw = folder / "small.raw"
    raw.write_bytes(bytes(1 << 20) + b"payload" * 1000 + bytes(1 << 20))
    _img("convert", "-f", "raw", "-O", "qcow2", str(micro), str(folder / "micro.qcow2"))
    _img("create", "-f", "qcow2", "-F", "raw", "-b", str(raw), str(folder / "backed.qcow2"))
    _img("create", "-f", "qcow2", "-o", f"data_file={folder}/ext.raw", str(folder / "split.qcow2"), "4M")
    return folder


def _img(*argv: str) -> None:
    subprocess.run(["qemu-img", *argv], check=True, capture_output=True)


@pytest.fixture(scope="module")
def url(files: Path) -> Iterator[str]:
    """The folder over HTTP, on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(files))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_qcow2_from_a_url_boots_and_comes_out_again(lab: Lab, files: Path, url: str, micro: Path) -> None:
    sum = digest(files / "micro.qcow2")
    image = lab.json("image", "import", "fetched", f"{url}/micro.qcow2", "--format", "qcow2", "--sha256", sum)
    assert image["status"]["state"] == "ready" and image["status"]["size_mib"] == 96
    guest = lab.create("from-url", "--image", "fetched")
    assert guest.run("hostname") == "from-url"

    refused = lab.refused("image", "delete", "fetched")
    assert refused["code"] == "in_use" and any("from-url" in user for user in refused["users"]), refused
    assert lab.json("image", "show", "fetched")["status"]["state"] == "ready"

    out = lab.folder / "out"
    out.mkdir()
    for form in ("raw", "qcow2"):
        told = lab.json("image", "export", "fetched", str(out / form), "--format", form)
        assert told["bytes"] == (out / form).stat().st_size
        subprocess.run(
            ["qemu-img", "compare", "-f", form, "-F", "raw", str(out / form), str(micro)],
            check=True,
            capture_output=True,
        )
    assert (out / "qcow2").stat().st_size < (out / "raw").stat().st_size
    guest.forget()
    lab.ok("vm", "delete", "from-url")
    lab.ok("image", "delete", "fetched")
    assert lab.scloud("image", "show", "fetched").code == 3


@pytest.mark.parametrize("way", ["upload", "file", "url"])
def test_raw_in_and_the_same_bytes_out(lab: Lab, files: Path, url: str, way: str) -> None:
    raw = files / "small.raw"
    source = {"upload": str(raw), "file": f"file://{raw}", "url": f"{url}/small.raw"}[way]
    name = f"small-{way}"
    lab.ok("image", "import", name, source, "--format", "raw", "--sha256", digest(raw))
    out = lab.folder / f"{name}.raw"
    lab.ok("image", "export", name, str(out), "--format", "raw")
    data, length = out.read_bytes(), raw.stat().st_size
    assert data[:length] == raw.read_bytes() and not any(data[length:])
    assert len(data) == 3 << 20, "rounded up to whole MiB"
    lab.ok("image", "delete", name)


@pytest.mark.parametrize("way", ["upload", "file", "url"])
def test_a_wrong_checksum_is_refused(lab: Lab, files: Path, url: str, way: str) -> None:
    raw = files / "small.raw"
    source = {"upload": str(raw), "file": f"file://{raw}", "url": f"{url}/small.raw"}[way]
    problem = lab.refused("image", "import", "forged", source, "--format", "raw", "--sha256", "0" * 64)
    assert "checksum" in problem["detail"] and digest(raw) in problem["detail"]
    assert lab.json("image", "show", "forged")["status"]["state"] == "error"
    assert "error" in lab.refused("vm", "create", "never", "--image", "forged")["detail"]
    lab.ok("image", "delete", "forged")
    assert not list((lab.root / "manager").rglob("*.part")) and not list((lab.root / "manager").rglob("*.upload"))


@pytest.mark.parametrize(
    ("file", "form", "said"),
    [
        ("backed.qcow2", "qcow2", "backing file"),
        ("split.qcow2", "qcow2", "data file"),
        ("micro.qcow2", "raw", "qcow2"),
        ("small.raw", "qcow2", "qcow2"),
    ],
)
def test_the_format_is_what_was_stated_and_no_other_file_is_read(
    lab: Lab, files: Path, file: str, form: str, said: str
) -> None:
    problem = lab.refused("image", "import", "sly", str(files / file), "--format", form)
    assert said in problem["detail"], problem
    lab.ok("image", "delete", "sly")


def test_sources_that_cannot_be_read(lab: Lab, files: Path, url: str) -> None:
    for source, said in (
        (f"{url}/none-such", "404"),
        ("http://127.0.0.1:1/none", "cannot be read"),
        (f"file://{files}/none-such", "no file"),
    ):
        assert said in lab.refused("image", "import", "gone", source, "--format", "raw")["detail"]
        lab.ok("image", "delete", "gone")
