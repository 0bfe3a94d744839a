"""python -m common.tiny: makes the shipped model again, by the warm start with the default settings. Prints its folder."""
from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports

from common.console import guard, say
from common.tiny.model import ship

guard()
say(str(ship()))
