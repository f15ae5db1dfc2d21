"""Waiting and signals, the same on an idle machine, on a busy one and in the background.

No test depends on how long something takes. Code that measures time is given a clock of the test's own; code that could wait for
ever is counted, or given up after `STUCK` seconds, which correct code never takes, even on a busy machine.
"""

STUCK = 1800.0  # seconds

# The first lines of a program that a test interrupts. A shell starts a command in the background with SIGINT ignored, all
# processes that the command starts inherit this, and then Python raises no KeyboardInterrupt.
INTERRUPTIBLE = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def timer(*, over: bool) -> type:
    """Return a substitute for `threading.Timer` whose time is over as soon as it starts, or never."""

    class Timer:
        seconds = None

        def __init__(self, seconds, function):
            Timer.seconds, self.function = seconds, function

        def start(self):
            if over:
                self.function()

        def cancel(self):
            pass

        def join(self):
            pass

    return Timer
