"""Adapters under other packages' import names: an importer that answers for the names, and what was there is put back after.

This module knows names and modules, but nothing of correlation. An adapter, and torch with it, is imported when it is installed.
Every installation makes claims on import names. The newest claim on a name holds; releasing it leaves what would be there if it
had never been made. That is why `installed` blocks may nest, end in any order, and end while other installations stay.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .._sharing import fork_safe_lock


class Package(NamedTuple):
    """The adapter that answers for an import name."""

    adapter: str  # a module of cupycorr.compat
    submodules: tuple[str, ...] = ()


class Neighbour(NamedTuple):
    """The import names that code written for another package uses."""

    packages: dict[str, Package]  # by import name
    compiled: str = ""  # the package without which the others do not run
    part: tuple[str, Package] | None = None  # import name of the module of which only the adapter's names are replaced


_EXTENSION = Neighbour(
    {
        "spatial_correlation_sampler": Package("spatial_correlation_sampler", ("spatial_correlation_sampler",)),
        # Models contain copies of the extension's Python half, which import this.
        "spatial_correlation_sampler_backend": Package("spatial_correlation_sampler_backend"),
    }
)

NEIGHBOURS = {
    "spatial_correlation_sampler": _EXTENSION,
    "unfold_sampler": Neighbour({"spatial_correlation_sampler": Package("unfold_sampler", ("correlation",))}),
    "mmcv": Neighbour(
        {"mmcv": Package("mmcv", ("ops", "ops.correlation"))}, part=("mmcv.ops", Package("mmcv", ("correlation",)))
    ),
    "flownet2": Neighbour(
        {
            "correlation_package": Package("flownet2", ("correlation", "modules", "modules.correlation", "modules.corr")),
            # Models contain copies of the package's Python half, which import this.
            "correlation_cuda": Package("correlation_cuda"),
        },
        compiled="correlation_cuda",
    ),
    "pwcnet": Neighbour({"correlation": Package("pwcnet", ("correlation",))}),
    "tfa": Neighbour({"tensorflow_addons": Package("tfa", ("layers", "layers.optical_flow"))}),
    "mmtracker": _EXTENSION,
    "alt_cuda_corr": Neighbour({"alt_cuda_corr": Package("alt_cuda_corr")}),
    "corr_sampler": Neighbour({"corr_sampler": Package("corr_sampler")}),
    "cuda_corr": Neighbour({"cuda_corr": Package("cuda_corr")}),
    "droid_backends": Neighbour(
        {"droid_backends": Package("droid_backends")}, part=("droid_backends", Package("droid_backends"))
    ),
    "local_corr": Neighbour({"local_corr": Package("local_corr", ("ops",))}),
    "localcorr": Neighbour({"localcorr": Package("localcorr")}),
    "sea_raft": Neighbour({"corr": Package("sea_raft")}),
    "unimatch": Neighbour({"unimatch": Package("unimatch", ("matching",))}, part=("unimatch.matching", Package("unimatch"))),
}
# Their import names belong to others too: to the C++ extension, and to files of RAFT and other models that have more in them.
ONLY_BY_NAME = ("unfold_sampler", "sea_raft")
DEFAULT = tuple(name for name in NEIGHBOURS if name not in ONLY_BY_NAME)


def install(*names: str, force: bool = False) -> None:
    """Make other packages' import names lead to cupycorr's adapters in this process.

    Parameters
    ----------
    *names : str
        Names from the table of `cupycorr.compat`. Without names everything is installed but ``"unfold_sampler"``, which has the
        C++ extension's import name, and ``"sea_raft"``, whose import name is that of files in other models. An adapter that is
        installed already stays; one of another convention is replaced.
    force : bool, default False
        Put an adapter in the place of a package that is really installed, until `uninstall`.

    Raises
    ------
    ValueError
        A name is unknown, or two of them want the same import name for different adapters.
    ImportError
        The other package is really installed (the error's ``name`` and ``path`` say which and where) and ``force`` is not set,
        or torch is missing. Nothing is installed then.

    See Also
    --------
    cupycorr.compat.installed : Install for the length of a ``with`` block.
    cupycorr.compat.uninstall : Undo it.

    Notes
    -----
    A folder without ``__init__.py`` does not count as an installed package. Code that has imported from a package before keeps
    what it imported. A real mmcv always stays: where ``mmcv.ops`` can be imported, its Correlation is replaced, with or without
    ``force``; where it cannot, as in mmcv-lite, ``mmcv.ops`` is added. Where there is no mmcv, it has ``mmcv.ops`` alone. A real
    ``droid_backends`` that can be imported stays too, and its correlation functions are replaced, as is the function of a real
    ``unimatch``.

    Examples
    --------
    >>> from cupycorr.compat import install, uninstall
    >>> install("flownet2")
    >>> from correlation_package.correlation import Correlation
    >>> Correlation.__module__
    'cupycorr.compat.flownet2'
    >>> uninstall("flownet2")
    """
    _claim(names, force, None)


def uninstall(*names: str) -> None:
    """Undo `install` and put back what was there before.

    Parameters
    ----------
    *names : str
        Names from the table of `cupycorr.compat`, all without any. A name that is not installed does no harm.

    Raises
    ------
    ValueError
        A name is unknown.

    See Also
    --------
    cupycorr.compat.install : Provide the import names of other packages.

    Examples
    --------
    >>> import importlib.util
    >>> from cupycorr.compat import install, uninstall
    >>> install("pwcnet")
    >>> uninstall()
    >>> importlib.util.find_spec("correlation") is None
    True
    """
    gone = _known(names) or tuple(NEIGHBOURS)
    _release(lambda claim: claim.neighbour in gone)


@contextmanager
def installed(*names: str, force: bool = False) -> Iterator[None]:
    """Install for the length of a ``with`` block; what was installed before stays.

    Parameters
    ----------
    *names : str
        As for `install`.
    force : bool, default False
        As for `install`.

    Yields
    ------
    None
        Nothing: the block needs no object.

    Raises
    ------
    ValueError, ImportError
        The errors of `install`, when the block is entered.

    See Also
    --------
    cupycorr.compat.install : Install until `uninstall`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import installed
    >>> with installed("mmtracker"):
    ...     from spatial_correlation_sampler import SpatialCorrelationSampler
    >>> x = torch.ones(1, 16, 20, 30)
    >>> SpatialCorrelationSampler(1, 9, 1, 0, 1)(x, x).shape
    torch.Size([1, 9, 9, 20, 30])
    """
    block = object()
    _claim(names, force, block)
    try:
        yield
    finally:
        _release(lambda claim: claim.owner is block)


# The importer -------------------------------------------------------------------------------------------------------------------


class _Importer(MetaPathFinder, Loader):
    """Finds the modules of adapters, before any other finder looks for their names."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of an adapter's module."""
        module = self.modules.get(name)
        return None if module is None else module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module, which exists already: every import of a name gets the same object."""
        return spec.loader_state

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing, for the module has its names already."""


_IMPORTER = _Importer()


def _modules(names: Sequence[str], adapter: ModuleType) -> dict[str, ModuleType]:
    """Return a package and its submodules, each of which has the adapter's names."""
    public = {name: getattr(adapter, name) for name in adapter.__all__}
    if "__getattr__" in vars(adapter):  # it gives the reason why a name is not there
        public["__getattr__"] = adapter.__getattr__
    parents, modules = {_above(name) for name in names}, {}
    for name in names:
        text = f"cupycorr's {name}: the names of {adapter.__name__}, for code that is written for the package."
        module = modules[name] = ModuleType(name, text)
        spec = ModuleSpec(name, _IMPORTER, origin=adapter.__name__, loader_state=module, is_package=name in parents)
        vars(module).update(public, __all__=list(adapter.__all__), __spec__=spec, __package__=spec.parent)
        if spec.submodule_search_locations is not None:
            module.__path__ = []
        if _above(name) in modules:
            setattr(modules[_above(name)], name.rpartition(".")[2], module)
    return modules


def _is_ours(module: ModuleType) -> bool:
    return getattr(getattr(module, "__spec__", None), "loader", None) is _IMPORTER


# Replacements -------------------------------------------------------------------------------------------------------------------

_MISSING = object()


class _Replacement:
    """An adapter in place of a package, as modules that the importer finds, or as attributes of real modules that stay."""

    def __init__(self, root: str, package: Package, keeps_modules: bool) -> None:
        self.root, self._adapter = root, _adapter(package)
        self._names = [root, *(f"{root}.{name}" for name in package.submodules)]
        self._modules = {} if keeps_modules else _modules(self._names, self._adapter)
        self._displaced: dict[str, ModuleType] = {}
        self._attributes: list[tuple[ModuleType, str, Any, Any]] = []  # module, name, value and the value before

    def put(self) -> None:
        if self._modules:
            for name, module in sys.modules.copy().items():  # a copy of a dictionary is atomic, a list of its items is not
                if f"{name}.".startswith(f"{self.root}.") and not _is_ours(module):
                    self._displaced[name] = sys.modules.pop(name)
            _IMPORTER.modules.update(self._modules)
        for module, name, value in self._replaced_attributes():
            before = vars(module).get(name, _MISSING)
            if before is not value:
                self._attributes.append((module, name, value, before))
                setattr(module, name, value)

    def _replaced_attributes(self) -> Iterator[tuple[ModuleType, str, Any]]:
        if not self._modules:
            modules = filter(None, map(sys.modules.get, self._names))
            yield from ((module, name, getattr(self._adapter, name)) for module in modules for name in self._adapter.__all__)
        elif parent := sys.modules.get(_above(self.root)):
            yield parent, self.root.rpartition(".")[2], self._modules[self.root]

    def take_away(self) -> None:
        """Put back what was there, except where others have put something else since."""
        while self._attributes:
            module, name, value, before = self._attributes.pop()
            if vars(module).get(name, _MISSING) is value:
                delattr(module, name) if before is _MISSING else setattr(module, name, before)
        for name, module in self._modules.items():
            del _IMPORTER.modules[name]
            if sys.modules.get(name) is module:
                del sys.modules[name]
        above, last = sys.modules.get(_above(self.root)), self.root.rpartition(".")[2]
        if self._modules and above is not None and vars(above).get(last) is self._modules[self.root]:
            delattr(above, last)  # the import system sets it where the parent was imported later
        for name, module in self._displaced.items():
            sys.modules.setdefault(name, module)
        self._displaced.clear()


_replacement = cache(_Replacement)  # one object of each kind: its modules stay those that others have imported


def _replacements(neighbour: Neighbour, force: bool) -> list[_Replacement]:
    importlib.import_module("cupycorr.torch")  # where torch is missing, the error of this import names the remedy
    if neighbour.part:
        root, package = neighbour.part
        if location(_whole(root)):
            return [_replacement(root, package, _is_really_importable(root))]
    packages = neighbour.packages.items()
    return [_replacement(root, package, False) for root, package in packages if force or not location(root)]


def _adapter(package: Package) -> ModuleType:
    return importlib.import_module(f"cupycorr.compat.{package.adapter}")


def _above(name: str) -> str:
    return name.rpartition(".")[0]


def _whole(part: str) -> str:
    """Return the import name of the package whose part is replaced, or of the module that is itself the whole."""
    return _above(part) or part


# Claims -------------------------------------------------------------------------------------------------------------------------


class _Claim(NamedTuple):
    neighbour: str
    owner: object  # the `installed` block that made it, None for `install`
    replacement: _Replacement


_LOCK = fork_safe_lock()
_CLAIMS: list[_Claim] = []  # oldest first
_IN_PLACE: dict[str, _Replacement] = {}  # by root


def _claim(names: tuple[str, ...], force: bool, owner: object) -> None:
    names = _known(names) or DEFAULT
    _check_that_they_agree(names)
    with _LOCK, _without_shims():
        if not force:
            _refuse(names)
        new = [_Claim(name, owner, each) for name in names for each in _replacements(NEIGHBOURS[name], force)]
        _CLAIMS[:] = [claim for claim in _CLAIMS if claim not in new] + new
        _settle(renewed={claim.replacement for claim in new})


def _release(is_released: Callable[[_Claim], bool]) -> None:
    with _LOCK:
        _CLAIMS[:] = [claim for claim in _CLAIMS if not is_released(claim)]
        _settle()


def _settle(renewed: Collection[_Replacement] = ()) -> None:
    """Put in place what the newest claims ask for; what others have put over it stays, unless the claim is renewed."""
    wanted = {claim.replacement.root: claim.replacement for claim in _CLAIMS}
    if wanted and _IMPORTER not in sys.meta_path:
        sys.meta_path.insert(0, _IMPORTER)
    for root, replacement in list(_IN_PLACE.items()):
        if wanted.get(root) is not replacement:
            _IN_PLACE.pop(root).take_away()
    for root, replacement in wanted.items():
        if root not in _IN_PLACE or replacement in renewed:
            _IN_PLACE[root] = replacement
            replacement.put()
    if not wanted and _IMPORTER in sys.meta_path:
        sys.meta_path.remove(_IMPORTER)


# What is really installed -------------------------------------------------------------------------------------------------------


def whereabouts(name: str) -> tuple[str, str] | None:
    """Return the import name and the place by which a neighbour is recognised as really installed, None where it is not."""
    neighbour = NEIGHBOURS[name]
    if neighbour.part:
        root, _ = neighbour.part
        roots = [root] if location(_whole(root)) and _is_really_importable(root) else []
    else:
        roots = [neighbour.compiled] if neighbour.compiled else [*neighbour.packages]
    return next(((root, place) for root in roots if (place := location(root))), None)


def location(name: str) -> str | None:
    """Return the place of a module that is not ours, without importing it.

    The answer is None where there is no such module, and for a folder without ``__init__.py``.
    """
    if name not in sys.modules:
        spec = None if name in _IMPORTER.modules else search(name)
    elif sys.modules[name] is None or _is_ours(sys.modules[name]):
        spec = None
    else:
        spec = getattr(sys.modules[name], "__spec__", None) or ModuleSpec(name, None, origin="sys.modules")
    if spec is None or (spec.origin is None and spec.submodule_search_locations is not None):
        return None
    return spec.origin or spec.name


def search(name: str) -> ModuleSpec | None:
    """Return the spec that the other finders find, whatever is imported under the name."""
    others = (finder for finder in sys.meta_path if finder is not _IMPORTER and hasattr(finder, "find_spec"))
    return next(filter(None, (finder.find_spec(name, None) for finder in others)), None)


def _is_really_importable(name: str) -> bool:
    try:
        return not _is_ours(importlib.import_module(name))
    except Exception:  # a compiled part of another version may raise anything
        return False


# What is refused ----------------------------------------------------------------------------------------------------------------


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in tuple(NEIGHBOURS)]
    if unknown:
        raise ValueError(f"names must be among {', '.join(NEIGHBOURS)}, got {', '.join(map(repr, unknown))}")
    return names


