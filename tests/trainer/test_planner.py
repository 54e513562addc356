"""Cycles: order within a run, fairness between tenants, the budget."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from services.trainer.planner import Cycle, Shares, Waiting, plan

STEP = Waiting("t", 0, joins=False)


def passing(tenant: str, cost: int = 10) -> Waiting:
    return Waiting(tenant, cost, joins=True)


def alone(tenant: str, cost: int = 10) -> Waiting:
    return Waiting(tenant, cost, joins=False)


def carry_out(queues: Mapping[str, deque[Waiting]], shares: Shares, budget: int) -> tuple[Cycle, Shares]:
    """Plans a cycle and takes what it has chosen out of the queues."""
    cycle, shares = plan({run: list(queue) for run, queue in queues.items()}, shares, budget)
    for run in cycle.single:
        assert not queues[run].popleft().joins
    for run, count in cycle.joint.items():
        assert all(queues[run].popleft().joins for _ in range(count))
    return cycle, shares


def test_nothing_waits() -> None:
    assert not plan({}, Shares(), 100)[0]
    assert not plan({"a": []}, Shares(), 100)[0]


def test_passes_of_many_runs_share_a_cycle_up_to_the_budget() -> None:
    waiting = {f"r{i}": [passing(f"t{i}")] for i in range(8)}
    cycle, _ = plan(waiting, Shares(), 1000)
    assert cycle.joint == {f"r{i}": 1 for i in range(8)}
    cycle, _ = plan(waiting, Shares(), 50)
    assert sum(cycle.joint.values()) == 5


def test_consecutive_passes_of_a_run_share_a_cycle_and_stop_at_a_step() -> None:
    cycle, _ = plan({"a": [passing("t"), passing("t"), STEP, passing("t")]}, Shares(), 1000)
    assert cycle == Cycle((), {"a": 2})


def test_a_step_goes_first_and_the_passes_behind_it_join_the_cycle() -> None:
    cycle, _ = plan({"a": [STEP, passing("t"), STEP], "b": [passing("t")], "c": [STEP, STEP]}, Shares(), 1000)
    assert set(cycle.single) == {"a", "c"}
    assert cycle.joint == {"a": 1, "b": 1}


def test_what_must_run_alone_does_not_join() -> None:
    cycle, _ = plan({"a": [alone("t"), passing("t")], "b": [passing("t")]}, Shares(), 1000)
    assert cycle == Cycle(("a",), {"b": 1, "a": 1})


def test_an_operation_above_the_budget_goes_with_nothing_beside_it() -> None:
    queues = {"big": deque([passing("t", 500)]), "small": deque([passing("u")])}
    cycles, shares = [], Shares()
    while any(queues.values()):
        cycle, shares = carry_out(queues, shares, 100)
        cycles.append(cycle.joint)
    assert sorted(cycles, key=str) == [{"big": 1}, {"small": 1}]


def test_a_flood_delays_a_light_tenant_by_one_cycle() -> None:
    queues = {"flood": deque(passing("heavy", 100) for _ in range(100)), "light": deque[Waiting]()}
    shares = Shares()
    for cycle_number in range(40):
        if cycle_number % 4 == 0:
            queues["light"].append(passing("light", 10))
        cycle, shares = carry_out(queues, shares, 120)
        assert not queues["light"], "what the light tenant asks for is in the very next cycle"
        assert cycle.joint.get("flood", 0) == 1


def test_many_runs_of_one_tenant_weigh_no_more_than_one_run_of_another() -> None:
    queues = {f"h{i}": deque(passing("heavy") for _ in range(1000)) for i in range(20)}
    queues["light"] = deque(passing("light") for _ in range(1000))
    shares, counts = Shares(), Counter[str]()
    for _ in range(100):
        cycle, shares = carry_out(queues, shares, 40)
        counts.update(cycle.joint)
    assert counts["light"] == 200
    per_run = [counts[f"h{i}"] for i in range(20)]
    assert max(per_run) - min(per_run) <= 1, "and its own runs take turns"


def test_unequal_jobs_get_equal_shares() -> None:
    queues = {"a": deque(passing("a", 90) for _ in range(500)), "b": deque(passing("b", 10) for _ in range(500))}
    shares, served = Shares(), Counter[str]()
    for _ in range(45):
        before = {run: sum(op.cost for op in queue) for run, queue in queues.items()}
        _, shares = carry_out(queues, shares, 100)
        served.update({run: before[run] - sum(op.cost for op in queue) for run, queue in queues.items()})
    assert abs(served["a"] - served["b"]) <= 100


def test_a_pause_earns_no_credit() -> None:
    queues = {"a": deque(passing("a") for _ in range(1000)), "b": deque([passing("b")])}
    shares = Shares()
    for _ in range(100):
        _, shares = carry_out(queues, shares, 20)
    queues["b"].extend(passing("b") for _ in range(100))
    counts = Counter[str]()
    for _ in range(10):
        cycle, shares = carry_out(queues, shares, 20)
        counts.update(cycle.joint)
    assert abs(counts["a"] - counts["b"]) <= 1


def test_those_who_are_gone_are_forgotten() -> None:
    shares = Shares()
    for index in range(100):
        _, shares = plan({f"r{index}": [passing(f"t{index}")]}, shares, 100)
    assert len(shares.tenants) <= 2
    assert len(shares.runs) == 1
