"""The whole trial: programs under which everything is counted every minute, a rest, and what is left then."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import tinker_client as tinker
from tests.chaos.site import BASE_MODEL, TENANTS, Site
from tests.soak.census import Census, take_census
from tests.soak.growth import memory_that_grows, table
from tests.soak.leftovers import leftovers
from tests.soak.programs import PATIENCE_S, Program

SETTLE_S = 60.0
"""Within which everything is gone that nobody needs, once all programs have ended."""

SETTINGS: Mapping[str, Any] = {"snapshot_steps": 3, "snapshot_log_entries": 24, "snapshot_share": 0.2}
"""Snapshots so often that logs are trimmed within a session."""

LIFETIMES: Mapping[str, Any] = {
    "services.core.catalog.pins.KEEP_AFTER_END": timedelta(seconds=2),
    "services.core.catalog.pins.LOOK_AGAIN": timedelta(seconds=1),
    "services.gateway.main.EXPIRE_EVERY": timedelta(seconds=1),
    "services.gateway.main.SWEEP_EVERY": timedelta(seconds=1),
    "services.gateway.http.openai.targets.SESSION_S": 2.0,
}
"""Shortened, so that what has served its time goes while somebody looks."""


@dataclass(frozen=True)
class Trial:
    """What came out."""

    programs: Sequence[Program]
    censuses: Sequence[Census]
    faults: Sequence[str]

    def summary(self) -> str:
        """For a person."""
        sessions, rounds = sum(p.sessions for p in self.programs), sum(p.rounds for p in self.programs)
        minutes = (self.censuses[-1].at_s - self.censuses[0].at_s) / 60
        lines = [f"{sessions} sessions, {rounds} rounds, {minutes:.1f} minutes", table(self.censuses)]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults[:100]), f"{len(self.faults)} faults"])


def run_trial(
    model_dir: Path,
    directory: Path,
    *,
    seconds: float,
    every_s: float,
    rest_s: float,
    report: Callable[[str], None],
) -> Trial:
    """Runs the programs for so long, and counts so often."""
    site = Site(model_dir, directory / "data", SETTINGS, LIFETIMES)
    try:
        programs = _programs(site, directory, rest_s)
        threads = [threading.Thread(target=program.run, name=program.tenant, daemon=True) for program in programs]
        for thread in threads:
            thread.start()
        censuses = _count(site, programs, seconds, every_s, report)
        for program in programs:
            program.ended.set()
        for thread in threads:
            thread.join()
        censuses.append(take_census(site))
        faults = [f"{p.tenant}: {type(p.failure).__name__}: {p.failure}" for p in programs if p.failure is not None]
        faults += [f"died: {name}" for name in site.revive()]
        return Trial(programs, censuses, faults + memory_that_grows(censuses) + _left(site))
    finally:
        site.stop()


def _programs(site: Site, directory: Path, rest_s: float) -> list[Program]:
    keys = site.start()
    urls = [f"grpc://127.0.0.1:{port}" for port in site.gateway_ports]
    http_urls = [f"http://127.0.0.1:{port}" for port in site.http_ports]
    with tinker.ServiceClient(base_url=urls[0], api_key=keys[TENANTS[0]]) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=4)
        shared = training.save_weights_for_sampler("shared").result(PATIENCE_S).path
        service.create_rest_client().publish_checkpoint_from_tinker_path(shared).result(PATIENCE_S)
    return [
        Program(tenant, urls[i % 2], http_urls[i % 2], keys[tenant], shared, directory / tenant, rest_s)
        for i, tenant in enumerate(TENANTS)
    ]


def _count(
    site: Site, programs: Sequence[Program], seconds: float, every_s: float, report: Callable[[str], None]
) -> list[Census]:
    """A census every so often until the time is over or a program has failed."""
    started = time.monotonic()
    censuses = [take_census(site)]
    while (passed := time.monotonic() - started) < seconds and not any(program.failure for program in programs):
        time.sleep(min(every_s, seconds - passed))
        censuses.append(take_census(site))
        report(f"{passed / 60:.1f} of {seconds / 60:.1f} minutes, {sum(p.rounds for p in programs)} rounds")
    return censuses


def _left(site: Site) -> list[str]:
    """What is there that nobody needs, after the time that it takes to go."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        is_late = time.monotonic() > deadline
        found = asyncio.run(leftovers(site))
        if not found or is_late:
            return found
        time.sleep(0.2)
