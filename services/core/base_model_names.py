"""Names of a base model: the first that it was given, its aliases, and what else is understood as one of them.

Requests may write a name in another case, and with the suffix `:peft:N` of the hosted API, whose N is the context that
its users chose; what is too long for the model served is refused on its own. What is written exactly as a name is that
name, and a spelling that several names share is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.core.errors import InvalidArgumentError, broken_rule

_SUFFIX = re.compile(r":peft:\d+$")


@dataclass(frozen=True)
class ServedModel:
    """A base model that one set of workers serves, as options name it."""

    name: str
    """What it is recorded under."""

    source: str
    """Hugging Face name or local directory."""

    aliases: tuple[str, ...] = ()
    """Further names that it answers to."""

    options: tuple[str, ...] = ()
    """The options that say so."""


def parse_base_model(option: str) -> tuple[str, str]:
    """NAME=DIR, DIR, or a Hugging Face name → the name that clients use, and where to load it from."""
    if Path(option).is_dir():
        return Path(option).resolve().name, option
    name, given, source = option.partition("=")
    return (name, source) if given else (option, option)


def parse_base_models(options: Iterable[str]) -> list[ServedModel]:
    """The base models of several options, in order; further names of one directory are aliases of the first.

    Raises:
        InvalidArgumentError: two models have one name: checkpoints and runs of one would go on with the other.
    """
    models: dict[str, ServedModel] = {}
    places: dict[str, str] = {}
    for option in options:
        name, source = parse_base_model(option)
        place = str(Path(source).resolve()) if Path(source).is_dir() else source
        if (other := places.setdefault(name, place)) != place:
            broken = broken_rule("one model for each name", f"two called {name!r}")
            advice = f"{other} and {place}; give one of them another name with NAME=DIR"
            raise InvalidArgumentError.at("base_model", f"{broken}: {advice}")
        known = models.get(place)
        if known is None:
            models[place] = ServedModel(name, source, options=(option,))
        elif name not in (known.name, *known.aliases):
            names = (*known.aliases, name)
            models[place] = ServedModel(known.name, known.source, names, (*known.options, option))
    return list(models.values())


def parse_worker_model(options: Sequence[str]) -> ServedModel:
    """The one base model of a worker's options.

    Raises:
        InvalidArgumentError: they name several.
    """
    model, *others = parse_base_models(options)
    if others:
        broken = broken_rule("one model for one worker", f"{len(others) + 1} models")
        raise InvalidArgumentError.at("base_model", f"{broken}; NAME=DIR with the same directory adds a name")
    return model


def matching(name: str, known: Iterable[str]) -> str | None:
    """The known name that is meant by a name of a request; None if there is none."""
    names = set(known)
    for written in (name, _SUFFIX.sub("", name)):
        if written in names:
            return written
        alike = [one for one in names if one.casefold() == written.casefold()]
        if len(alike) == 1:
            return alike[0]
    return None
