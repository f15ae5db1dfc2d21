"""The command `python -m tests.software_cuda`, which prepares the software CUDA, or runs a program on it."""

import argparse
import os
import sys

from . import activation, devices, preparation

ABOUT = """
A CUDA driver and runtime on the CPU: programs that use CuPy run on imagined devices, without a GPU. Kernels run slowly, and every
access to memory is checked.
"""
PREPARE = f"""
Makes everything ready in the cache folder: downloads the source of the installed CuPy (4 MB) with pip, and builds CuPy's runtime
module and the library of the driver. The second time there is nothing to do. Needs Linux on x86-64,
g++ {preparation.OLDEST_COMPILER} or newer, Python's headers, {preparation.CUPY}, Cython, nvidia-cuda-nvrtc-cu12 and
nvidia-cuda-runtime-cu12; the extra `test` of cupycorr installs the packages. Nothing that is installed is changed. The cache
folder is CUPYCORR_SOFTWARE_CUDA_CACHE, or `cupycorr-software-cuda` in XDG_CACHE_HOME or ~/.cache; it may be deleted at any time.
"""
RUN = f"""
Runs a command; it and every Python process that it starts have the imagined devices. `python` as the first word is the
interpreter that runs this. The exit code is the command's, or 1 where the software CUDA cannot be prepared. The devices are
{", ".join(devices.DEVICES)}.
"""
NOT_FOUND = 127  # the shell's exit code for a command that is not found


def _prepared():
    """Prepare and return the places; end the program with the reason where that is impossible."""
    try:
        return preparation.prepare(lambda text: print(f"preparing {text}", file=sys.stderr))
    except preparation.CannotPrepareError as error:
        sys.exit(f"The software CUDA cannot be prepared: {error}.")


def prepare(_options):
    prepared = _prepared()
    print(f"the library: {prepared.library}")
    print(f"CuPy's runtime module: {prepared.runtime}")
    print(f"translated kernels: {prepared.modules}")
    print(f"CuPy's cache of kernels: {prepared.kernels}")


def run(options):
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        sys.exit("There is no command to run. Usage: python -m tests.software_cuda run [--devices H200,T4] -- python script.py")
    _prepared()
    if command[0] == "python":
        command = [sys.executable, *command[1:]]
    os.environ.update(activation.environment(options.devices))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_FOUND)


def _devices(text):
    try:
        return devices.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main():
    parser = argparse.ArgumentParser("python -m tests.software_cuda", description=ABOUT)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("prepare", help="make everything ready in the cache folder", description=PREPARE)
    command.set_defaults(function=prepare)
    command = commands.add_parser("run", help="run a program on imagined devices", description=RUN)
    command.add_argument("--devices", type=_devices, default=("H200",), help="kinds, separated by commas; default: H200")
    command.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments, after --")
    command.set_defaults(function=run)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
