"""What the training scripts share. Nothing in here knows an algorithm's name."""
import logging

# bitsandbytes comes with peft; on CPU it would say at every start that an optional kernel package is missing
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
