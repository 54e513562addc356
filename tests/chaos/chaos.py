"""The whole trial: programs under faults, the same programs undisturbed, and everything compared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.comparison import differences, faults_of_operations
from tests.chaos.fault_injector import FaultInjector
from tests.chaos.programs import Program
from tests.chaos.site import KINDS, TENANTS, Site

AFTERMATH_S = 60.0
UNDISTURBED_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Trial:
    """What came out."""

    injector: FaultInjector
    programs: Sequence[Program]
    operations: int
    faults_s: float
    aftermath_s: float
    faults: Sequence[str]

    def summary(self) -> str:
        """For a person."""
        injector = self.injector
        killed = ", ".join(f"{injector.killed[kind]} {kind}" for kind in KINDS)
        paused = ", ".join(f"{injector.paused[kind]} {kind}" for kind in KINDS)
        lines = [
            f"seed {injector.seed}: {injector.killed.total()} killed ({killed}), "
            f"{injector.paused.total()} paused ({paused})",
            f"{sum(p.rounds for p in self.programs)} rounds, {self.operations} answers compared, {self.faults_s:.0f} s",
            f"slowest recovery of work under way {injector.slowest_recovery_s:.1f} s; all results there "
            f"{self.aftermath_s:.1f} s after the last hit",
        ]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults), f"{len(self.faults)} faults"])


def run_trial(model_dir: Path, directory: Path, *, kills: int, seed: int, report: Callable[[str], None]) -> Trial:
    """Runs the programs under faults and then, as many rounds of them, undisturbed."""
    disturbed, undisturbed = Site(model_dir, directory / "disturbed"), Site(model_dir, directory / "undisturbed")
    try:
        programs = _programs(disturbed, seed)
        injector = FaultInjector(
            disturbed, kills, seed, lambda: [run for p in programs for run in list(p.runs)], report
        )
        threads = _start(programs)
        started = time.monotonic()
        injector.run()
        faults_s = time.monotonic() - started
        for program in programs:
            program.ended.set()
        faults = _join(programs, threads, AFTERMATH_S)
        aftermath_s = time.monotonic() - started - faults_s
        faults += faults_of_operations(disturbed.redis_url) + [
            f"died on its own: {name}" for name in injector.died_alone
        ]
        report("the same programs, undisturbed")
        if not any(program.failure for program in programs):
            again = _programs(undisturbed, seed, [program.rounds for program in programs])
            faults += _join(again, _start(again), UNDISTURBED_TIMEOUT_S)
            faults += differences(programs, again, disturbed.data_dir, undisturbed.data_dir)
        answers = sum(len(program.notes) for program in programs)
        return Trial(injector, programs, answers, faults_s, aftermath_s, faults)
    finally:
        disturbed.stop()
        undisturbed.stop()


def _programs(site: Site, seed: int, rounds: Sequence[int | None] = (None,) * len(TENANTS)) -> list[Program]:
    keys = site.start()
    return [
        Program(tenant, f"grpc://127.0.0.1:{site.gateway_ports[i % 2]}", keys[tenant], 100 * seed + i, rounds[i])
        for i, tenant in enumerate(TENANTS)
    ]


def _start(programs: Sequence[Program]) -> list[threading.Thread]:
    threads = [threading.Thread(target=program.run, name=program.tenant, daemon=True) for program in programs]
    for thread in threads:
        thread.start()
    return threads


def _join(programs: Sequence[Program], threads: Sequence[threading.Thread], timeout_s: float) -> list[str]:
    deadline = time.monotonic() + timeout_s
    faults = []
    for program, thread in zip(programs, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            faults.append(f"{program.tenant}: no end {timeout_s:.0f} s after the last hit")
            thread.join()
        if program.failure is not None:
            faults.append(f"{program.tenant}: {type(program.failure).__name__}: {program.failure}")
    return faults
