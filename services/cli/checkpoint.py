"""`tinker-platform checkpoint`: list, show, share, download, import and delete checkpoints.

`checkpoint_delete` and `checkpoint_transfer` have the commands that delete, download, merge and import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.access import Access, user_command
from services.cli.checkpoint_choice import After, Before, Choice, PathArgument, RunId, TypeOption
from services.cli.checkpoint_delete import delete
from services.cli.checkpoint_output import expiry, print_checkpoint, print_checkpoints
from services.cli.checkpoint_transfer import download, import_checkpoint, merge
from services.cli.listing import Limit, print_listing
from services.cli.output import as_json, print_json, print_line

if TYPE_CHECKING:
    from tinker_client.types import Checkpoint

app = typer.Typer(help="List, share, download, import and delete checkpoints.", no_args_is_help=True)


@user_command(app, "list")
def list_checkpoints(
    access: Access,
    run_id: RunId = None,
    checkpoint_type: TypeOption = None,
    before: Before = None,
    after: After = None,
    limit: Limit = 20,
) -> None:
    """List your checkpoints, newest first; options select those of a run, a type or a time.

    Example: tinker-platform checkpoint list --run-id $RUN --limit 0
    """
    choice = Choice.of(run_id, checkpoint_type, before, after)
    nothing = "No checkpoints match." if choice.is_narrow else "No checkpoints yet."
    checkpoints = choice.checkpoints(access.rest, limit)
    print_listing(access, "checkpoints", checkpoints, limit, nothing=nothing, table=print_checkpoints)


@user_command(app, "info")
def checkpoint_info(access: Access, path: PathArgument) -> None:
    """Show one of your checkpoints, or a published one.

    Example: tinker-platform checkpoint info tinker://$RUN/weights/step-100
    """
    checkpoint = access.rest.get_checkpoint(path).result()
    if access.wants_json:
        print_json({**as_json(checkpoint), "is_lora": True, "lora_rank": checkpoint.lora_config.rank})
        return
    print_checkpoint(checkpoint)


@user_command(app, "publish")
def publish(access: Access, path: PathArgument) -> None:
    """Publish a checkpoint: every user of the platform can then load, sample and download it.

    Only you can change or delete it.

    Example: tinker-platform checkpoint publish tinker://$RUN/sampler_weights/final
    """
    checkpoint = access.rest.publish_checkpoint_from_tinker_path(path).result()
    _report(access, checkpoint, f"published {checkpoint.tinker_path}")


@user_command(app, "unpublish")
def unpublish(access: Access, path: PathArgument) -> None:
    """Make a published checkpoint private again.

    Sampling sessions that already use it keep working.

    Example: tinker-platform checkpoint unpublish tinker://$RUN/sampler_weights/final
    """
    checkpoint = access.rest.unpublish_checkpoint_from_tinker_path(path).result()
    _report(access, checkpoint, f"unpublished {checkpoint.tinker_path}")


@user_command(app, "set-ttl")
def set_ttl(
    access: Access,
    path: PathArgument,
    ttl: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Seconds until the checkpoint is deleted: 3600 to 315360000.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the expiry: the checkpoint is kept.")] = False,
) -> None:
    """Set or remove a checkpoint's expiry.

    Example: tinker-platform checkpoint set-ttl tinker://$RUN/weights/step-100 --ttl 604800
    """
    if (ttl is None) is not remove:
        raise typer.BadParameter("exactly one of --ttl and --remove is required")
    checkpoint = access.rest.set_checkpoint_ttl_from_tinker_path(path, ttl).result()
    _report(access, checkpoint, f"{checkpoint.tinker_path} expires: {expiry(checkpoint)}")


user_command(app, "delete")(delete)
user_command(app, "download")(download)
user_command(app, "merge")(merge)
user_command(app, "import")(import_checkpoint)


def _report(access: Access, checkpoint: Checkpoint, sentence: str) -> None:
    if access.wants_json:
        print_json(checkpoint)
    else:
        print_line(sentence)