def _check_that_they_agree(names: tuple[str, ...]) -> None:
    first: dict[str, str] = {}
    for name in names:
        for root, package in NEIGHBOURS[name].packages.items():
            other = first.setdefault(root, name)
            if NEIGHBOURS[other].packages[root].adapter != package.adapter:
                raise ValueError(f"names must not want the same import name, got {other} and {name}, which both are {root}")


def _refuse(names: tuple[str, ...]) -> None:
    """Raise an ImportError if a package that is really installed would be displaced; a part of a large one is not."""
    found = dict(filter(None, (whereabouts(name) for name in names if not NEIGHBOURS[name].part)))
    if found:
        told = ", ".join(f"{root} at {place}" for root, place in found.items())
        (root, place), *_ = found.items()
        raise ImportError(f"really installed, and displaced only with force=True (--force): {told}", name=root, path=place)


# Child processes ----------------------------------------------------------------------------------------------------------------

_SHIMS: set[str] = set()  # the folders of shims whose packages this process has installed


def write_shims(folder: str, names: Iterable[str]) -> None:
    """Fill a folder with modules of the neighbours' import names.

    A spawned process gets ``sys.path`` from its parent, but no importers. The first of these modules that it imports installs all
    the neighbours there.
    """
    names = tuple(names)
    text = f"from cupycorr.compat import _install\n\n_install.install_from_shim({folder!r}, __name__, {names!r})\n"
    for root in (root for name in names for root in NEIGHBOURS[name].packages):
        Path(folder, f"{root}.py").write_text(text, encoding="utf-8")
    _SHIMS.add(folder)


def install_from_shim(folder: str, name: str, names: tuple[str, ...]) -> None:
    """Install what the parent process had installed, once, and import in the shim's place what its name leads to then."""
    del sys.modules[name]
    if folder not in _SHIMS:
        _SHIMS.add(folder)
        _claim(names, True, None)
    with _without_shims():
        importlib.import_module(name)


@contextmanager
def _without_shims() -> Iterator[None]:
    """Take the folders of shims, which are not really installed, out of ``sys.path`` meanwhile."""
    shims = [(number, entry) for number, entry in enumerate(sys.path) if entry in _SHIMS]
    for _, entry in shims:
        sys.path.remove(entry)
    try:
        yield
    finally:
        for number, entry in shims:
            sys.path.insert(number, entry)
