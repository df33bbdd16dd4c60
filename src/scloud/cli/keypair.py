"""`scloud keypair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scloud.cli.follow import settle
from scloud.cli.looks import KEYPAIR
from scloud.cli.options import How, with_how
from scloud.cli.output import note
from scloud.cli.session import connect
from scloud.cli.standard import add_delete, add_list, add_rename, add_show, noun

app = noun("Keypairs: SSH keys that new VMs let in.")


@app.command("create")
@with_how
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key",
            metavar="FILE",
            help="An OpenSSH public key.",
            show_default="a new ed25519 key, kept in ~/.config/scloud/keys",
        ),
    ] = None,
    *,
    how: How,
) -> None:
    """Register a public key, or make a pair whose private half stays on this machine."""
    with connect() as client:
        made = None
        if public_key is None:
            public, made = _own_key(name)
        else:
            public = _read(public_key)
        try:
            answer = client.post("/keypairs", {"name": name, "spec": {"public_key": public}})
        except BaseException:
            if made:
                made.unlink(missing_ok=True)
                made.with_name(f"{made.name}.pub").unlink(missing_ok=True)
            raise
        if made:
            note(f"The private key is {made}")
        settle(client, answer, how, "created", "created")


def _own_key(name: str) -> tuple[str, Path | None]:
    """The public half of this machine's key of that name, and its file if this call made it."""
    from scloud.client.keys import ensure_key

    if "/" in name or name.startswith("."):
        raise typer.BadParameter(f"'{name}' cannot be the name of a key", param_hint="'NAME'")
    key = ensure_key(name)
    if not key.made:
        note(f"Using the private key that is there already: {key.path}")
    return key.public_key, key.path if key.made else None


def _read(file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="'--public-key'") from error
    if "PRIVATE KEY" in text:
        raise typer.BadParameter(f"{file} is a private key; its public half ends in .pub", param_hint="'--public-key'")
    return text


add_list(app, KEYPAIR)
add_show(app, KEYPAIR)
add_rename(app, KEYPAIR)
add_delete(app, KEYPAIR)
