"""python -m common.run report RUN [RUN ...] [--out FILE]"""
from common.run.report import main

main()
