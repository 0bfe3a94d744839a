"""python -m common.policy merge --model M --adapter DIR --out DIR"""
from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports

from common.policy.merge import main

main()
