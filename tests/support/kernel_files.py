"""The files that the correlation's kernels consist of, apart from those of other operators."""

from cupycorr._gpu import source

FOLDERS = ("common", "correlation")


def kernel_files(pattern="*.cu"):
    """Return the names of the files in `FOLDERS` that match a pattern, relative to the folder of all kernels."""
    paths = (path for folder in FOLDERS for path in (source.folder() / folder).glob(pattern))
    return sorted(path.relative_to(source.folder()).as_posix() for path in paths)
