"""The command line.

    seawall up | demo                     the embedded mesh; the sample stream through it
    seawall submit | why                  one generation in; one decision explained
    seawall status | tail | doctor        how the rooms are; decisions as they are made; what is wrong, and its mend
    seawall hold list, dlq list|show|redrive|discard   what waits for a person
    seawall restart ROOM                  one room of the mesh on this machine
    seawall run ROOM                      one room in this process, as a container or the supervisor starts it
    seawall policy new|check|test|diff|explain|replay|shadow
    seawall topics apply|check            the topics
    seawall banks import|stat|verify|export|diff|disable|enable|confirm   lists of hashes
    seawall banks pull|vote               hash exchanges: their lists, our opinion of them
    seawall models install demo           the demo's models

Exit status: 0 done; 1 an error, told in one line with its mend; 2 wrong usage; `submit` exits by outcome.
Every command imports what it needs when it runs: `seawall run aggregator` loads no model runtime, and needs no extra
but its own.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def main() -> NoReturn:
    """Entry point of ``seawall``."""
    from seawall.core.errors import SeawallError

    try:
        _dispatch()
    except SeawallError as error:
        fail(error.reason, error.detail)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
    sys.exit(0)


def fail(reason: str, detail: str) -> NoReturn:
    """One line on standard error, and exit status 1."""
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}error{plain}: {reason}: {detail}", file=sys.stderr, flush=True)
    sys.exit(EXIT_ERROR)


def _dispatch() -> None:
    from seawall.cli import run

    if len(sys.argv) == 3 and sys.argv[1] == "run" and sys.argv[2] in run.ROOMS:
        # A room is started often (restarts) and lives long: not through Typer, which costs it 0.2 s and 15 MB.
        run.run(sys.argv[2])
        return
    from seawall.cli.app import app

    # What a library warns of reaches a person as our own error, once; a room sets up its own logging.
    logging.getLogger().addHandler(logging.NullHandler())
    app(prog_name="seawall")
