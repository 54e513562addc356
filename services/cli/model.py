"""`tinker-platform model`: base models that can be trained or sampled now."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.access import Access, user_command
from services.cli.output import NOTHING, print_json, print_line, print_table

app = typer.Typer(help="List the base models that the platform serves.", no_args_is_help=True)


@user_command(app, "list")
def list_models(
    access: Access,
    part: Annotated[str, typer.Argument(metavar="TEXT", help="Only models whose name contains this text.")] = "",
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
        print_line(
            f"No base model whose name contains {part!r} is served." if served else "No base model is served now."
        )
