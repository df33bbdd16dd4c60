"""From the answer to a write to its end: waiting with progress, then printing what has become of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from scloud.cli.human import clean
from scloud.cli.listing import print_resource, print_resources
from scloud.cli.looks import BY_KIND, OPERATION
from scloud.cli.options import How
from scloud.cli.output import Resource, emit, note, say
from scloud.cli.session import Output

if TYPE_CHECKING:
    from scloud.client.http import Client, Progress
    from scloud.model.errors import CloudError

Shown = Literal["created", "changed", "gone"]


def each(names: Sequence[str], ask: Callable[[str], Resource]) -> tuple[list[Resource], list[CloudError]]:
    """Ask for the same with every name: the answers, and the errors of those that were refused."""
    from scloud.model.errors import CloudError

    answers, errors = [], []
    for name in names:
        try:
            answers.append(ask(name))
        except CloudError as error:
            errors.append(error)
    return answers, errors


def settle_each(
    client: Client, names: Sequence[str], ask: Callable[[str], Resource], how: How, said: str, shown: Shown
) -> None:
    """`settle` for one name or several. A name that is refused does not keep the others from being done."""
    if len(names) == 1:
        settle(client, ask(names[0]), how, said, shown)
        return
    answers, errors = each(names, ask)
    if answers:
        settle(client, answers, how, said, shown)
    for error in errors[1:]:
        note(error.message)
    if errors:
        raise errors[0]


def _farewell(resource: Resource, said: str) -> str:
    """What has gone is called by the name it had: in the trash a disk has another."""
    former = (resource.get("spec") or {}).get("former_name")
    if former is None:
        return f"{resource['name']} {said}"
    if resource["status"]["state"] != "trashed":
        return f"{former} {said}"
    return f"{former} {said}: it is in the trash, `scloud disk restore {former}` brings it back"


def settle(client: Client, answers: Resource | Sequence[Resource], how: How, said: str, shown: Shown) -> None:
    """Wait for the operations of one or several answers and print the outcome; `said` is the past tense of the verb.

    What was `created` is printed whole. For what was `changed` or is `gone` people get one line, programs the resource
    or, when that is gone, the operation. A list of answers is printed as a list. Raises the first error, after all
    have ended.
    """
    several = not isinstance(answers, Mapping) or "operations" in answers
    operations, resources = _parts([answers] if isinstance(answers, Mapping) else answers)
    if not how.wait:
        _print(client, "operation", operations, several, how.output)
        return
    ended, errors = await_operations(client, operations, how.timeout)
    done = [resource for resource, operation in zip(resources, ended, strict=True) if operation["state"] == "done"]
    if shown == "gone":
        if how.output is Output.TABLE:
            for resource in done:
                say(_farewell(resource, said))
        elif not errors:
            emit(ended if several else ended[0], how.output)
    elif done:
        fresh = [_reload(client, resource) for resource in done]
        if shown == "created" or how.output is not Output.TABLE:
            _print(client, fresh[0]["kind"], fresh, several, how.output)
        else:
            for resource in fresh:
                reason = (resource.get("status") or {}).get("reason")
                say(f"{resource['name']} {said}" + (f": {reason}" if reason else ""))
    if errors:
        raise errors[0]


def _parts(answers: Sequence[Resource]) -> tuple[list[Resource], list[Resource]]:
    operations: list[Resource] = []
    resources: list[Resource] = []
    for answer in answers:
        operations += answer["operations"] if "operations" in answer else [answer["operation"]]
        resources += answer["resources"] if "resources" in answer else [answer["resource"]]
    return operations, resources


def _reload(client: Client, resource: Resource) -> Resource:
    fresh: Resource = client.get(f"/{BY_KIND[resource['kind']].collection}/{resource['id']}")
    return fresh


def _print(client: Client, kind: str, items: list[Resource], several: bool, output: Output) -> None:
    look = BY_KIND.get(kind, OPERATION)
    if several:
        print_resources(client, look, items, output)
    else:
        print_resource(client, look, items[0], output)


def await_operations(
    client: Client, operations: Sequence[Resource], timeout: float | None = None
) -> tuple[list[Resource], list[CloudError]]:
    """The operations as they ended, and the errors of those that did not end done."""
    from scloud.client.problems import from_operation

    ended = []
    try:
        with progress() as on_progress:
            for operation in operations:
                over = operation["state"] in ("done", "failed", "cancelled")
                ended.append(operation if over else client.wait(operation["id"], on_progress, timeout))
    except KeyboardInterrupt:
        left = [operation["id"] for operation in operations[len(ended) :]]
        note(f"It goes on without you: `scloud operation wait {' '.join(left[:3])}{' ...' if left[3:] else ''}`")
        raise
    return ended, [from_operation(operation) for operation in ended if operation["state"] != "done"]


@contextmanager
def progress() -> Iterator[Progress]:
    """Where operations report to: a bar each on a terminal's stderr, else a line whenever there is news."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}", markup=False, style="dim"),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        tasks: dict[str, Any] = {}

        def update(operation: Mapping[str, Any]) -> None:
            key = operation["id"]
            if key not in tasks:
                tasks[key] = bars.add_task(clean(title(operation)), total=100, said="")
            done = operation["state"] == "done"
            said = clean(operation.get("message") or operation["state"])
            bars.update(tasks[key], completed=100 if done else operation["progress"], said=said, visible=not done)

        yield update


def title(operation: Mapping[str, Any]) -> str:
    """`vm.create web-1`"""
    return f"{operation['action']} {(operation.get('resource') or {}).get('name') or ''}".rstrip()


class _Lines:
    """Progress for what is not a terminal."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __call__(self, operation: Mapping[str, Any]) -> None:
        said = operation.get("message") or operation["state"]
        if operation["state"] not in ("queued", "running") or self._last.get(operation["id"]) == said:
            return
        self._last[operation["id"]] = said
        note(f"{title(operation)}: {operation['progress']}% {said}")
