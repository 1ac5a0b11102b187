"""In each process of the server under test: another clock, and a count of greenlets when asked for.

Python runs this before all else where its folder is on PYTHONPATH. CHAOS_FOLDER holds `clock`: the seconds by which the
wall clock is to be shifted; the system's own stays as it is. At SIGRTMIN the number of living greenlets goes into
`greenlets-PID` there.
"""

import gc
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path

folder = Path(os.environ["CHAOS_FOLDER"])
with (folder / "clock").open("rb") as file:
    shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
real = time.time
time.time = lambda: real() + struct.unpack("d", shift[:8])[0]  # who takes it later takes this one


def count(*_):
    greenlet = sys.modules["greenlet"].greenlet
    living = sum(isinstance(found, greenlet) and not found.dead for found in gc.get_objects())
    part = folder / f"greenlets-{os.getpid()}.part"
    part.write_text(str(living))
    part.rename(part.with_suffix(""))


signal.signal(signal.SIGRTMIN, count)
