"""A reward that differs between the completions of a problem, so that all of them are in the update: for benchmarks of speed."""


def spread(completion: str, problem) -> float:
    """The length of the text in characters, divided by 100."""
    return len(completion) / 100
