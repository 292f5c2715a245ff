"""``seawall models``."""

from __future__ import annotations

from seawall.cli.terminal import console
from seawall.core.errors import Fatal
from seawall.runtime.settings import seawall_home


def install_demo() -> None:
    """Install both demo packs under $SEAWALL_HOME/models; quick when they are there and whole."""
    try:
        from seawall.local.models.install import install_demo as install
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        raise Fatal(
            "EXTRA_MISSING", f"installing models needs the package {error.name}: pip install 'seawall[models]'"
        ) from error
    install(seawall_home(), console(stderr=True).print)
