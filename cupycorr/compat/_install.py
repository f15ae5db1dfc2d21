"""Adapters under the neighbours' import names: what is registered in ``sys.modules``, and put back as it was.

Knows names and modules, nothing of correlation; an adapter, and torch with it, is imported when it is installed. Installations
are claims: the newest claim on an import name has it, and taking one away leaves what would be there had it never been made.
That is why contexts may nest, end in any order, and end while other installations stay.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .._sharing import fork_safe_lock


class Package(NamedTuple):
    """What answers to an import name."""

    adapter: str  # module of cupycorr.compat
    submodules: tuple[str, ...] = ()


class Neighbour(NamedTuple):
    """Where a neighbour's code looks for it."""

    packages: dict[str, Package]  # by import name
    compiled: str = ""  # of the packages, the one without which the others do not run
    part: str = ""  # of a large package, which stays and gets this part of it


_EXTENSION = Neighbour(
    {
        "spatial_correlation_sampler": Package("spatial_correlation_sampler", ("spatial_correlation_sampler",)),
        # Copies of the extension's Python half lie anywhere in models' code, and import this.
        "spatial_correlation_sampler_backend": Package("spatial_correlation_sampler_backend"),
    }
)

NEIGHBOURS = {
    "spatial_correlation_sampler": _EXTENSION,
    "unfold_sampler": Neighbour({"spatial_correlation_sampler": Package("unfold_sampler", ("correlation",))}),
    "mmcv": Neighbour({"mmcv": Package("mmcv", ("ops", "ops.correlation"))}, part="ops"),
    "flownet2": Neighbour(
        {
            "correlation_package": Package("flownet2", ("correlation", "modules", "modules.correlation", "modules.corr")),
            # Copies of the package's Python half lie anywhere in models' code, and import this.
            "correlation_cuda": Package("correlation_cuda"),
        },
        compiled="correlation_cuda",
    ),
    "pwcnet": Neighbour({"correlation": Package("pwcnet", ("correlation",))}),
    "tfa": Neighbour({"tensorflow_addons": Package("tfa", ("layers", "layers.optical_flow"))}),
    "mmtracker": _EXTENSION,
}
DEFAULT = tuple(name for name in NEIGHBOURS if name != "unfold_sampler")  # the C++ extension's name serves one of the two

_MISSING = object()


def install(*names: str, force: bool = False) -> None:
    """Let other packages' import names lead to cupycorr's adapters, in this process.

    Parameters
    ----------
    *names : str
        Neighbours, as the table of `cupycorr.compat` names them; none is all but ``"unfold_sampler"``, whose import name is the
        C++ extension's. One that is installed already stays; another convention under its import name replaces it.
    force : bool, default False
        Put an adapter in the place of a package that is really installed, until `uninstall`.

    Raises
    ------
    ValueError
        A name is unknown, or two of them want the same import name for different adapters.
    ImportError
        A neighbour is really installed (``name`` and ``path`` of the error tell what, and where), and ``force`` is not set; or
        torch is missing. Nothing is installed then.

    See Also
    --------
    installed : for the length of a ``with`` block.

    Notes
    -----
    A folder without ``__init__.py`` is not taken for an installed package. What was imported from a package before keeps what it
    got. mmcv is never shadowed: where ``mmcv.ops`` can be imported, its Correlation is replaced, with or without ``force``; where
    it cannot, as in mmcv-lite, ``mmcv.ops`` is added; and only where there is no mmcv, there is one of nothing else.

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
    """Undo `install`: what was there before is there again.

    Parameters
    ----------
    *names : str
        Neighbours; none is all. One that is not installed is left at that.

    Raises
    ------
    ValueError
        A name is unknown.

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
    """`install` for the length of a ``with`` block; what was installed before stays.

    Parameters
    ----------
    *names, force
        As `install` takes them.

    Raises
    ------
    ValueError, ImportError
        As `install`, when the block is entered.

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


# Claims -------------------------------------------------------------------------------------------------------------------------


class _Attribute:
    """One attribute of a module, in place of what was there."""

    def __init__(self, module: ModuleType, name: str, value: Any) -> None:
        self.module, self.name, self.value = module, name, value

    def put(self) -> None:
        self.before = vars(self.module).get(self.name, _MISSING)
        setattr(self.module, self.name, self.value)

    def take_away(self) -> None:
        if not self.is_there():
            return
        if self.before is _MISSING:
            delattr(self.module, self.name)
        else:
            setattr(self.module, self.name, self.before)

    def is_there(self) -> bool:
        return vars(self.module).get(self.name, _MISSING) is self.value


class _Part:
    """An adapter's names as attributes of modules that are really installed."""

    def __init__(self, root: str, adapter: ModuleType, modules: Iterable[ModuleType]) -> None:
        self.key = root, "attributes"
        self.adapter = adapter
        self.attributes = [_Attribute(module, name, getattr(adapter, name)) for module in modules for name in adapter.__all__]

    def put(self) -> None:
        for attribute in self.attributes:
            attribute.put()

    def take_away(self) -> None:
        for attribute in reversed(self.attributes):
            attribute.take_away()

    def is_there(self) -> bool:
        return all(attribute.is_there() for attribute in self.attributes)


