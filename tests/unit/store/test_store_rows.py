"""Work items, leases, counters, claims, references: the small tables that everything leans on."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, SecurityGroupSpec, VpcSpec
from scloud.model.statuses import DiskStatus, Status
from scloud.store import nodes, operations, tables, tokens
from scloud.store.database import Store, Tx
from scloud.store.lease import Holder, take_lease
from scloud.store.operations import OperationState
from scloud.store.resources import (
    Resource,
    claim_value,
    claimed,
    create,
    find,
    get,
    page,
    refer,
    referred_to,
    remove,
    save,
    unrefer,
    users_of,
)
from support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    made = Store("sqlite://", clock=clock, rng=random.Random(3), inline=True)
    tables.metadata.create_all(made.engine)
    yield made
    made.close()


def vpc(tx: Tx, name: str = "net", account: str = "acc-1") -> Resource:
    return create(tx, Kind.VPC, account, name, VpcSpec(vni=1), Status(state=State.READY))


# --- work items


def test_a_work_item_asked_for_again_while_it_is_done_is_done_again(store: Store) -> None:
    store.write_now(lambda tx: operations.enqueue(tx, "vm/1"))
    [item] = store.read_now(operations.due)
    store.write_now(lambda tx: operations.enqueue(tx, "vm/1"))
    store.write_now(lambda tx: operations.finish(tx, item))
    [again] = store.read_now(operations.due)
    assert again.version == item.version + 1
    store.write_now(lambda tx: operations.finish(tx, again))
    assert store.read_now(operations.due) == []
    assert store.read_now(operations.next_due) is None


def test_a_work_item_is_tried_again_later(store: Store, clock: Clock) -> None:
    store.write_now(lambda tx: operations.enqueue(tx, "vm/1"))
    [item] = store.read_now(operations.due)
    store.write_now(lambda tx: operations.retry(tx, item, delay=60))
    assert store.read_now(operations.due) == []
    clock.advance(61)
    [later] = store.read_now(operations.due)
    assert later.attempts == 1
    store.write_now(lambda tx: operations.enqueue(tx, "vm/1"))
    store.write_now(lambda tx: operations.retry(tx, later, delay=60))  # overtaken by the new request
    assert [found.attempts for found in store.read_now(operations.due)] == [0]


# --- names that the writer remembers


def test_what_is_remembered_of_a_name_is_what_a_reader_finds(store: Store) -> None:
    """Made, renamed, changed, undone, taken by another, removed: after each, the writer finds what is there."""

    def group(name: str, account: str = "acc-1") -> Resource:
        return store.write_now(
            lambda tx: create(tx, Kind.SECURITY_GROUP, account, name, SecurityGroupSpec(), Status(state=State.READY))
        )

    def found(tx: Tx) -> list[Resource | None]:
        result: list[Resource | None] = []
        for name in ("a", "b", first.id):
            for account in ("acc-1", "acc-2", None):
                try:
                    result.append(get(tx, Kind.SECURITY_GROUP, name, account))
                except CloudError:
                    result.append(None)
        return result

    def agree() -> int:
        seen = store.write_now(found)
        assert seen == store.write_now(found) == store.read_now(found)
        return sum(row is not None for row in seen)

    def undone(tx: Tx) -> None:
        save(tx, first, name="b")
        assert get(tx, Kind.SECURITY_GROUP, "b", "acc-1").id == first.id
        raise CloudError(ErrorKind.CONFLICT, "no")

    first = group("a")
    assert agree() == 3
    with pytest.raises(CloudError, match="no"):
        store.write_now(undone)
    assert agree() == 3
    first = store.write_now(lambda tx: save(tx, first, name="b"))
    assert agree() == 3
    first = store.write_now(lambda tx: save(tx, first, status=Status(state=State.UPDATING, reason="x")))
    assert agree() == 3
    other = group("a")
    group("b", "acc-2")
    assert agree() == 5
    store.write_now(lambda tx: remove(tx, first))
    assert agree() == 2
    store.write_now(lambda tx: save(tx, other, name=other.id, gone=True))
    assert agree() == 1


# --- operations


def test_an_operation_ends_once(store: Store) -> None:
    def make(tx: Tx) -> operations.Operation:
        return operations.begin(tx, "vpc.create", vpc(tx), seconds=10)

    op = store.write_now(make)
    store.write_now(lambda tx: operations.end(tx, op, OperationState.FAILED, "no", code="engine"))
    store.write_now(lambda tx: operations.end(tx, op, OperationState.DONE, "yes"))
    store.write_now(lambda tx: operations.progress(tx, op.id, 50, "half"))
    found = store.read_now(lambda tx: operations.get(tx, op.id, "acc-1"))
    assert found is not None and (found.state, found.message, found.progress) == ("failed", "no", 0)
    assert store.read_now(lambda tx: operations.get(tx, op.id, "acc-2")) is None


def test_only_what_is_over_its_deadline_is_overdue(store: Store, clock: Clock) -> None:
    def make(tx: Tx) -> list[str]:
        row = vpc(tx)
        return [operations.begin(tx, "vpc.x", row, seconds=seconds).id for seconds in (10, 1000)]

    short, _long = store.write_now(make)
    assert store.read_now(lambda tx: operations.overdue(tx, tx.now)) == []
    clock.advance(11)
    assert [op.id for op in store.read_now(lambda tx: operations.overdue(tx, tx.now))] == [short]


def test_history_is_bounded_and_what_is_open_stays(store: Store, clock: Clock) -> None:
    def make(tx: Tx) -> None:
        row = vpc(tx)
        operations.end(tx, operations.begin(tx, "vpc.old", row, seconds=10), OperationState.DONE, "done")
        operations.begin(tx, "vpc.open", row, seconds=10)
        operations.record(tx, row, "info", "old")

    store.write_now(make)
    clock.advance(100)
    now = clock()
    store.write_now(lambda tx: operations.forget_old(tx, events_before=now, operations_before=now))
    rows, _ = store.read_now(lambda tx: operations.page(tx, None, limit=10))
    assert [op.action for op in rows] == ["vpc.open"]
    assert store.read_now(lambda tx: operations.events(tx, None, limit=10)) == ([], None)


# --- lease, counters, tokens


def test_an_epoch_rises_with_every_change_of_hands(store: Store, clock: Clock) -> None:
    take = lambda who, **more: store.write_now(lambda tx: take_lease(tx, Holder(id=who, api="", link=""), 10, **more))  # noqa: E731
    assert take("a") == 1
    assert take("a") == 1
    assert take("b") is None
    assert take("b", alone=True) == 2
    assert take("a") is None
    clock.advance(11)
    assert take("a") == 3


def test_counters_count(store: Store) -> None:
    assert [store.write_now(lambda tx: tokens.next_number(tx, "x")) for _ in range(3)] == [1, 2, 3]
    assert store.write_now(lambda tx: tokens.next_number(tx, "y")) == 1


def test_a_token_is_found_by_its_secret_for_its_purpose_and_time(store: Store, clock: Clock) -> None:
    store.write_now(lambda tx: tokens.add(tx, "acc-1", "t", "secret", ttl_s=10))
    store.write_now(lambda tx: tokens.add(tx, "nod-1", "join", "other", purpose="join"))
    find_ = lambda secret, **more: store.read_now(lambda tx: tokens.find(tx, secret, **more))  # noqa: E731
    assert find_("secret").account == "acc-1"
    assert find_("secret", purpose="join") is None and find_("other") is None and find_("no") is None
    assert find_("other", purpose="join").account == "nod-1"
    clock.advance(11)
    assert find_("secret") is None


# --- resources, references, claims


def test_generations_and_tombstones(store: Store) -> None:
    row = store.write_now(vpc)
    renamed = store.write_now(lambda tx: save(tx, row, name="other"))
    changed = store.write_now(lambda tx: save(tx, renamed, spec=VpcSpec(vni=2)))
    assert (row.generation, renamed.generation, changed.generation) == (1, 1, 2)
    assert store.read_now(lambda tx: find(tx, row.id)) == changed
    store.write_now(lambda tx: save(tx, changed, name=row.id, gone=True))
    assert store.read_now(lambda tx: find(tx, row.id)) is None
    assert store.read_now(lambda tx: find(tx, row.id, gone=True)) is not None
    with pytest.raises(CloudError):
        store.read_now(lambda tx: get(tx, Kind.VPC, row.id, "acc-1"))
    assert store.read_now(lambda tx: page(tx, Kind.VPC, "acc-1", limit=10)) == ([], None)
    store.write_now(lambda tx: vpc(tx, "other"))


def test_a_row_is_what_was_written(store: Store) -> None:
    spec = DiskSpec(size_mib=5, image="img-1", system=True)
    status = DiskStatus(state=State.CREATING, reason='é " \\ \u2028', used_mib=1)
    row = store.write_now(lambda tx: create(tx, Kind.DISK, "acc-1", "d", spec, status, node="nod-1", parent="vm-1"))
    found = store.read_now(lambda tx: find(tx, row.id))
    assert found == row and found is not None
    assert found.spec_as(DiskSpec) == spec and found.status_as(DiskStatus) == status


def test_references_go_with_their_source(store: Store) -> None:
    def make(tx: Tx) -> tuple[Resource, Resource]:
        user, used = vpc(tx, "user"), vpc(tx, "used")
        for _ in range(2):
            refer(tx, user.id, used.id, "a")
        refer(tx, user.id, used.id, "b")
        claim_value(tx, "ip:x", "10.0.0.3", user.id)
        return user, used

    user, used = store.write_now(make)
    assert [row.id for row in store.read_now(lambda tx: users_of(tx, used.id))] == [user.id]
    store.write_now(lambda tx: unrefer(tx, user.id, role="a"))
    assert store.read_now(lambda tx: referred_to(tx, used.id))
    store.write_now(lambda tx: save(tx, user, gone=True))
    assert store.read_now(lambda tx: users_of(tx, used.id)) == []
    assert store.read_now(lambda tx: referred_to(tx, used.id))
    store.write_now(lambda tx: remove(tx, user))
    assert not store.read_now(lambda tx: referred_to(tx, used.id))
    assert store.read_now(lambda tx: claimed(tx, "ip:x")) == set()


def test_a_claim_has_one_owner(store: Store) -> None:
    take = lambda owner: store.write_now(lambda tx: claim_value(tx, "mac", "06", owner))  # noqa: E731
    assert [take("a"), take("a"), take("b")] == [True, True, False]


def test_promises_add_up(store: Store) -> None:
    for cpus in (3, 4, -2):
        store.write_now(lambda tx, cpus=cpus: nodes.promise(tx, "nod-1", cpus=cpus, memory_mib=10))
    assert store.read_now(lambda tx: nodes.usage_of(tx, "nod-1")) == nodes.Usage("nod-1", 5, 30, 0)
    store.write_now(lambda tx: nodes.forget(tx, "nod-1"))
    assert store.read_now(lambda tx: nodes.usage_of(tx, "nod-1")) == nodes.Usage("nod-1")
