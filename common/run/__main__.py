"""python -m common.run report RUN [RUN ...] [--out FILE]"""
from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports

from common.run.report import main

main()
