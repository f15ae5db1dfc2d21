"""Imports go down only, nothing heavy is imported with the package, and every file is Python 3.10."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cupycorr"
ADAPTERS = ("flownet2", "mmcv", "mmtracker", "pwcnet", "spatial_correlation_sampler", "tfa", "unfold_sampler")
COMPILED_HALVES = ("correlation_cuda", "spatial_correlation_sampler_backend")

# Floor by floor, lowest first: a module may import modules of lower floors only, so no two of one floor know each other.
FLOORS = (
    ("cupycorr._sharing", "cupycorr._gpu.source", "cupycorr._gpu.device"),
    ("cupycorr._correlation.problem", "cupycorr._dtypes", "cupycorr._arrays", "cupycorr._gpu.compiler", "cupycorr._gpu.costs"),
    ("cupycorr._cpu.blas_limits", "cupycorr._cpu.cores"),
    ("cupycorr._cpu.workers", "cupycorr._correlation.cpu.lattice", "cupycorr._gpu.launcher", "cupycorr._tuning"),
    (
        "cupycorr._correlation.cpu.blocks",
        "cupycorr._cpu.register_tile",
        "cupycorr._correlation.cpu.window_sums",
        "cupycorr._gpu.call",
    ),
    (
        "cupycorr._correlation.cpu.packing",
        "cupycorr._correlation.gpu.forward_phases",
        "cupycorr._correlation.gpu.gradient_phases",
    ),
    ("cupycorr._correlation.cpu.engine", "cupycorr._correlation.cpu.non_finite"),
    ("cupycorr._correlation.cpu.forward",),
    ("cupycorr._correlation.cpu.gradient",),
    ("cupycorr._correlation.cpu.planner",),
    ("cupycorr._correlation.gpu.forward_tiled", "cupycorr._correlation.gpu.forward_mma"),
    ("cupycorr._correlation.gpu.gradient_tiled", "cupycorr._correlation.gpu.gradient_mma"),
    ("cupycorr._correlation.gpu.planner",),
    ("cupycorr._correlation.reference", "cupycorr._correlation.cpu.blas", "cupycorr._correlation.cpu.simd"),
    ("cupycorr._dispatch",),
    ("cupycorr._correlation.api",),
    ("cupycorr.motion", "cupycorr.torch._tensors", "cupycorr.torch._transforms"),
    ("cupycorr.torch._correlation",),
    ("cupycorr.torch",),
    ("cupycorr.compat._conventions",),
    tuple(f"cupycorr.compat.{name}" for name in ADAPTERS),
    tuple(f"cupycorr.compat.{name}" for name in COMPILED_HALVES),
    ("cupycorr._pictures",),
    ("cupycorr.channels",),
    ("cupycorr",),
    ("cupycorr.cli", "cupycorr.compat._install"),
    ("cupycorr.compat", "cupycorr.compat.__main__"),
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
FLOOR.update({"cupycorr._backends": -1, "cupycorr._gpu": -1})  # say what the folder is for, import nothing

# Where a third-party package may be imported: everything but numpy only inside a function, by the module that needs it.
GUESTS = {
    "cupycorr._cpu.blas_limits": {"threadpoolctl"},
    "cupycorr._cpu.register_tile": {"llvmlite"},
    "cupycorr._gpu.compiler": {"cupy"},
    "cupycorr._gpu.device": {"cupy"},
    "cupycorr._gpu.launcher": {"cupy"},
    "cupycorr._dtypes": {"ml_dtypes"},
    "cupycorr._pictures": {"matplotlib"},
    "cupycorr.cli": {"click", "PIL", "rich", "skimage"},
    **{f"cupycorr.compat.{name}": {"torch"} for name in ("_conventions", *ADAPTERS, *COMPILED_HALVES)},
    "cupycorr.torch": {"torch"},
    "cupycorr.torch._tensors": {"ml_dtypes", "torch"},
    "cupycorr.torch._correlation": {"torch"},
    "cupycorr.torch._transforms": {"torch"},
}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
modules = pytest.mark.parametrize("module", MODULES)


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(source, module, is_package, *, at_top=False):
    """The modules that a source imports, those inside functions included unless ``at_top``, those for type checkers left out."""
    waiting = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if is_type_checking(node):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from imported_from(node, module, is_package)
        elif not (at_top and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            waiting += ast.iter_child_nodes(node)


def imported_from(node, module, is_package):
    """``from a import b`` imports the module a.b if there is one, else a."""
    base = module.split(".") if is_package else module.split(".")[:-1]
    above = base[: len(base) - node.level + 1] if node.level else []
    origin = ".".join([*above, *([node.module] if node.module else [])])
    for alias in node.names:
        inside = f"{origin}.{alias.name}"
        yield inside if inside in MODULES else origin


def imports_of(module, **options):
    path = MODULES[module]
    return set(imports(path.read_text(), module, path.name == "__init__.py", **options))


@modules
def test_every_module_has_its_floor(module):
    assert module in FLOOR, f"{module} has no floor: give it a place in FLOORS of {Path(__file__).name}"


def test_every_place_is_taken_by_a_module():
    assert set(FLOOR) == set(MODULES)


@modules
def test_imports_go_down_only(module):
    wrong = [name for name in imports_of(module) if name in MODULES and FLOOR[name] >= FLOOR[module]]
    assert not wrong, f"{module} imports {', '.join(wrong)}, which is not below it"


def test_nothing_in_the_backends_knows_what_is_above_them():
    above = {
        "cupycorr",
        "cupycorr._dispatch",
        "cupycorr._correlation.api",
        "cupycorr.motion",
        "cupycorr._pictures",
        "cupycorr.cli",
    }
    backends = [module for module in MODULES if module.startswith("cupycorr._backends")]
    assert len(backends) > 1
    for module in backends:
        assert not imports_of(module) & above, module


def test_what_compiles_and_launches_knows_nothing_of_what_is_launched():
    below = [module for module in MODULES if module.startswith("cupycorr._gpu.")]
    assert len(below) > 1
    for module in below:
        ours = {name for name in imports_of(module) if name.startswith("cupycorr")}
        assert all(name.startswith("cupycorr._gpu") for name in ours), module


@modules
def test_third_party_packages_are_imported_by_their_one_module_inside_a_function(module):
    def third_party(names):
        return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"cupycorr"}

    at_top = {"numpy", "torch"} if is_torchs(module) else {"numpy"}
    assert third_party(imports_of(module)) <= {"numpy"} | GUESTS.get(module, set())
    assert third_party(imports_of(module, at_top=True)) <= at_top


def is_torchs(module):
    return f"{module}.".startswith("cupycorr.torch.") or module in {
        f"cupycorr.compat.{name}" for name in ("_conventions", *ADAPTERS, *COMPILED_HALVES)
    }


def test_nothing_outside_imports_what_imports_torch():
    for module in MODULES:
        assert is_torchs(module) or not any(map(is_torchs, imports_of(module))), module


WALKED = {
    "relative": ("from . import cli", {"cupycorr.cli"}),
    "from a module": ("from ._api import explain", {"cupycorr._correlation.api"}),
    "by its whole name": ("import cupycorr.cli", {"cupycorr.cli"}),
    "inside a function": ("def f():\n    from .cli import main", {"cupycorr.cli"}),
    "inside try": ("try:\n    import torch\nexcept ImportError:\n    pass", {"torch"}),
    "for type checkers": ("if TYPE_CHECKING:\n    from .cli import main", set()),
    "not for type checkers": ("if TYPE_CHECKING:\n    pass\nelse:\n    import torch", {"torch"}),
}


@pytest.mark.parametrize(("source", "found"), WALKED.values(), ids=WALKED)
def test_the_walk_finds_imports(source, found):
    assert set(imports(source, "cupycorr._correlation.problem", False)) == found


def test_the_walk_resolves_parents():
    source = "from .. import _api\nfrom .._dispatch import choose\nfrom . import cpu"
    wanted = {"cupycorr._correlation.api", "cupycorr._dispatch", "cupycorr._correlation.cpu.planner"}
    assert set(imports(source, "cupycorr._cpu.workers", False)) == wanted


def test_importing_the_package_imports_numpy_and_nothing_else_of_third_parties():
    program = "import numpy, sys; before = set(sys.modules); import cupycorr; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    new = {name.partition(".")[0] for name in done.stdout.split()}
    assert "cupycorr" in new
    assert new - sys.stdlib_module_names == {"cupycorr"} | (new & {"numpy"})


def newer_than_3_10(source):
    """Lines of syntax that Python 3.10 refuses: what the parser knows, and starred subscripts without parentheses."""
    try:
        tree = ast.parse(source, feature_version=(3, 10))
    except SyntaxError as error:
        return [error.lineno]
    subscripts = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)]
    starred = [inside for inside in subscripts if any(isinstance(part, ast.Starred) for part in inside.elts)]
    return [inside.lineno for inside in starred if not ast.get_source_segment(source, inside).startswith("(")]


@modules
def test_the_source_is_python_3_10(module):
    assert newer_than_3_10(MODULES[module].read_text()) == []


NEWER = {
    "starred subscript": ("x[*y]", True),
    "exception groups": ("try:\n    pass\nexcept* ValueError:\n    pass", True),
    "generic function": ("def f[T](x: T): ...", True),
    "starred tuple in parentheses": ("x[(*y,)]", False),
    "match": ("match x:\n    case 1:\n        pass", False),
}


@pytest.mark.parametrize(("source", "newer"), NEWER.values(), ids=NEWER)
def test_newer_syntax_is_seen(source, newer):
    assert bool(newer_than_3_10(source)) is newer
