"""The code that the training scripts share. Nothing in this folder knows the name of an algorithm."""
import logging

# Importing peft imports bitsandbytes. On a CPU, bitsandbytes would warn at every start that an optional kernel package is missing.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
