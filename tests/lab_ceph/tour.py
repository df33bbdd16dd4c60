"""The page docs/tour.md as a newcomer follows it: its commands, one after the other, in one shell.

`python -m lab_ceph.tour` (in tests/, as root) follows it and writes what the commands print back into the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "tour.md"
_BLOCK = re.compile(r"(```console\n)(.*?)(```)", re.DOTALL)
_PROMPT = "# "
_END = "--- the command has ended with"
_CONTEXT = re.compile(r" --context lab-\w+")
"""Said where the lab is not in the usual place, as here, so that others go on."""
MOVED = re.compile(r"vm migrate web --to (n\d)")
"""Where to depends on where the scheduler has put the VM."""


@dataclass(frozen=True)
class Step:
    command: str
    output: str
    code: int


class Shell:
    """A shell that is given commands; `environment` is all it has from outside."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash"], cwd=REPOSITORY, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: str) -> Step:
        assert self._bash.stdin is not None and self._bash.stdout is not None
        # The command must not read what the shell is to be told next, as ssh would.
        self._bash.stdin.write(f"{{ {command}\n}} < /dev/null\nprintf '\\n%s %d\\n' '{_END}' $?\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(_END):
                return Step(command, "\n".join(lines).strip("\n"), int(line.split()[-1]))
            lines.append(line.rstrip())
        raise AssertionError(f"the shell has ended in: {command}: {lines}")

    def end(self) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.close()
        self._bash.wait(60)


@contextmanager
def newcomer() -> Iterator[Shell]:
    """Somebody with a terminal of 80 columns and no cloud; the lab is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sclab-") as name:
        Path(name).chmod(0o711)
        own = {key: value for key, value in os.environ.items() if not key.startswith("SCLOUD_")}
        folders = {"SCLOUD_CONFIG": f"{name}/config", "SCLOUD_LAB_ROOT": f"{name}/lab"}
        shell = Shell({**own, **folders, "COLUMNS": "80"})
        try:
            yield shell
        finally:
            shell.run("./scloud lab down --purge")
            shell.end()


def follow(shell: Shell, told: Callable[[Step], None]) -> tuple[str, list[Step]]:
    """The page with what its commands print now, and each of them. AssertionError for one that fails."""
    text, steps = PAGE.read_text(), []
    names: dict[str, str] = {}

    def block(found: re.Match[str]) -> str:
        asked = [line.removeprefix(_PROMPT) for line in found[2].splitlines() if line.startswith(_PROMPT)]
        shown: list[str] = []
        for written in asked:
            moved = MOVED.search(written)
            if moved is not None:
                names.update(_elsewhere(shell, moved[1]))
            command = re.sub(r"\bn\d\b", lambda node: names.get(node[0], node[0]), written)
            step = shell.run(command)
            step = replace(step, output=_CONTEXT.sub("", step.output))
            told(step)
            assert step.code == 0, f"{command}: {step.output}"
            steps.append(step)
            shown += [f"{_PROMPT}{command}", *([step.output] if step.output else [])]
        return found[1] + "\n".join(shown) + "\n" + found[3]

    return _BLOCK.sub(block, text), steps


def _elsewhere(shell: Shell, target: str) -> dict[str, str]:
    """Names to say instead, where the page's target has one of the two VMs already."""
    taken = set(re.findall(r"\bn\d\b", shell.run("./scloud vm list").output))
    return {target: min({"n1", "n2", "n3"} - taken, default=target)} if target in taken else {}


def main() -> None:
    with newcomer() as shell:
        page, _ = follow(shell, lambda step: print(f"# {step.command}\n{step.output}", flush=True))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
