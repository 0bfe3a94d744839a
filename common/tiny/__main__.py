"""python -m common.tiny: makes the model that ships with the project again, by the warm start of the default settings."""
from common.tiny.model import ship

print(ship())