class _Package:
    """An adapter as a package with submodules, in place of whatever has that import name."""

    def __init__(self, root: str, adapter: ModuleType, submodules: Iterable[str]) -> None:
        self.key = root, "modules"
        self.root, self.adapter = root, adapter
        names = [root, *(f"{root}.{name}" for name in submodules)]
        self.modules = {name: _module(name, adapter, is_package=_has_submodules(name, names)) for name in names}
        for name in names[1:]:
            above, _, last = name.rpartition(".")
            setattr(self.modules[above], last, self.modules[name])

    def put(self) -> None:
        self.before = {name: module for name, module in sys.modules.items() if f"{name}.".startswith(f"{self.root}.")}
        for name in self.before:
            del sys.modules[name]
        sys.modules.update(self.modules)
        above, _, last = self.root.rpartition(".")
        parent = sys.modules.get(above)
        self.bound = [] if parent is None else [_Attribute(parent, last, self.modules[self.root])]
        for attribute in self.bound:
            attribute.put()

    def take_away(self) -> None:
        for attribute in self.bound:
            attribute.take_away()
        for name, module in self.modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        for name, module in self.before.items():
            sys.modules.setdefault(name, module)

    def is_there(self) -> bool:
        return all(sys.modules.get(name) is module for name, module in self.modules.items())


def _has_submodules(name: str, names: Iterable[str]) -> bool:
    return any(other.startswith(f"{name}.") for other in names)


class _Claim(NamedTuple):
    neighbour: str
    owner: object  # the `installed` block that made it, None for `install`
    place: _Part | _Package


_LOCK = fork_safe_lock()
_CLAIMS: list[_Claim] = []  # oldest first
_PLACED: dict[tuple[str, str], _Part | _Package] = {}


def _claim(names: tuple[str, ...], force: bool, owner: object) -> None:
    names = _known(names) or DEFAULT
    _check_that_they_agree(names)
    with _LOCK, _without_shims():
        if not force:
            _refuse(names)
        new: list[_Claim] = []
        for name in names:
            new += [_Claim(name, owner, _one_of_both(place, new)) for place in _places(NEIGHBOURS[name], force)]
        _CLAIMS[:] = [claim for claim in _CLAIMS if claim not in new] + new
        _settle(renewed={claim.place for claim in new})


def _release(is_gone: Callable[[_Claim], bool]) -> None:
    with _LOCK:
        _CLAIMS[:] = [claim for claim in _CLAIMS if not is_gone(claim)]
        _settle()


def _settle(renewed: Collection[_Part | _Package] = ()) -> None:
    """Make what is in place what the newest claims ask for; what others have put over it stays unless the claim is renewed."""
    wanted = {claim.place.key: claim.place for claim in _CLAIMS}
    for key, place in list(_PLACED.items()):
        if wanted.get(key) is not place or (place in renewed and not place.is_there()):
            _PLACED.pop(key).take_away()
    for key, place in wanted.items():
        if key not in _PLACED:
            place.put()
            _PLACED[key] = place


def _one_of_both(place: _Part | _Package, new: list[_Claim]) -> _Part | _Package:
    """The same place where it is claimed already, so that its modules stay the objects that others have imported."""
    claimed = (claim.place for claim in (*_CLAIMS, *new))
    return next((other for other in claimed if (other.key, other.adapter) == (place.key, place.adapter)), place)


def _places(neighbour: Neighbour, force: bool) -> list[_Part | _Package]:
    importlib.import_module("cupycorr.torch")  # where torch is missing, its error names the remedy
    if neighbour.part and location(_top(neighbour)):
        return [_place_in_a_real_package(neighbour)]
    packages = neighbour.packages.items()
    return [_Package(root, _adapter(package), package.submodules) for root, package in packages if force or not location(root)]


def _adapter(package: Package) -> ModuleType:
    return importlib.import_module(f"cupycorr.compat.{package.adapter}")


