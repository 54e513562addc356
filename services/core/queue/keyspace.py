"""Names of everything in Redis. All share one hash tag, so that a script may touch several of them on a cluster."""

from __future__ import annotations

PREFIX = "{tinker}:"

EVENTS = PREFIX + "events"
DEAD = PREFIX + "dead"

CANCELLED = PREFIX + "cancelled"
"""Stream of sampling operations that were cancelled while they ran; every sampler reads it."""

TOKENS = PREFIX + "tokens"
"""Channel of tokens of streamed operations as they come; nothing of it is stored."""

WORKERS = PREFIX + "workers"
WORKERS_EXPIRY = PREFIX + "workers-expiry"
API_KEYS = PREFIX + "api-keys"

EXPIRING = PREFIX + "expiring"
"""Sorted set of the checkpoint paths that expire, by ms since the epoch."""

UNREFERENCED = PREFIX + "doomed"
"""Sorted set of the locations that no path names any more, by the time (ms) of the next check for pins.

Their files are deleted once no pin is left.
"""

PINS = PREFIX + "pins:"
"""With a location after it: set of its pins, session ids and names of operations that have loaded the files."""

DOWNLOAD_SECRET = PREFIX + "download-secret"
"""What download links are signed with."""

LOAD = PREFIX + "load"
"""Hash: operations, samples and bytes that wait in all."""

OPEN_SESSIONS = PREFIX + "open-sessions"
"""Sorted set of the sessions that have not ended, by when they were last heard of (ms)."""

TRAINERS_GROUP = "trainers"
SAMPLERS_GROUP = "samplers"


def operation(name: str) -> str:
    """Hash: state, digest, method, tenant, time, attempts, begun_by, what it counts for, and response or error."""
    return f"{PREFIX}operation:{name}"


def run_log(run: str) -> str:
    """Stream of a run's jobs, entry id `<seq_id>-1`: the truth about the run."""
    return f"{PREFIX}log:{run}"


def run_meta(run: str) -> str:
    """Hash: next_seq, done_seq, snapshots (names of those kept, newest first), placed, last_request, and a pace."""
    return f"{PREFIX}meta:{run}"


def run_early(run: str) -> str:
    """Hash seq_id → job, of operations that arrived ahead of their turn."""
    return f"{PREFIX}early:{run}"


def run_skipped(run: str) -> str:
    """Set of the seq_ids that changed nothing: refused, cancelled or failed. A replay leaves them out."""
    return f"{PREFIX}skipped:{run}"


def run_sources(run: str) -> str:
    """Hash seq_id → location of the checkpoint that the operation has loaded."""
    return f"{PREFIX}sources:{run}"


def run_own(run: str) -> str:
    """Hash: worker, expires, epoch of the run's lease."""
    return f"{PREFIX}own:{run}"


def waiting_runs(base_model: str) -> str:
    """Stream of the runs of a base model that wait for a trainer, or that a trainer holds."""
    return f"{PREFIX}place:{base_model}"


def load(tenant: str) -> str:
    """Hash: operations, samples and bytes that wait, of a tenant; those in all are in `LOAD`."""
    return f"{LOAD}:{tenant}"


def sample_waiting(base_model: str) -> str:
    """Sorted set of the sampling operations that wait for a sampler, by their turn."""
    return f"{PREFIX}sample-waiting:{base_model}"


def sample_jobs(base_model: str) -> str:
    """Hash operation → job, of the sampling operations that wait."""
    return f"{PREFIX}sample-jobs:{base_model}"


def sample_shares(base_model: str) -> str:
    """Hash: clock (the turn of what was taken last), and for each tenant where its last operation's turn ends."""
    return f"{PREFIX}sample-shares:{base_model}"


def sample_pace(base_model: str) -> str:
    """Hash: last_end, busy and ended, from which the mean time between two results follows."""
    return f"{PREFIX}sample-pace:{base_model}"


