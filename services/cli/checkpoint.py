"""`tinker-platform checkpoint`: see, share, keep and delete what training runs have saved.

Deleting, and moving them in and out of the platform, are files of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.access import Access, user_command
from services.cli.checkpoint_choice import After, Before, Choice, PathArgument, RunId, TypeOption
from services.cli.checkpoint_delete import delete
from services.cli.checkpoint_output import expiry, print_checkpoint, print_checkpoints
from services.cli.checkpoint_transfer import download, import_checkpoint, merge
from services.cli.listing import Limit, at_most
from services.cli.output import as_json, print_json, print_line

if TYPE_CHECKING:
    from tinker_client.types import Checkpoint

app = typer.Typer(help="See, share, move and delete your checkpoints.", no_args_is_help=True)


@user_command(app, "list")
def list_checkpoints(
    access: Access,
    run_id: RunId = None,
    checkpoint_type: TypeOption = None,
    before: Before = None,
    after: After = None,
    limit: Limit = 20,
) -> None:
    """List your checkpoints, newest first: all of them, or those of one run, of one type, or of some time.

    Example: tinker-platform checkpoint list --run-id $RUN --limit 0
    """
    choice = Choice.of(run_id, checkpoint_type, before, after)
    checkpoints, has_more = at_most(choice.checkpoints(access.rest, limit), limit)
    if access.wants_json:
        print_json({"checkpoints": checkpoints, "has_more": has_more})
        return
    if not checkpoints:
        print_line("There is no such checkpoint." if choice.is_narrow else "There is no checkpoint yet.")
        return
    print_checkpoints(checkpoints)
    if has_more:
        print_line(f"These are the newest {limit}; --limit 0 shows all.")


@user_command(app, "info")
def checkpoint_info(access: Access, path: PathArgument) -> None:
    """Show a checkpoint, yours or a published one.

    Example: tinker-platform checkpoint info tinker://$RUN/weights/step-100
    """
    checkpoint = access.rest.get_checkpoint(path).result()
    if access.wants_json:
        print_json({**as_json(checkpoint), "is_lora": True, "lora_rank": checkpoint.lora_config.rank})
        return
    print_checkpoint(checkpoint)


@user_command(app, "publish")
def publish(access: Access, path: PathArgument) -> None:
    """Let every user of the platform read, load, sample and download a checkpoint. Only you can change it.

    Example: tinker-platform checkpoint publish tinker://$RUN/sampler_weights/final
    """
    checkpoint = access.rest.publish_checkpoint_from_tinker_path(path).result()
    _report(access, checkpoint, f"published {checkpoint.tinker_path}")


@user_command(app, "unpublish")
def unpublish(access: Access, path: PathArgument) -> None:
    """Take a publication back. Sampling that has already begun with the checkpoint goes on.

    Example: tinker-platform checkpoint unpublish tinker://$RUN/sampler_weights/final
    """
    checkpoint = access.rest.unpublish_checkpoint_from_tinker_path(path).result()
    _report(access, checkpoint, f"{checkpoint.tinker_path} is yours alone again")


@user_command(app, "set-ttl")
def set_ttl(
    access: Access,
    path: PathArgument,
    ttl: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Delete it so long from now: 3600 to 315360000.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Keep it for ever.")] = False,
) -> None:
    """Have a checkpoint delete itself after a time, or keep it for ever.

    Example: tinker-platform checkpoint set-ttl tinker://$RUN/weights/step-100 --ttl 604800
    """
    if (ttl is None) is not remove:
        raise typer.BadParameter("give either --ttl SECONDS or --remove")
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
