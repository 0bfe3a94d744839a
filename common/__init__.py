"""The code that the training scripts share. Nothing in this folder knows the name of an algorithm."""
import importlib.util
import logging
import sys

# Importing peft imports bitsandbytes. On a CPU, bitsandbytes would warn at every start that an optional kernel package is missing.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# Locks of folders, processes of rewards and limits of memory are those of Unix.
if sys.platform == "win32" or not all(importlib.util.find_spec(name) for name in ("fcntl", "resource")):
    from common.console import fail

    fail("error: Vinery needs Linux or macOS; on Windows it runs inside WSL (wsl --install)")