def sample_bell(base_model: str) -> str:
    """Stream of one entry: a new one when something waits."""
    return f"{PREFIX}sample-bell:{base_model}"


def sample_queue(base_model: str) -> str:
    """Stream of the sampling jobs that samplers have taken and not finished."""
    return f"{PREFIX}sample:{base_model}"


def sampler_room(worker: str) -> str:
    """How many sequences a sampler has room for; there while it waits for work, and no longer."""
    return f"{PREFIX}sampler-room:{worker}"


def adapter_holder(location: str) -> str:
    """The sampler that last began a job with the adapter at this location."""
    return f"{PREFIX}adapter-holder:{location}"


def wake(worker: str) -> str:
    """Stream that interrupts a worker's blocking read when the set of its runs has changed."""
    return f"{PREFIX}wake:{worker}"


def base_models(worker_kind: int) -> str:
    """Hash: base model → the last announcement of a worker of this kind for it."""
    return f"{PREFIX}base-models:{worker_kind}"


def api_key(digest: str) -> str:
    """Hash: key_id, tenant, label, time of the API key with this SHA-256."""
    return f"{PREFIX}api-key:{digest}"


def session(session_id: str) -> str:
    """Hash: tenant, metadata, created, seen, ended."""
    return f"{PREFIX}session:{session_id}"


def tenant_sessions(tenant: str) -> str:
    """Sorted set of a tenant's sessions by creation time."""
    return f"{PREFIX}sessions:{tenant}"


def open_sessions(tenant: str) -> str:
    """Those of `OPEN_SESSIONS` that are a tenant's."""
    return f"{OPEN_SESSIONS}:{tenant}"


def session_runs(session_id: str) -> str:
    """Sorted set of a session's training runs by creation time."""
    return f"{PREFIX}session-runs:{session_id}"


def session_samplings(session_id: str) -> str:
    """Sorted set of a session's sampling sessions by creation time."""
    return f"{PREFIX}session-samplings:{session_id}"


def training_run(run: str) -> str:
    """Hash: tenant, record (tinker.v1.TrainingRun)."""
    return f"{PREFIX}run:{run}"


def tenant_runs(tenant: str) -> str:
    """Sorted set of a tenant's runs by creation time."""
    return f"{PREFIX}runs:{tenant}"


def sampling_session(sampling_session_id: str) -> str:
    """Hash: tenant, record (tinker.v1.SamplingSession), location, and if they are set: follows (a run), clients."""
    return f"{PREFIX}sampling:{sampling_session_id}"


def reserved_sampler(operation: str) -> str:
    """Hash: sampling_session_seq_id and kind of the sampling session that weights under way are saved for."""
    return f"{PREFIX}reserved-sampler:{operation}"


def inflight_weights(run: str) -> str:
    """Sorted set by seq_id of `<location> <tinker path>`: what the run's inflight sampling sessions sample from."""
    return f"{PREFIX}inflight:{run}"


def checkpoint(tinker_path: str) -> str:
    """Hash: tenant, record (tinker.v1.Checkpoint), location, and if they are set: public, expires (ms)."""
    return f"{PREFIX}checkpoint:{tinker_path}"


def tenant_checkpoints(tenant: str) -> str:
    """Sorted set of a tenant's checkpoint paths by time."""
    return f"{PREFIX}checkpoints:{tenant}"


def run_checkpoints(run: str) -> str:
    """Sorted set of a run's checkpoint paths by time."""
    return f"{PREFIX}run-checkpoints:{run}"


def run_checkpoints_of_kind(run: str, kind: str) -> str:
    """Sorted set of a run's checkpoint paths of one kind by time."""
    return f"{PREFIX}run-{kind}:{run}"


def run_metrics(run: str) -> str:
    """Capped stream of what a run's operations have measured (tinker.v1.TrainingMetrics), entry id `<seq_id>-1`."""
    return f"{PREFIX}metrics:{run}"
