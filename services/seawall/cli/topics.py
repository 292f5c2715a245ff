"""``seawall topics``."""

from __future__ import annotations

import asyncio
import sys

from rich.text import Text

from seawall.cli.reach import local_settings, topics_of
from seawall.cli.terminal import console, print_json
from seawall.runtime import topics
from seawall.runtime.kafka import KafkaBroker


def apply(*, json_output: bool) -> None:
    """Create what is absent. Raises Fatal with the mend where that would not do."""
    settings = local_settings()
    created = asyncio.run(topics.apply(KafkaBroker(settings.kafka), settings.kafka, settings.topics))
    names = topics_of(settings).all
    if json_output:
        print_json({"created": created, "topics": list(names)})
        return
    for name in names:
        console().print(Text.assemble((f"{name:<32}"), ("created", "green") if name in created else ("there", "dim")))


def check(*, json_output: bool) -> None:
    """Compare; exit status 1 if a topic is not what it must be."""
    settings = local_settings()
    names = topics_of(settings)
    problems = asyncio.run(topics.check(KafkaBroker(settings.kafka), names))
    if json_output:
        print_json({"ok": not problems, "topics": list(names.all), "problems": [one._asdict() for one in problems]})
    elif problems:
        for problem in problems:
            console().print(Text.assemble((problem.reason, "red"), f" {problem}"))
    else:
        console().print(Text.assemble((f"{len(names.all)} topics are as they must be", "green")))
    sys.exit(1 if problems else 0)
