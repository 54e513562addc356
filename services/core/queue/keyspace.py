"""Names of all keys in Redis. They share one hash tag, so that a script can use several of them on a cluster."""

from __future__ import annotations

PREFIX = "{tinker}:"

EVENTS = PREFIX + "events"
EVENTS_KEPT = 100_000
"""Entries of `EVENTS` that are kept, the names of finished operations; a few more may be there."""

DEAD = PREFIX + "dead"

CANCELLED = PREFIX + "cancelled"
"""Stream of sampling operations that were cancelled while they ran; every sampler reads it."""

TOKENS_AGAIN = PREFIX + "tokens-again"
"""Stream of streamed operations whose caller has come back and wants all tokens so far; every sampler reads it."""

TOKENS = PREFIX + "tokens"
"""Channel of the new tokens of streamed operations; nothing is stored."""

WORKERS = PREFIX + "workers"
WORKERS_EXPIRY = PREFIX + "workers-expiry"
API_KEYS = PREFIX + "api-keys"

REVOCATIONS = PREFIX + "revocations"
"""Stream of revoked API keys: digest, tenant, and last (1 if the tenant has no other); every gateway reads it."""

KEYLESS_TENANTS = PREFIX + "keyless-tenants"
"""Set of the tenants whose last API key was revoked."""

EXPIRING = PREFIX + "expiring"
"""Sorted set of the checkpoint paths that expire, by ms since the epoch."""

UNREFERENCED = PREFIX + "doomed"
"""Sorted set of the locations that no path names any more, by the time (ms) of the next check for pins.

Their files are deleted once no pin is left.
"""

PINS = PREFIX + "pins:"
"""With a location after it: set of its pins, session ids and names of operations that have loaded the files."""

UNNAMED_WEIGHTS_DUE = PREFIX + "unnamed-due"
"""Sorted set of the locations of unnamed weights, by the time (ms) of the next look whether somebody needs them."""

DOWNLOAD_SECRET = PREFIX + "download-secret"
"""Secret that signs download links."""

IDENTITY = PREFIX + "identity"
"""Hash: id of the platform, and confirmed once its storage has the same id: see services.core.catalog.identity."""

LOAD = PREFIX + "load"
"""Hash: operations, samples and bytes queued or under way, of all tenants."""

OPEN_SESSIONS = PREFIX + "open-sessions"
"""Sorted set of the sessions that have not ended, by when they were last seen (ms)."""

TRAINERS_GROUP = "trainers"
SAMPLERS_GROUP = "samplers"


def operation(name: str) -> str:
    """Hash: state, digest, method, tenant, time, begun, attempts, begun_by, load (kind, bytes), and response or error.

    Of a sampling operation also base_model, location, sequences, and reader: who reads its stream of tokens.
    """
    return f"{PREFIX}operation:{name}"


def run_log(run: str) -> str:
    """Stream of a run's jobs, entry id `<seq_id>-1`; a replay of it rebuilds the run."""
    return f"{PREFIX}log:{run}"


def run_meta(run: str) -> str:
    """Hash: next_seq, done_seq, snapshots (names of those kept, newest first), placed, last_request, and a pace."""
    return f"{PREFIX}meta:{run}"


def run_early(run: str) -> str:
    """Hash seq_id → job, of operations that arrived before an earlier seq_id."""
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
    """Hash: operations, samples and bytes queued or under way, of one tenant."""
    return f"{LOAD}:{tenant}"


def sample_waiting(base_model: str) -> str:
    """Sorted set of the sampling operations that wait for a sampler, by their turn."""
    return f"{PREFIX}sample-waiting:{base_model}"


def sample_jobs(base_model: str) -> str:
    """Hash operation → job, of the sampling operations that wait."""
    return f"{PREFIX}sample-jobs:{base_model}"


def sample_shares(base_model: str) -> str:
    """Hash: clock (the turn that was taken last), and for each tenant the end of its last turn."""
    return f"{PREFIX}sample-shares:{base_model}"


def sample_pace(base_model: str) -> str:
    """Hash: last_end, busy and ended, from which the mean time between two results follows."""
    return f"{PREFIX}sample-pace:{base_model}"


def sample_wake(base_model: str) -> str:
    """Wake stream of one entry: a new one whenever operations wait for a sampler."""
    return f"{PREFIX}sample-bell:{base_model}"