def _place_in_a_real_package(neighbour: Neighbour) -> _Part | _Package:
    root, top = _part(neighbour), _top(neighbour)
    package = neighbour.packages[top]
    names, adapter = [f"{top}.{name}" for name in package.submodules], _adapter(package)
    if _is_really_importable(root):
        return _Part(root, adapter, [sys.modules[name] for name in names if name in sys.modules])
    return _Package(root, adapter, [name.removeprefix(f"{root}.") for name in names if name != root])


def _top(neighbour: Neighbour) -> str:
    return next(iter(neighbour.packages))


def _part(neighbour: Neighbour) -> str:
    return f"{_top(neighbour)}.{neighbour.part}"


def _module(name: str, adapter: ModuleType, *, is_package: bool) -> ModuleType:
    module = ModuleType(name, f"cupycorr's {name}: the names of {adapter.__name__}, for code that is written for the package.")
    module.__spec__ = ModuleSpec(name, None, origin=adapter.__name__, is_package=is_package)
    module.__package__ = module.__spec__.parent
    if is_package:
        module.__path__ = []
    for public in adapter.__all__:
        setattr(module, public, getattr(adapter, public))
    module.__all__ = list(adapter.__all__)
    return module


# What is really installed -------------------------------------------------------------------------------------------------------


def whereabouts(name: str) -> tuple[str, str] | None:
    """What is really installed of a neighbour: the import name that tells, and where it lies; None for nothing."""
    neighbour = NEIGHBOURS[name]
    if neighbour.part:
        root = _part(neighbour)
        return (root, location(root)) if location(_top(neighbour)) and _is_really_importable(root) else None
    telling = (neighbour.compiled,) if neighbour.compiled else neighbour.packages
    return next(((root, place) for root in telling if (place := location(root))), None)


def location(name: str) -> str | None:
    """Where a module that is not ours lies, without importing it; None for none, and for a folder without ``__init__.py``."""
    if name not in sys.modules:
        spec = search(name)
    elif sys.modules[name] is None or _is_ours(sys.modules[name]):
        spec = None
    else:
        spec = getattr(sys.modules[name], "__spec__", None) or ModuleSpec(name, None, origin="sys.modules")
    if spec is None or (spec.origin is None and spec.submodule_search_locations is not None):
        return None
    return spec.origin or spec.name


def search(name: str) -> ModuleSpec | None:
    """What the import system finds on disk, whatever ``sys.modules`` has under the name."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next(filter(None, specs), None)


def _is_ours(module: ModuleType) -> bool:
    packages = (place for place in _PLACED.values() if isinstance(place, _Package))
    return any(module is other for package in packages for other in package.modules.values())


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
    """An ImportError if a package that is really installed would be displaced; a part of a large one is not."""
    shadowing = [name for name in names if not NEIGHBOURS[name].part and not _is_installed(name)]
    found = dict(filter(None, map(whereabouts, shadowing)))
    if found:
        told = ", ".join(f"{root} at {place}" for root, place in found.items())
        (root, place), *_ = found.items()
        raise ImportError(f"really installed, and displaced only with force=True (--force): {told}", name=root, path=place)


def _is_installed(name: str) -> bool:
    places = [claim.place for claim in _CLAIMS if claim.neighbour == name]
    return bool(places) and all(place.is_there() for place in places)


# Child processes ----------------------------------------------------------------------------------------------------------------

_SHIMS: set[str] = set()  # folders of which this process has installed what is to be installed


def write_shims(folder: str, names: Iterable[str]) -> None:
    """Fill a folder with modules of the neighbours' import names that install ``names`` in a process that imports one of them."""
    names = tuple(names)
    text = f"from cupycorr.compat import _install\n\n_install.install_from_shim({folder!r}, __name__, {names!r})\n"
    for root in (root for name in names for root in NEIGHBOURS[name].packages):
        Path(folder, f"{root}.py").write_text(text, encoding="utf-8")
    _SHIMS.add(folder)


def install_from_shim(folder: str, name: str, names: tuple[str, ...]) -> None:
    """What a shim does when it is imported: make way, and install once what the process before had installed."""
    del sys.modules[name]
    if folder not in _SHIMS:
        _SHIMS.add(folder)
        _claim(names, True, None)
    with _without_shims():
        importlib.import_module(name)


@contextmanager
def _without_shims() -> Iterator[None]:
    """``sys.path`` without the folders of shims, which are no packages that are really installed."""
    shims = [(number, entry) for number, entry in enumerate(sys.path) if entry in _SHIMS]
    for _, entry in shims:
        sys.path.remove(entry)
    try:
        yield
    finally:
        for number, entry in shims:
            sys.path.insert(number, entry)
