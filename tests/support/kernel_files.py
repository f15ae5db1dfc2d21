"""The files that an operator's kernels consist of, apart from those of other operators."""

from cupycorr._gpu import source

FOLDERS = ("common", "correlation")  # of the correlation, whose tests are those of what is common


def kernel_files(pattern="*.cu", folders=FOLDERS):
    """Return the names of the files in some folders that match a pattern, relative to the folder of all kernels."""
    paths = (path for folder in folders for path in (source.folder() / folder).glob(pattern))
    return sorted(path.relative_to(source.folder()).as_posix() for path in paths)
