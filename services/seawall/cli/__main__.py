"""``python -m seawall.cli``."""

from seawall.cli import main

main()
