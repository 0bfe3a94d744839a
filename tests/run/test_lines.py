from common.records import Completion, Problem, make_batch
from common.run.lines import sample_line


def test_a_sample_shows_the_question_and_not_the_template():
    completion = Completion([7], [-0.5], "stop", "2")
    asked = Problem("a", "<user>What is 1 + 1?<end><assistant>", (1, 2), "2", question="What is 1 + 1?")
    written = Problem("b", "1 + 1 =", (1, 2), "2")
    lines = [sample_line(make_batch([problem], [[completion]]), 1.0) for problem in (asked, written)]
    assert lines == ["  What is 1 + 1?  ->  2  (reward 1, reference 2)", "  1 + 1 =  ->  2  (reward 1, reference 2)"]
