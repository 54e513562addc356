"""What a disturbed and an undisturbed run of the same programs have in common, and what holds for each alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import redis

from services.core.queue import keyspace
from services.core.storage.files import PARTIAL_PREFIX
from tests.chaos.programs import Program


def faults_of_operations(redis_url: str) -> list[str]:
    """Operations without a result, with more than one, or that failed."""
    faults = []
    with redis.Redis.from_url(redis_url) as commands:
        prefix = keyspace.operation("")
        names = [key.decode().removeprefix(prefix) for key in commands.scan_iter(f"{prefix}*", count=10_000)]
        pipeline = commands.pipeline(transaction=False)
        for name in names:
            pipeline.hget(keyspace.operation(name), "state")
        states = dict(zip(names, pipeline.execute(), strict=True))
        announced = Counter(fields[b"operation"].decode() for _, fields in commands.xrange(keyspace.EVENTS))
        dead = commands.xlen(keyspace.DEAD)
    faults += [f"{name} is {state.decode()}" for name, state in states.items() if state != b"succeeded"]
    faults += [f"{name} was announced {count} times" for name, count in announced.items() if count != 1]
    faults += [f"{name} was never announced" for name in states.keys() - announced.keys()]
    return faults + ([f"{dead} jobs are given up as deadly"] if dead else [])


def differences(
    disturbed: Sequence[Program], undisturbed: Sequence[Program], disturbed_data: Path, undisturbed_data: Path
) -> list[str]:
    """Where answers or checkpoints are not the same bits."""
    found = []
    for one, other in zip(disturbed, undisturbed, strict=True):
        if len(one.notes) != len(other.notes):
            found.append(f"{one.tenant}: {len(one.notes)} answers under faults, {len(other.notes)} undisturbed")
        pairs = enumerate(zip(one.notes, other.notes, strict=False))
        unequal = [i for i, (answer, again) in pairs if repr(answer) != repr(again)]
        if unequal:
            found.append(f"{one.tenant}: {len(unequal)} answers differ, the first is number {unequal[0]}")
        files, others = _files(one, disturbed_data), _files(other, undisturbed_data)
        found += [f"{one.tenant}: {name} is there once" for name in sorted(files.keys() ^ others.keys())]
        both = sorted(files.keys() & others.keys())
        found += [f"{one.tenant}: {name} differs" for name in both if files[name] != others[name]]
    return found


def _files(program: Program, data_dir: Path) -> dict[str, bytes]:
    """The tensors of a program's checkpoints, by the number of the run and the path in it."""
    files = {}
    for number, run in enumerate(program.runs):
        root = data_dir / "checkpoints" / run
        for path in root.rglob("*.safetensors"):
            if not path.parent.name.startswith(PARTIAL_PREFIX):
                files[f"run {number}: {path.relative_to(root)}"] = path.read_bytes()
    return files
