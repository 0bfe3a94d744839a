import random

from common.rollout.prefill import trunks_of


def test_trunks():
    assert trunks_of([(1,), (1, 2), (1, 3)], 9) == {(1,): (1, 2), (1, 2): (1, 2), (1, 3): (1, 3)}
    assert trunks_of([(1,), (1, 2), (1, 3)], 2) == {p: p for p in [(1,), (1, 2), (1, 3)]}
    generator = random.Random(0)
    prompts = [tuple(generator.choices((3, 4), k=generator.randint(1, 9))) for _ in range(300)]
    trunks = trunks_of(prompts, 100)
    assert trunks.keys() == set(prompts)
    for prompt, trunk in trunks.items():
        assert trunk[: len(prompt)] == prompt and trunks[trunk] == trunk
        assert not any(other[: len(trunk)] == trunk for other in trunks if other != trunk)
