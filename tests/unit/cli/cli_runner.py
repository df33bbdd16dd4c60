"""Running commands in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from scloud.cli.main import app
from scloud.cli.session import RUN, Output


class Cli:
    """Runs commands in this process; `url` is the fake cloud's."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        RUN.output = Output.TABLE
        result = CliRunner().invoke(app, [str(item) for item in arguments], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def ok(self, *arguments: str, stdin: str | None = None) -> str:
        """stdout of a command that must succeed."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "-o", "json"))