def sample_queue(base_model: str) -> str:
    """Stream of the sampling jobs that samplers have taken and not finished."""
    return f"{PREFIX}sample:{base_model}"


def sample_vacancy(base_model: str) -> str:
    """Name of a sampler that has free slots and waits for work; exists only while there is one."""
    return f"{PREFIX}sample-vacancy:{base_model}"


def sampler_free(worker: str) -> str:
    """Number of free slots of a sampler; exists only while the sampler waits for work."""
    return f"{PREFIX}sampler-room:{worker}"


def adapter_user(location: str) -> str:
    """The sampler that used the adapter at this location last."""
    return f"{PREFIX}adapter-holder:{location}"


def wake(worker: str) -> str:
    """Wake stream of a trainer: an entry ends its blocking read when the set of its runs has changed."""
    return f"{PREFIX}wake:{worker}"


def base_models(worker_kind: int) -> str:
    """Hash: base model → the last announcement of a worker of this kind for it."""
    return f"{PREFIX}base-models:{worker_kind}"


def api_key(digest: str) -> str:
    """Hash: key_id, tenant, label, time of the API key with this SHA-256."""
    return f"{PREFIX}api-key:{digest}"


def session(session_id: str) -> str:
    """Hash: tenant, metadata, created, seen, ended, and finish: what the client said about the end (JSON)."""
    return f"{PREFIX}session:{session_id}"


def tenant_sessions(tenant: str) -> str:
    """Sorted set of a tenant's sessions by creation time."""
    return f"{PREFIX}sessions:{tenant}"


def open_sessions(tenant: str) -> str:
    """The part of `OPEN_SESSIONS` that belongs to a tenant."""
    return f"{OPEN_SESSIONS}:{tenant}"


def session_runs(session_id: str) -> str:
    """Sorted set of a session's training runs by creation time."""
    return f"{PREFIX}session-runs:{session_id}"


def session_samplings(session_id: str) -> str:
    """Sorted set of a session's sampling sessions by creation time."""
    return f"{PREFIX}session-samplings:{session_id}"


def tenant_samplings(tenant: str) -> str:
    """Sorted set of a tenant's sampling sessions, by their last use (ms)."""
    return f"{PREFIX}samplings:{tenant}"


def stored_sizes(tenant: str) -> str:
    """Hash location → bytes, of a tenant's checkpoints whose files have not been deleted."""
    return f"{PREFIX}stored-sizes:{tenant}"


def merges(tenant: str) -> str:
    """Sorted set of a tenant's merges whose exports may still be there, by the time when they were queued (ms)."""
    return f"{PREFIX}merges:{tenant}"


def training_run(run: str) -> str:
    """Hash: tenant, record (tinker.v1.TrainingRun)."""
    return f"{PREFIX}run:{run}"


def tenant_runs(tenant: str) -> str:
    """Sorted set of a tenant's runs by creation time."""
    return f"{PREFIX}runs:{tenant}"


def sampling_session(sampling_session_id: str) -> str:
    """Hash: tenant, record (tinker.v1.SamplingSession), location, and optionally follows (a run), clients."""
    return f"{PREFIX}sampling:{sampling_session_id}"


def reserved_sampler(operation: str) -> str:
    """Hash: sampling_session_seq_id and inflight, of the sampling session that a save is for."""
    return f"{PREFIX}reserved-sampler:{operation}"


def inflight_weights(run: str) -> str:
    """Sorted set by seq_id of `<location> <tinker path>`: the weights of the run's inflight sampling sessions."""
    return f"{PREFIX}inflight:{run}"


def unnamed_weights(location: str) -> str:
    """Hash: tenant, record (tinker.v1.Checkpoint), run, used (ms), and operations: those queued or under way."""
    return f"{PREFIX}unnamed:{location}"


def run_unnamed_weights(run: str) -> str:
    """Sorted set of the locations of a run's unnamed weights, by the seq_id of their save."""
    return f"{PREFIX}run-unnamed:{run}"


def checkpoint(tinker_path: str) -> str:
    """Hash: tenant, record (tinker.v1.Checkpoint), location, and optionally public, expires (ms)."""
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
    """Capped stream of the metrics of a run's operations (tinker.v1.TrainingMetrics), entry id `<seq_id>-1`."""
    return f"{PREFIX}metrics:{run}"
