"""A user's program with the official SDK, unmodified: python tour.py <base model>. Prints one JSON line a feature.

Every feature is tried on its own: one that fails is printed with its error, and the next goes on.
"""

from __future__ import annotations

import inspect
import json
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

warnings.simplefilter("ignore")
import tinker  # noqa: E402
from tinker import types  # noqa: E402

BASE_MODEL = sys.argv[1]
AGE_KEY = "age16tkerqhrw9434vyw4xyacmq7z5fcedf9dvrjm6ljm5etscd4v4aqptlznd"
PROMPT = types.ModelInput.from_ints([5, 6, 7])
ADAM = types.AdamParams(learning_rate=1e-2)


def datum(length: int = 6, **inputs: Any) -> types.Datum:
    tokens = [5 + i for i in range(length)]
    arrays = {"target_tokens": np.array([*tokens[1:], 11], dtype=np.int64), **inputs}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens),
        loss_fn_inputs={name: types.TensorData.from_numpy(array) for name, array in arrays.items()},
    )


def weighted(length: int = 6) -> types.Datum:
    return datum(length, weights=np.array([0.0] + [1.0] * (length - 1), dtype=np.float32))


def policy(length: int = 6) -> types.Datum:
    logprobs = np.full(length, -4.0, dtype=np.float32)
    return datum(length, logprobs=logprobs, advantages=np.linspace(-1, 1, length).astype(np.float32))


def refusal_of(future: Any) -> str:
    """What a future that must fail says."""
    try:
        future.result()
    except tinker.RequestFailedError as error:
        return str(error)
    raise AssertionError("it was accepted")


def refused_call(call: Callable[[], Any]) -> str:
    """The reason of a call that must be refused at once."""
    try:
        call().result()
    except tinker.APIStatusError as error:
        return f"{error.status_code} {error.body['reason']}"  # type: ignore[index,call-overload]
    raise AssertionError("it was accepted")


class AbsentError(Exception):
    """This release of the SDK does not have the feature."""


def accepts(call: Callable[..., Any], *names: str) -> bool:
    """Whether a function of the SDK has these parameters."""
    return set(names) <= inspect.signature(call).parameters.keys()


def needs(present: bool) -> None:
    """Ends the trial of a feature that this release does not have."""
    if not present:
        raise AbsentError


