"""python -m common.policy merge --model M --adapter DIR --out DIR"""
from common.policy.merge import main

main()
