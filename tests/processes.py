"""Whether a process is still there."""

import time
from pathlib import Path


def gone(pid: int) -> bool:
    """Whether the process has ended, or ends within 5 s. One that nobody waited for yet counts as ended. Reads /proc."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
