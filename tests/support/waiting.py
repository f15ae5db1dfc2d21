"""How tests wait, and what the programs that they start find: the same on an idle machine, on a busy one, and in the background.

No test depends on how long something takes. What measures time is given a clock of the test's own; what could wait for ever is
counted, or given up after `STUCK` seconds, which nothing that is right takes even on a machine with much other work.
"""

STUCK = 1800.0  # seconds

# The first lines of a program that a test interrupts. Shells start a command in the background with SIGINT ignored, every process
# that it starts inherits that, and Python raises no KeyboardInterrupt then.
INTERRUPTIBLE = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def timer(*, over: bool) -> type:
    """A class in the place of `threading.Timer`: its time is over as soon as it starts, or never."""

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
