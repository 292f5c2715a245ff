"""`kernel`: how this room compiles. Every kernel releases the interpreter lock and is cached on disk.

Numba unpickles its cache, so the folder must be ours alone: $NUMBA_CACHE_DIR if set, else $SEAWALL_HOME/cache/numba,
never a shared temporary folder. Where neither can be written (a read-only home), kernels are compiled at every start,
which takes seconds instead of a fraction of one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic as _intrinsic

from seawall.runtime.settings import seawall_home

Function = TypeVar("Function", bound=Callable[..., Any])


def _cache_folder() -> Path | None:
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or seawall_home() / "cache" / "numba")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


_FOLDER = _cache_folder()
if _FOLDER is not None:
    # Numba's setting rather than the environment, which children would inherit.
    numba.config.CACHE_DIR = str(_FOLDER)  # type: ignore[attr-defined]

__all__ = ["CACHED", "intrinsic", "kernel", "llvm", "types"]

#: Numba's own, typed as what it makes: a function of the arguments after the typing context.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = _intrinsic
#: Whether kernels survive this process.
CACHED = _FOLDER is not None


def kernel(*, fastmath: bool = False) -> Callable[[Function], Function]:
    """Compile a function.

    Args:
        fastmath: let sums be reordered, so that they become vector instructions. NaN and infinity stay what they are.
    """
    options: dict[str, Any] = {"nogil": True, "cache": CACHED}
    if fastmath:
        options["fastmath"] = {"reassoc", "contract", "nsz", "arcp"}

    def compile_(function: Function) -> Function:
        compiled: Function = numba.njit(**options)(function)
        return compiled

    return compile_
