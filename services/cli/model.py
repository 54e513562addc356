"""`tinker-platform model`: the base models that can be trained and sampled at this moment."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.access import Access, user_command
from services.cli.output import NOTHING, print_json, print_line, print_table

app = typer.Typer(help="See which base models the platform serves.", no_args_is_help=True)


@user_command(app, "list")
def list_models(
    access: Access, part: Annotated[str, typer.Argument(help="Only models whose name has this in it.")] = ""
) -> None:
    """List the base models that live trainers and samplers serve.

    Example: tinker-platform model list qwen
    """
    served = access.service.get_server_capabilities().supported_models
    models = [model for model in served if part.lower() in model.model_name.lower()]
    if access.wants_json:
        print_json({"models": models})
    elif models:
        columns = ("MODEL", "TRAIN", "SAMPLE", "CONTEXT", "MAX RANK", "LOSSES")
        print_table(
            columns,
            [
                (
                    model.model_name,
                    "yes" if model.trainable else "no",
                    "yes" if model.sampleable else "no",
                    f"{model.max_context_length:,}",
                    str(model.max_lora_rank or NOTHING),
                    ", ".join(model.loss_fns) or NOTHING,
                )
                for model in models
            ],
        )
    else:
        print_line(f"No base model is served{f' whose name has {part!r} in it' if served else ' at this moment'}.")