class Tour:
    """The features, in the order in which they are tried."""

    def __init__(self) -> None:
        self.service = tinker.ServiceClient(user_metadata={"who": "tour"})
        self.training: Any = None
        self.sampler: Any = None
        self.saved = ""

    def create(self) -> Any:
        created = self.service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        self.training = created.result() if hasattr(created, "result") else created
        info = self.training.get_info()
        return [info.model_data.model_name, info.lora_rank]

    def capabilities(self) -> Any:
        return [model.model_name for model in self.service.get_server_capabilities().supported_models]

    def forward_backward_and_optim_step(self) -> Any:
        losses = []
        for _ in range(3):
            done = self.training.forward_backward([weighted(), weighted(4)], "cross_entropy")
            step = self.training.optim_step(ADAM)
            losses.append(done.result().metrics["loss:sum"])
            assert step.result().metrics["grad_norm:mean"] > 0
        assert losses[-1] < losses[0]
        outputs = done.result().loss_fn_outputs
        assert [output["logprobs"].shape for output in outputs] == [[6], [4]]
        return losses

    def forward(self) -> Any:
        output = self.training.forward([weighted()], "cross_entropy").result()
        return output.loss_fn_outputs[0]["logprobs"].tolist()

    def every_loss(self) -> Any:
        configs = {"ppo": {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, "dro": {"beta": 0.1}}
        losses = {}
        for name in ("importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce"):
            output = self.training.forward([policy()], name, loss_fn_config=configs.get(name)).result()
            losses[name] = output.metrics["loss:sum"]
        return losses

    def sparse_soft_targets(self) -> Any:
        import torch

        weights = torch.zeros(6, 40)
        weights[:, 3] = 1.0
        targets = torch.arange(40).repeat(6, 1)
        example = types.Datum(
            model_input=types.ModelInput.from_ints([5, 6, 7, 8, 9, 10]),
            loss_fn_inputs={"target_tokens": targets, "weights": weights},
        )
        return self.training.forward([example], "cross_entropy").result().metrics["loss:sum"]

    def data_of_different_shapes(self) -> Any:
        wide = np.tile(np.arange(4, dtype=np.int64), (6, 1))
        data = [datum(6), datum(6, target_tokens=wide, weights=np.ones((6, 4), dtype=np.float32)), datum(5), datum(5)]
        together = self.training.forward(data, "cross_entropy").result().loss_fn_outputs
        assert [output["logprobs"].shape for output in together] == [[6], [6, 4], [5], [5]]
        for example, output in zip(data, together, strict=True):
            alone = self.training.forward([example], "cross_entropy").result().loss_fn_outputs[0]
            assert np.allclose(alone["logprobs"].to_numpy(), output["logprobs"].to_numpy(), atol=1e-5)
        return True

    def provenance(self) -> Any:
        if not hasattr(types.Datum, "with_provenance"):
            return None
        prompt = types.PromptProvenanceSpan(sequence_id="x", length=2)
        spans = [prompt, types.SampledProvenanceSpan(sequence_id="x", length=4)]
        example = weighted().with_provenance(spans, spans)
        return self.training.forward([example], "cross_entropy").result().metrics["loss:sum"]

    def forward_backward_custom(self) -> Any:
        def loss_fn(data: Any, logprobs: Any) -> Any:
            loss = sum((entry**2).sum() for entry in logprobs)
            return loss, {"squares": float(loss)}

        output = self.training.forward_backward_custom([weighted(), weighted(5)], loss_fn).result()
        self.training.optim_step(ADAM).result()
        return output.metrics["squares"]

    def batch_over_1024(self) -> Any:
        data = [weighted(3)] * 1500
        whole = self.training.forward(data, "cross_entropy").result()
        one = self.training.forward([weighted(3)], "cross_entropy").result()
        assert len(whole.loss_fn_outputs) == 1500
        return whole.metrics["loss:sum"] / one.metrics["loss:sum"]

    def batch_over_5_mb(self) -> Any:
        wide = np.arange(6000, dtype=np.int64)[None, :].repeat(6, axis=0) % 40
        example = datum(6, target_tokens=wide, weights=np.ones(wide.shape, dtype=np.float32))
        output = self.training.forward([example] * 16, "cross_entropy").result()
        return [len(output.loss_fn_outputs), output.loss_fn_outputs[15]["logprobs"].shape]

    def bad_data_fails_alone(self) -> Any:
        bad = self.training.forward_backward([datum(4, weights=np.ones(3, dtype=np.float32))], "cross_entropy")
        good = self.training.forward([weighted()], "cross_entropy")
        assert "weights" in refusal_of(bad)
        return good.result().metrics["loss:sum"]

    def unknown_losses_are_refused(self) -> Any:
        message = refusal_of(self.training.forward_backward([policy()], "custom"))
        assert "not supported" in message
        return message

    def save_and_sample(self) -> Any:
        self.sampler = self.training.save_weights_and_get_sampling_client(name="tour")
        self.sampler = self.sampler.result() if hasattr(self.sampler, "result") else self.sampler
        params = types.SamplingParams(max_tokens=4, seed=3, temperature=1.0, stop=[])
        response = self.sampler.sample(PROMPT, 2, params, True, 2).result()
        assert [len(sequence.tokens) for sequence in response.sequences] == [4, 4]
        assert response.prompt_logprobs[0] is None
        assert response.topk_prompt_logprobs[0] is None
        assert len(response.topk_prompt_logprobs[1]) == 2
        again = self.sampler.sample(PROMPT, 2, params, True, 2).result()
        assert [s.tokens for s in again.sequences] == [s.tokens for s in response.sequences]
        assert response.sequences[0].tokens != response.sequences[1].tokens
        return [sequence.tokens for sequence in response.sequences]

    def compute_logprobs(self) -> Any:
        return self.sampler.compute_logprobs(PROMPT).result()

    def target_prompt_logprobs(self) -> Any:
        needs(accepts(tinker.SamplingClient.sample, "target_prompt_logprobs"))
        targets = types.TensorData.from_numpy(np.array([[6, 1, 2], [7, 3, 4]], dtype=np.int64))
        params = types.SamplingParams(max_tokens=1)
        response = self.sampler.sample(PROMPT, 1, params, True, 0, 0, targets).result()
        scored = response.target_prompt_logprobs.to_numpy()
        assert scored.shape == (2, 3)
        assert scored[:, 0].tolist() == response.prompt_logprobs[1:]
        return scored.tolist()

    def tokens_in_the_place_of_the_prompts(self) -> Any:
        needs(accepts(tinker.SamplingClient.sample, "prompt_alt_tokens_k"))
        params = types.SamplingParams(max_tokens=1, seed=5)
        drawn = self.sampler.sample(PROMPT, 1, params, prompt_alt_tokens_k=4).result().prompt_alt_tokens
        assert drawn.tokens.to_numpy().shape == drawn.logprobs.to_numpy().shape == (2, 4)
        assert (drawn.logprobs.to_numpy() < 0).all()
        return drawn.tokens.to_numpy().tolist()

    def targets_that_leave_cells_out(self) -> Any:
        needs(accepts(tinker.SamplingClient.sample, "target_prompt_logprobs"))
        params = types.SamplingParams(max_tokens=1)

        def score(targets: Any) -> Any:
            return self.sampler.sample(PROMPT, 1, params, True, 0, 0, targets).result()

        dense = score(types.TensorData.from_numpy(np.array([[-1, 1], [7, -1]], dtype=np.int64)))
        sparse = types.TensorData(
            data=[1, 7], dtype="int64", shape=[2, 2], sparse_crow_indices=[0, 1, 2], sparse_col_indices=[1, 0]
        )
        listed = score(sparse).target_prompt_logprobs
        assert list(listed.sparse_crow_indices) == [0, 1, 2]
        assert list(listed.sparse_col_indices) == [1, 0]
        (skipped, first), (second, last) = dense.target_prompt_logprobs.to_numpy().tolist()
        assert skipped == last == 0
        assert [first, second] == list(listed.data)
        assert second == dense.prompt_logprobs[2]
        return [first, second]

    def snapshot_is_fixed(self) -> Any:
        before = self.sampler.compute_logprobs(PROMPT).result()
        self.training.forward_backward([weighted()], "cross_entropy")
        self.training.optim_step(ADAM).result()
        assert self.sampler.compute_logprobs(PROMPT).result() == before
        return True

    def inflight_follows(self) -> Any:
        needs(accepts(tinker.TrainingClient.save_weights_and_get_sampling_client, "kind"))
        first = self._inflight()
        before = first.compute_logprobs(PROMPT).result()
        self.training.forward_backward([weighted()], "cross_entropy")
        self.training.optim_step(ADAM).result()
        second = self._inflight()
        now = second.compute_logprobs(PROMPT).result()
        assert now != before
        return first.compute_logprobs(PROMPT).result() == now

    def _inflight(self) -> Any:
        made = self.training.save_weights_and_get_sampling_client(kind="inflight")
        return made.result() if hasattr(made, "result") else made

    def base_model_sampling(self) -> Any:
        made = self.service.create_sampling_client(base_model=BASE_MODEL)
        sampler = made.result() if hasattr(made, "result") else made
        params = types.SamplingParams(max_tokens=2, stop=[5])
        return sampler.sample(PROMPT, 1, params).result().sequences[0].stop_reason in ("length", "stop")

    def save_and_resume(self) -> Any:
        options = {"ttl_seconds": 7200, "user_metadata": {"a": "b"}}
        known = {name: value for name, value in options.items() if accepts(self.training.save_state, name)}
        self.saved = self.training.save_state("tour", **known).result().path
        made = self.service.create_training_client_from_state_with_optimizer(self.saved)
        resumed = made.result() if hasattr(made, "result") else made
        losses = []
        for client in (self.training, resumed):
            client.forward_backward([weighted()], "cross_entropy")
            client.optim_step(ADAM).result()
            losses.append(client.forward([weighted()], "cross_entropy").result().metrics["loss:sum"])
        assert losses[0] == losses[1], losses
        made = self.service.create_training_client_from_state(self.saved)
        fresh = made.result() if hasattr(made, "result") else made
        fresh.forward([weighted()], "cross_entropy").result()
        return losses

    def name_in_use(self) -> Any:
        assert "weights/tour" in refusal_of(self.training.save_state("tour"))
        needs(accepts(self.training.save_state, "overwrite"))
        return self.training.save_state("tour", overwrite=True, ttl_seconds=7200).result().path

    def listings(self) -> Any:
        rest = self.service.create_rest_client()
        runs = rest.list_training_runs(limit=5).result().training_runs
        assert runs[0].base_model == BASE_MODEL
        run = rest.get_training_run(self.training.model_id).result()
        assert run.last_checkpoint.tinker_path == self.saved
        names = [found.checkpoint_id for found in rest.list_checkpoints(run.training_run_id).result().checkpoints]
        assert names == ["weights/tour"], "weights saved for a sampling client are no checkpoints"
        assert run.last_sampler_checkpoint is None
        assert rest.list_user_checkpoints(limit=1).result().cursor.total_count >= 1
        info = rest.get_weights_info_by_tinker_path(self.saved).result()
        assert (info.base_model, info.lora_rank) == (BASE_MODEL, 4)
        sessions = rest.list_sessions().result().sessions
        assert self.training.model_id in rest.get_session(sessions[0]).result().training_run_ids
        if hasattr(rest, "search_sessions"):
            self._search_sessions(rest)
        if hasattr(rest, "export_session_trace"):
            self._export_trace(rest)
        return True

    def many_samples_at_once(self) -> Any:
        params = types.SamplingParams(max_tokens=2, stop=[])
        futures = [self.sampler.sample(PROMPT, 1, params) for _ in range(100)]
        return sum(len(future.result().sequences[0].tokens) for future in futures)

    def sampler_handles(self) -> Any:
        """Clients of other processes: of a pickled one, and of a handle that is a text."""
        clones = [pickle.loads(pickle.dumps(self.sampler))]
        if hasattr(tinker.SamplingClient, "from_sampler_handle"):
            clones.append(tinker.SamplingClient.from_sampler_handle(self.sampler.get_sampler_handle()))
        params = types.SamplingParams(max_tokens=4, seed=3, stop=[])
        futures = [client.sample(PROMPT, 2, params) for client in (self.sampler, *clones) for _ in range(3)]
        answers = [[sequence.tokens for sequence in future.result().sequences] for future in futures]
        assert all(answer == answers[0] for answer in answers)
        return answers[0]

    def publish_ttl_and_delete(self) -> Any:
        rest = self.service.create_rest_client()
        rest.publish_checkpoint_from_tinker_path(self.saved).result()
        rest.publish_checkpoint_from_tinker_path(self.saved).result()
        rest.set_checkpoint_ttl_from_tinker_path(self.saved, 9000).result()
        found = {c.tinker_path: c for c in rest.list_checkpoints(self.training.model_id).result().checkpoints}
        assert found[self.saved].public
        assert found[self.saved].expires_at is not None
        rest.unpublish_checkpoint_from_tinker_path(self.saved).result()
        rest.delete_checkpoint_from_tinker_path(self.saved).result()
        names = [c.tinker_path for c in rest.list_checkpoints(self.training.model_id).result().checkpoints]
        return self.saved not in names

    def download(self) -> Any:
        import urllib.request

        needs(hasattr(self.training, "save_weights_external"))
        path = self.training.save_weights_external("adapter", ttl_seconds=3600).result().path
        urls = self.service.create_rest_client().get_external_weights_urls(path).result().urls
        sizes = {name: len(urllib.request.urlopen(url).read()) for name, url in urls.items()}
        assert all(sizes.values())
        rest = self.service.create_rest_client()
        listed = {c.tinker_path: c for c in rest.list_checkpoints(self.training.model_id).result().checkpoints}
        assert (listed[path].checkpoint_type, listed[path].checkpoint_id) == ("external", "external_weights/adapter")
        assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == 4
        assert rest.get_training_run(self.training.model_id).result().last_sampler_checkpoint is None
        self.training.save_weights_for_sampler("adapter").result()
        rest.delete_checkpoint_from_tinker_path(path).result()
        kept = [c.checkpoint_id for c in rest.list_checkpoints(self.training.model_id).result().checkpoints]
        assert "sampler_weights/adapter" in kept, "the names of one kind are free for the others"
        assert "external_weights/adapter" not in kept
        if "age_encryption_recipients" in inspect.signature(self.training.save_weights_external).parameters:
            secret = self.training.save_weights_external("secret", age_encryption_recipients=[AGE_KEY]).result().path
            encrypted = rest.get_external_weights_urls(secret).result().urls
            assert sorted(encrypted) == sorted(f"{name}.age" for name in urls)
            assert all(urllib.request.urlopen(url).read(22) == b"age-encryption.org/v1\n" for url in encrypted.values())
        return sorted(sizes)

    def custom_loss_handle(self) -> Any:
        needs(hasattr(self.service, "create_custom_loss"))

        def squares(logprobs: Any, target_tokens: Any) -> Any:
            loss = (logprobs**2).sum()
            return loss, {"custom/squares:sum": loss}

        handle = self.service.create_custom_loss(squares, {"logprobs": 1, "target_tokens": 1}).result()
        metrics = self.training.forward_backward_custom([weighted(), weighted(5)], handle).result().metrics
        assert self.training.optim_step(ADAM).result().metrics["grad_norm:mean"] > 0
        return metrics["custom/squares:sum"] == metrics["loss:sum"] > 0

    def billing_is_quiet(self) -> Any:
        admin = tinker.AdminClient() if hasattr(tinker, "AdminClient") else self.service.create_rest_client()
        needs(hasattr(admin, "get_current_checkpoint_storage_usage"))
        assert list(admin.get_billing_usage("2026-01-01", "2026-01-31").result().data) == []
        assert list(admin.get_current_checkpoint_storage_usage().result().data) == []
        return list(admin.get_audit_log().result().entries)

    def _export_trace(self, rest: Any) -> None:
        import urllib.request

        session = self.training.get_info().model_id.partition(":")[0]
        with urllib.request.urlopen(rest.export_session_trace(session).result()) as file:
            events = json.load(file)["traceEvents"]
        spans = {event["name"] for event in events if event["ph"] == "b"}
        assert {"ForwardBackward (queue)", "ForwardBackward (pass)", "Sample (queue)", "Sample (pass)"} <= spans

    def _search_sessions(self, rest: Any) -> None:
        session = self.training.get_info().model_id.partition(":")[0]
        wanted = types.SessionSearchRequest(session_id=session, statuses=[types.ActiveSessionStatusQuery()])
        (found,) = rest.search_sessions(wanted).result().sessions
        assert (found.session_id, found.status.type) == (session, "active")
        assert found.checkpoints_count > 0
        assert found.checkpoint_storage_bytes > 0
        everybody = types.SessionSearchRequest(owner=types.AccessibleSearchOwner(), limit=1)
        first = rest.search_sessions(everybody).result()
        if first.next_cursor is not None:
            second = rest.search_sessions(everybody.model_copy(update={"cursor": first.next_cursor})).result()
            assert second.sessions[0].session_id != first.sessions[0].session_id

    def projects_are_refused(self) -> Any:
        rest = self.service.create_rest_client()
        session = self.training.get_info().model_id.partition(":")[0]
        calls: dict[str, Callable[[], Any]] = {
            "copy_weights": lambda: rest.copy_weights(self.saved, "project"),
            "assign_session_project": lambda: rest.assign_session_project(session, "project"),
        }
        known = [call for name, call in calls.items() if hasattr(rest, name)]
        needs(bool(known))
        refusals = [refused_call(call) for call in known]
        assert set(refusals) <= {"404 NO_ROUTE", "405 NO_ROUTE"}, refusals
        return refusals

    def close(self) -> Any:
        needs(hasattr(self.service, "close"))
        return self.service.close("success").result()


FEATURES = [
    name for name, member in vars(Tour).items() if isinstance(member, type(Tour.create)) and not name.startswith("_")
]


def attempt(name: str, call: Callable[[], Any]) -> None:
    began = time.monotonic()
    try:
        outcome = {"value": call()}
    except AbsentError:
        outcome = {"absent": True}
    except Exception:
        outcome = {"error": traceback.format_exc()}
    print(json.dumps({"feature": name, **outcome, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    tour = Tour()
    for feature in FEATURES:
        attempt(feature, getattr(tour, feature))
