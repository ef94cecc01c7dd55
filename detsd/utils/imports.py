"""Imports of the large libraries without the parts that nothing here uses, in half the time.

No name is changed or missing: a deferred package runs when it is first asked for a name that it
would have defined. It is like `importlib.util.LazyLoader`, but for packages whose modules are
imported by their full names, which alone would make LazyLoader run them.
"""

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

# By library: the version tested, and the packages to defer. These import or list all their modules
# although only one is used, or only some samplers need them. Other versions are imported as usual,
# since an import order that their authors did not foresee may fail. Importing everything that makes
# images takes 2.9 s of CPU time with this, 4.9 s without (dev/LOG.md).
DEFERRED = {
    "accelerate": ("1.15", ("accelerate.commands.config",)),
    "boto3": ("1.44", ("boto3",)),
    "diffusers": (
        "0.42",
        (
            "diffusers.hooks", "diffusers.models.autoencoders", "diffusers.models.transformers",
            "diffusers.models.unets",
        ),
    ),
    "scipy": ("1.17", ("scipy.integrate", "scipy.stats")),
    "transformers": ("5.23", ("transformers.models",)),
}  # fmt: skip


@contextlib.contextmanager
def only_what_is_used() -> Iterator[None]:
    """Defer packages that the block imports without needing them, and pause garbage collection.

    Imports create a million objects that stay. The collector walks through all of them a dozen
    times, a quarter of the import time, and once more when the process ends.
    """
    first, collects, finder = "torch" not in sys.modules, gc.isenabled(), _Finder()
    sys.meta_path.insert(0, finder)
    gc.disable()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if first:
            gc.freeze()
        if collects:
            gc.enable()


class _Deferred(ModuleType):
    """A package whose code runs once it is asked for a name that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        with self.__dict__["_lock"]:
            if loader := self.__dict__.pop("_loader", None):
                loader.exec_module(self)
        module = sys.modules[self.__name__]  # some replace themselves with another
        return super().__getattribute__(name) if module is self else getattr(module, name)


class _Loader(SourceFileLoader):
    """The loader of a package that is prepared but not yet run."""

    def exec_module(self, module: ModuleType) -> None:
        loader = SourceFileLoader(self.name, self.path)
        module.__loader__ = module.__spec__.loader = loader
        module.__dict__.update(_loader=loader, _lock=threading.RLock())
        module.__class__ = _Deferred


class _Finder:
    """The finder of deferred packages."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        library = name.partition(".")[0]
        deferred = name in DEFERRED.get(library, ("", ()))[1] and _tried(library)
        spec = PathFinder.find_spec(name, path, target) if deferred else None
        if spec:
            spec.loader = _Loader(name, spec.origin)
        return spec


def _tried(library: str) -> bool:
    """Return whether deferring was tested with the installed version."""
    try:
        return ".".join(version(library).split(".")[:2]) == DEFERRED[library][0]
    except PackageNotFoundError:
        return False
