"""`tinker-platform checkpoint download | merge | import`: transfers adapters from and to the platform.

Downloads are verified, and an interrupted one resumes. Existing files with other content are an error; with --force
they are replaced once the new files are complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from services.cli.access import Access
from services.cli.checkpoint_choice import PathArgument, parse_path
from services.cli.output import print_json, print_line, size
from services.cli.progress import ReportBytes, transfer_bar

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        file_okay=False,
        help="Directory to write. Default: named after the run and the checkpoint.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files that have other content.")]


def download(access: Access, path: PathArgument, output: Output = None, force: Force = False) -> None:
    """Download a checkpoint's adapter as a PEFT directory, which PeftModel.from_pretrained reads.

    Example: tinker-platform checkpoint download tinker://$RUN/sampler_weights/final -o final
    """
    directory = output or _directory_of(path, "")

    def fetch(target: Path, report: ReportBytes) -> None:
        access.rest.download_checkpoint(path, target, report).result()

    _write(access, path, directory, force=force, title="downloading", fetch=fetch)


def merge(access: Access, path: PathArgument, output: Output = None, force: Force = False) -> None:
    """Merge a checkpoint's adapter into its base model and download the result as a Hugging Face model directory.

    A sampler of the base model computes the merge.

    Example: tinker-platform checkpoint merge tinker://$RUN/sampler_weights/final -o final-merged
    """
    directory = output or _directory_of(path, "-merged")

    def fetch(target: Path, report: ReportBytes) -> None:
        merging = access.service.create_sampling_client(model_path=path).merge_weights(target, report)
        try:
            merging.result()
        except KeyboardInterrupt:
            merging.cancel()
            raise

    _write(access, path, directory, force=force, title="merging", fetch=fetch)


def import_checkpoint(
    access: Access,
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="A PEFT adapter directory, or a .safetensors file.")],
    base_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A base model of `model list`. Default: the one that the adapter names."),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the new checkpoint.")] = "imported",
    rename_base_model: Annotated[
        bool,
        typer.Option(
            "--rename-base-model",
            help="Accept an adapter trained on a differently named base model, if its shapes match.",
        ),
    ] = False,
    ttl: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Seconds until the checkpoint is deleted: 3600 to 315360000.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Label of the new run and checkpoint. Can be repeated."),
    ] = None,
) -> None:
    """Import an adapter in PEFT's format as the checkpoint of a new training run, with a fresh optimizer.

    Example: tinker-platform checkpoint import my-adapter --base-model Qwen/Qwen3-0.6B --name start
    """
    user_metadata = dict(_label(text) for text in label or ())
    with transfer_bar("uploading") as report:
        imported = access.service.import_checkpoint(
            adapter,
            base_model=base_model or _named_base_model(adapter),
            name=name,
            rename_base_model=rename_base_model,
            ttl_seconds=ttl,
            user_metadata=user_metadata,
            progress=report,
        )
    if access.wants_json:
        print_json(imported)
    else:
        print_line(imported.path)


def _write(
    access: Access,
    path: str,
    directory: Path,
    *,
    force: bool,
    title: str,
    fetch: Callable[[Path, ReportBytes], None],
) -> None:
    target = directory.parent / f".{directory.name}.new" if force else directory
    with transfer_bar(title) as report:
        fetch(target, report)
    if force:
        _replace(directory, target)
    size_bytes = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
    if access.wants_json:
        print_json({"checkpoint_path": path, "destination": str(directory), "file_size_bytes": size_bytes})
    else:
        print_line(f"{directory}: {size(size_bytes)}")


def _replace(directory: Path, fetched: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file in fetched.iterdir():
        os.replace(file, directory / file.name)
    fetched.rmdir()


def _directory_of(tinker_path: str, suffix: str) -> Path:

    path = parse_path(tinker_path)
    return Path(f"{path.training_run_id.replace(':', '-')}_{path.name}{suffix}")


def _named_base_model(adapter: Path) -> str:
    if not adapter.is_dir() and adapter.suffix != ".safetensors":
        raise ValueError(f"DIR: must be an adapter's directory or a .safetensors file (got {adapter})")
    config = (adapter if adapter.is_dir() else adapter.parent) / "adapter_config.json"
    try:
        named = json.loads(config.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        named = None
    if not isinstance(named, str) or not named:
        raise ValueError(f"{config} names no base model; pass --base-model")
    return named


def _label(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter(f"must be NAME=VALUE (got {text!r})", param_hint="--label")
    return name, value
