"""`scloud manager`."""

from __future__ import annotations

from scloud.cli.options import OutputOption
from scloud.cli.output import Column, emit, show, table
from scloud.cli.session import Output, connect
from scloud.cli.standard import noun

app = noun("Managers: the one that leads, and its standbys.")
COLUMNS = (
    Column("ROLE", lambda it: str(it["role"])),
    Column("API", lambda it: str(it["api"])),
    Column("LINK", lambda it: str(it["link"])),
    Column("ID", lambda it: str(it["id"])),
)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """Who leads, and who would take over."""
    with connect() as client:
        found = client.get("/managers")["items"]
    if output is Output.TABLE:
        show(table(COLUMNS, found))
    else:
        emit(found, output)
