"""docs/settings.md, made from the settings: `python -m services.cli.settings_table > docs/settings.md`."""

from __future__ import annotations

from collections.abc import Iterator

from services.cli.setting import Setting, settings_of, shown
from services.core.config import SERVICES, Settings

INTRODUCTION = """\
# Settings

A setting is a flag of the services that read it (`max_runs` is `--max-runs`) and an environment variable
(`TINKER_MAX_RUNS`). A flag wins over a variable, and a variable over the default. `tinker-platform up` takes the
settings of all services but `worker_port`; its default of `reflection` is `open`. Every service accepts the variables
of all services, so one environment can serve them all. An unknown `TINKER_…` variable or a value that is not
allowed ends a service with exit code 2.

`tinker-platform settings` lists the values in the present environment. This page is made from the code:
`python -m services.cli.settings_table > docs/settings.md`.
"""


def page() -> str:
    """The whole document."""
    return "\n".join((INTRODUCTION, *_lines(), ""))


def _lines() -> Iterator[str]:
    yield "| setting | variable | default | unit | allowed | meaning | services |"
    yield "|---|---|---|---|---|---|---|"
    for each in settings_of(Settings):
        default = f"`{text}`" if (text := shown(each.default, each.unit)) else "empty"
        cells = (f"`{each.name}`", f"`{each.variable}`", default, each.unit, each.rule, each.description)
        yield f"| {' | '.join((*cells, _services(each)))} |"


def _services(setting: Setting) -> str:
    return "all" if len(setting.services) == len(SERVICES) else ", ".join(setting.services)


if __name__ == "__main__":
    print(page(), end="")
