"""Errors on stderr: one plain sentence and what to do, or problem+json; and the exit code."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

from scloud.cli.human import clean
from scloud.cli.looks import BY_KIND
from scloud.cli.session import RUN, Output

if TYPE_CHECKING:
    from scloud.model.errors import CloudError

FAILED, USAGE, NOT_FOUND = 1, 2, 3

_HINTS = {
    "unauthenticated": "`scloud context show` tells which cloud and account this is; a new token comes from "
    "`scloud token create`, or from the administrator.",
    "forbidden": "Ask an administrator, or use an administrator's context (`scloud context use NAME`).",
    "no_capacity": "`scloud node list` shows what is there; `scloud vm create ... --dry-run` tells why each node "
    "does not fit.",
    "internal": "The manager's log has the details; `scloud status` shows its health.",
}


def exit_code(error: CloudError) -> int:
    """3 for what does not exist, 2 for values that break a rule, else 1."""
    return {"not_found": NOT_FOUND, "invalid": USAGE}.get(error.kind.value, FAILED)


def hint(error: CloudError) -> str:
    """What to do, where the message cannot know."""
    if "`" in error.message:
        return ""
    if error.kind.value == "not_found":
        match = re.match(r"there is no ([a-z-]+) '", error.message)
        known = match is not None and match[1] in (*BY_KIND, "token", "context")
        return f"`scloud {match[1]} list` shows what there is." if match and known else ""
    if error.kind.value == "in_use":
        return "Delete or detach its users first." if error.users else ""
    return _HINTS.get(error.kind.value, "")


def report(error: CloudError) -> None:
    """Print the error in the form that the command's -o asks for."""
    if RUN.output is Output.JSON:
        from scloud.client.problems import as_problem

        print(json.dumps(as_problem(error), indent=2), file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    message = clean(error.message).rstrip(".")
    console.print(Text.assemble(("Error: ", "bold red"), f"{message}."))
    if not (len(error.fields) == 1 and error.fields[0].rule in error.message):
        for item in error.fields:
            console.print(Text(clean(f"  {item.field}: {item.rule}")))
    if error.users:
        console.print(Text(clean(f"  in use by: {', '.join(error.users)}")))
    if advice := hint(error):
        console.print(Text(advice, style="dim"))
