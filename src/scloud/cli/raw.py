"""`scloud api`: any request, for what has no command, and for trying things out."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer

from scloud.cli.options import OutputOption
from scloud.cli.output import emit
from scloud.cli.session import Output, connect


class Method(StrEnum):
    GET = "GET"
    POST = "POST"
    PATCH = "PATCH"
    PUT = "PUT"
    DELETE = "DELETE"


def api(
    method: Annotated[Method, typer.Argument(metavar="METHOD", help="GET, POST ...", case_sensitive=False)],
    where: Annotated[str, typer.Argument(metavar="PATH", help="Below /api/v1, such as vms or /vms?limit=5.")],
    body: Annotated[str | None, typer.Argument(metavar="[JSON]", help="The body; - reads it from stdin.")] = None,
    output: OutputOption = Output.JSON,
) -> None:
    """Call the REST API and print its answer."""
    try:
        data = None if body is None else json.loads(sys.stdin.read() if body == "-" else body)
    except ValueError as error:
        raise typer.BadParameter(f"the body is not JSON: {error}", param_hint="'JSON'") from error
    with connect() as client:
        answer = client.request(method.value, where, json=data)
    if isinstance(answer, str):
        sys.stdout.write(answer)
    elif answer is not None:
        emit(answer, Output.JSON if output is Output.TABLE else output)
