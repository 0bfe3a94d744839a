"""What `python train_X.py ...` does around an algorithm: flags, memory plan, and an end in one line where that helps."""
from __future__ import annotations

import contextlib
import ctypes
import errno
import sys
from collections.abc import Callable
from pathlib import Path

from common.config import C, CommonConfig, UserError, parse_config
from common.memory import plan_run, table


def run_script(config_class: type[C], train: Callable[[C], None], file: str) -> None:
    """What `python train_X.py ...` does: parse, plan, train, and end with one line instead of a stack trace where that helps."""
    config = None
    keep_freed_memory()
    try:
        config = parse_config(config_class, sys.argv[1:], Path(file).stem)
        plan = plan_run(config) if isinstance(config, CommonConfig) else None
        if plan is not None:
            print(table(plan, config), flush=True)
        if plan is not None and config.plan_memory is not None:
            sys.exit(0 if plan.settings is not None else 1)
        train(config)
    except UserError as error:
        with contextlib.suppress(OSError):  # a run folder with nothing in it
            Path(config.output_dir if config and config.output_dir else "").rmdir()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        remedy = ("older checkpoints are whole: free some space and go on with --resume_from_checkpoint auto"
                  if hasattr(config, "resume_from_checkpoint") else "free some space; the same command with its --output_dir goes on")
        sys.exit(f"error: no room left to write {error.filename or 'the run folder'} ({error.strerror}); {remedy}")


def keep_freed_memory() -> None:
    """Makes glibc reuse memory that was freed, where by default it hands large blocks back at once and gets them zeroed again.

    That was a fifth of the time of an update on the CPU. A no-op for other C libraries.
    """
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # the most that every version takes: blocks of up to 32 MiB come from the heap
        mallopt(trim_threshold, 2**31 - 1)  # which does not shrink
