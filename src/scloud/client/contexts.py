"""Contexts: which cloud to talk to and as whom, kept in one file that only its owner can read.

The file is `contexts.json` in `~/.config/scloud` (or the folder named by SCLOUD_CONFIG). SCLOUD_CONTEXT picks another
context than the current one; SCLOUD_URL, SCLOUD_TOKEN and SCLOUD_CA override single values, and with the first two no
file is needed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scloud.client.problems import failure

API_PREFIX = "/api/v1"


@dataclass(frozen=True)
class Context:
    """One cloud as one account: `url` is the manager's root, `ca` a PEM file to trust beside the system's.

    `others` are roots of more managers of the same cloud, for when that one cannot be reached.
    """

    name: str
    url: str
    token: str = field(repr=False)
    ca: Path | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContextFile:
    """What the file says. `current` may name a context that is gone."""

    current: str | None
    contexts: dict[str, Context]


def config_dir() -> Path:
    """The folder of contexts, private keys and known hosts. Not made by this call."""
    override = os.environ.get("SCLOUD_CONFIG")
    return Path(override) if override else Path.home() / ".config" / "scloud"


def private_folder(path: Path) -> Path:
    """The folder, made if needed, readable by its owner only."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, text: str) -> None:
    """Replace the file in one step, mode 0600: a reader sees the old text or the new one."""
    import tempfile  # with its random numbers, too slow for commands that only read

    private_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_contexts() -> ContextFile:
    """The file's contents; empty when there is no file."""
    path = config_dir() / "contexts.json"
    try:
        data: Any = json.loads(path.read_text())
        contexts = {name: _parse(name, entry) for name, entry in data["contexts"].items()}
        return ContextFile(data.get("current"), contexts)
    except FileNotFoundError:
        return ContextFile(None, {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise failure("invalid", f"{path} is not a contexts file: repair it or remove it") from error


def _parse(name: str, entry: dict[str, Any]) -> Context:
    ca = Path(entry["ca"]) if entry.get("ca") else None
    return Context(name, entry["url"], entry["token"], ca, tuple(entry.get("others") or ()))


def _entry(context: Context) -> dict[str, Any]:
    ca = str(context.ca) if context.ca else None
    return {"url": context.url, "token": context.token, "ca": ca, "others": list(context.others)}


def _write(contents: ContextFile) -> None:
    entries = {context.name: _entry(context) for context in contents.contexts.values()}
    text = json.dumps({"current": contents.current, "contexts": entries}, indent=2) + "\n"
    write_private(config_dir() / "contexts.json", text)


def save_context(context: Context, *, make_current: bool = True) -> None:
    """Add or replace a context. The first one becomes the current one in any case."""
    contents = read_contexts()
    known = contents.current in contents.contexts
    current = context.name if make_current or not known else contents.current
    _write(ContextFile(current, {**contents.contexts, context.name: context}))


def use_context(name: str) -> Context:
    """Make a context the current one. NOT_FOUND if there is none of that name."""
    contents = read_contexts()
    context = _find(contents, name)
    _write(replace(contents, current=name))
    return context


def remove_context(name: str) -> bool:
    """Forget a context; whether there was one. If it was the current one, any other left becomes current."""
    contents = read_contexts()
    if name not in contents.contexts:
        return False
    rest = {key: value for key, value in contents.contexts.items() if key != name}
    current = contents.current if contents.current in rest else next(iter(sorted(rest)), None)
    _write(ContextFile(current, rest))
    return True


def _find(contents: ContextFile, name: str) -> Context:
    context = contents.contexts.get(name)
    if context is None:
        known = ", ".join(sorted(contents.contexts)) or "none yet"
        raise failure("not_found", f"there is no context '{name}' (there are: {known})")
    return context


def current_context() -> Context:
    """The context to use now, with the environment's overrides. NOT_FOUND, with what to do, if there is none."""
    environment = os.environ
    url, token = environment.get("SCLOUD_URL"), environment.get("SCLOUD_TOKEN")
    authority = environment.get("SCLOUD_CA")
    wanted = environment.get("SCLOUD_CONTEXT")
    if url and token and not wanted:
        return Context("environment", url, token, Path(authority) if authority else None)
    contents = read_contexts()
    name = wanted or contents.current
    if name is None or (not wanted and name not in contents.contexts):
        raise failure(
            "unavailable",
            "no cloud is known here: start one with `./scloud up` (as root) or `./scloud lab up`, "
            "or add one with `scloud context add NAME --url URL --token TOKEN`",
        )
    context = _find(contents, name)
    return replace(
        context,
        url=url or context.url,
        others=() if url else context.others,
        token=token or context.token,
        ca=Path(authority) if authority else context.ca,
    )
