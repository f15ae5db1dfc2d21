"""Activates the software CUDA in a Python process whose parent had it, at the moment when the process imports CuPy.

Python imports this module when it starts. It leaves no other trace: the folder is taken from the path again, and the next
`sitecustomize` on the path takes this one's place.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VARIABLE = "CUPYCORR_SOFTWARE_CUDA"
NAME = "cupycorr_software_cuda"  # of the package in such a process: the repository may not be on the path


class ActivateBeforeCuPy:
    """A finder that finds what the others find, once it has activated the process."""

    activates_software_cuda = True  # by which activation knows it and takes it from the path

    def find_spec(self, name, path=None, target=None):
        if name in ("cupy", "cupy_backends"):
            spec = importlib.machinery.ModuleSpec(NAME, None, is_package=True)
            spec.submodule_search_locations = [str(HERE.parent)]
            sys.modules.setdefault(NAME, importlib.util.module_from_spec(spec))
            importlib.import_module(f"{NAME}.activation").activate_inherited()
            return importlib.util.find_spec(name)  # by the finder that this has put before the others
        return None


def run_the_next_one():
    """Run the `sitecustomize` that would have run without this one."""
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None:
        module = sys.modules["sitecustomize"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    if os.environ.get(VARIABLE):
        sys.meta_path.insert(0, ActivateBeforeCuPy())
    run_the_next_one()
