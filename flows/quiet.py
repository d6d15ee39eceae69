"""TensorFlow imported without its chatter.

Its C++ core writes lines such as "oneDNN custom operations are on" to standard error as it is loaded, whatever
TF_CPP_MIN_LOG_LEVEL says: they stand between the lines of cmseg, and in its progress bars.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

CHATTY = "tensorflow"


class QuietImport(MetaPathFinder):
    """Points the file descriptor of standard error elsewhere while TensorFlow is imported; errors still raise."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders find TensorFlow, once, and wrap its execution."""
        if fullname != CHATTY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def quietly(module: ModuleType) -> None:
            with _silence():
                execute(module)

        spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


@contextmanager
def _silence() -> Iterator[None]:
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
