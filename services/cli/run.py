"""`tinker-platform run`: training runs and their progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.access import Access, user_command
from services.cli.listing import Limit, in_pages, print_listing
from services.cli.output import (
    NOTHING,
    adapter,
    age,
    as_json,
    labels,
    moment,
    print_json,
    print_line,
    print_properties,
    print_table,
)
from services.cli.steps import Step, steps

if TYPE_CHECKING:
    from tinker_client.types import TrainingMetrics, TrainingRun

app = typer.Typer(help="List training runs and show their progress.", no_args_is_help=True)


@user_command(app, "list")
def list_runs(access: Access, limit: Limit = 20) -> None:
    """List your training runs, newest first.

    Example: tinker-platform run list --limit 5
    """

    def fetch(page_size: int, token: str) -> tuple[list[TrainingRun], str]:
        page = access.rest.list_training_runs(page_size, token).result()
        return page.training_runs, page.next_page_token

    runs = in_pages(fetch, limit)
    print_listing(access, "runs", runs, limit, nothing="No training runs yet.", table=_print_runs)


@user_command(app, "info")
def run_info(
    access: Access,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run, as `run list` shows it.")],
    plot: Annotated[bool, typer.Option("--plot", help="Draw curves of the metrics in the terminal.")] = False,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the curves to a PNG file.")
    ] = None,
) -> None:
    """Show a training run: its adapter, its latest checkpoints and the metrics of its latest optimizer step.

    Example: tinker-platform run info $RUN --plot
    """
    run = access.rest.get_training_run(run_id).result()
    history = steps(_metrics(access, run_id))
    taken = deque(history, maxlen=None if plot or png else 1)
    latest = taken[-1] if taken else None
    if png is not None:
        _write_png(run, list(taken), png)
    if access.wants_json:
        print_json({**as_json(run), "latest_step": latest})
        return
    _print_run(run)
    _print_latest(latest)
    if plot:
        _plot(list(taken))


def _print_runs(runs: list[TrainingRun]) -> None:
    now = datetime.now(UTC)
    print_table(
        ("RUN", "BASE MODEL", "RANK", "CREATED", "LAST REQUEST", "LABELS", "LAST CHECKPOINT"),
        [
            (
                run.training_run_id,
                run.base_model,
                str(run.lora_rank),
                age(run.create_time, now),
                age(run.last_request_time, now),
                labels(run.user_metadata),
                _checkpoint_id(run.last_checkpoint),
            )
            for run in runs
        ],
    )


def _metrics(access: Access, run_id: str) -> Iterator[TrainingMetrics]:
    def fetch(page_size: int, token: str) -> tuple[list[TrainingMetrics], str]:
        page = access.rest.list_training_metrics(run_id, page_size, token).result()
        return page.training_metrics, page.next_page_token

    return in_pages(fetch, 0)


def _print_run(run: TrainingRun) -> None:
    now = datetime.now(UTC)
    print_properties(
        f"Training run {run.training_run_id}",
        {
            "Base model": run.base_model,
            "Adapter": adapter(run.lora_config),
            "Created": moment(run.create_time, now),
            "Last request": moment(run.last_request_time, now),
            "Labels": labels(run.user_metadata),
            "Last checkpoint": run.last_checkpoint or NOTHING,
            "Last sampler checkpoint": run.last_sampler_checkpoint or NOTHING,
        },
    )


def _print_latest(latest: Step | None) -> None:
    if latest is None:
        print_line("\nNo optimizer step yet.")
        return
    print_line("")
    print_properties(
        f"Step {latest.step}, {moment(latest.time, datetime.now(UTC))}",
        {
            "Loss (sum)": _number(latest.loss),
            "Gradient norm": _number(latest.grad_norm),
            "Learning rate": _number(latest.learning_rate),
            "Tokens": f"{latest.tokens:,}",
            "Step time": f"{latest.seconds:.3g} s",
            "Sampler-trainer gap": _number(latest.sampler_trainer_gap, " nats per token"),
        },
    )


def _plot(taken: list[Step]) -> None:
    from rich.console import Console

    from services.cli.curves import curves_of, draw

    for curve in curves_of(taken):
        print_line(f"\n{draw(curve, Console().width)}")


def _write_png(run: TrainingRun, taken: list[Step], png: Path) -> None:
    from services.cli.curves import curves_of, write_png

    curves = curves_of(taken)
    if not curves:
        raise ValueError(f"nothing to draw: {run.training_run_id} has no optimizer step yet")
    write_png(curves, f"{run.base_model}, {run.training_run_id}", png)
    print_line(f"wrote {png}", to_stderr=True)


def _number(value: float | None, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:.6g}{unit}"


def _checkpoint_id(tinker_path: str | None) -> str:
    return tinker_path.split("/", 3)[-1] if tinker_path else NOTHING
