"""What several processes tell each other, in real processes over loopback. tests/test_several_processes.py runs the scripts that way."""

import contextlib
import gc
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
import weakref
from functools import partial

import pytest
import torch
from helpers import ROOT, free_port

from common import parallel
from common.config import CommonConfig
from common.errors import UserError
from common.policy import load
from common.policy.pretrained import load_tokenizer
from common.rollout.shared_engine import SharedEngine

sys.path.insert(0, str(ROOT / "benchmarks"))
from shapes import write_config


def call_with_gloo(real, backend, **options):
    """A machine without cards has no NCCL."""
    assert backend == "cpu:gloo,cuda:nccl" or os.environ["CUDA_VISIBLE_DEVICES"] == ""
    real("gloo", **options)


def in_processes(count, work, seconds=60, visible=""):
    """`work(rank)` in `count` joined processes. Returns what each gave back, or the text of its error, and their exit codes."""
    results, port = multiprocessing.get_context("fork").Queue(), free_port()

    def start(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": visible}
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        with parallel.together(to_the_end=True):
            parallel.join()
            try:
                results.put((rank, work(rank)))
            except Exception as error:
                results.put((rank, f"{type(error).__name__}: {error}"))
                results.close()
                results.join_thread()
                raise

    processes = [multiprocessing.get_context("fork").Process(target=start, args=(rank,), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    found = {}
    end = time.monotonic() + seconds
    while any(process.is_alive() for process in processes) or not results.empty():
        assert time.monotonic() < end, "it hangs"
        with contextlib.suppress(Exception):
            rank, result = results.get(timeout=0.05)
            found[rank] = result
    return [found.get(rank) for rank in range(count)], [process.exitcode for process in processes]


def test_alone_everything_is_given_back():
    assert (parallel.count(), parallel.rank()) == (1, 0)
    assert parallel.part([3, 1]) == slice(0, 2) and parallel.part([]) == slice(0, 0)
    mine = [object()]
    assert parallel.gather(mine, "things") is mine and parallel.first(lambda: mine, "things") is mine
    tensor = torch.ones(2)
    parallel.add_up([tensor], "things")
    parallel.agree({"thing": object()})
    assert tensor.tolist() == [1, 1] and parallel.anywhere(True, "it") and not parallel.anywhere(False, "it")
    with pytest.raises(SystemExit, match=r"^why$"), parallel.together(to_the_end=True):
        sys.exit("why")


def test_shares_follow_each_other_and_cost_about_the_same(monkeypatch):
    rng = random.Random(0)
    for _ in range(300):
        costs, count = [rng.choice([0, 1, rng.randint(1, 999)]) for _ in range(rng.randint(0, 40))], rng.randint(1, 9)
        monkeypatch.setattr(parallel, "count", lambda n=count: n)
        shares = []
        for rank in range(count):
            monkeypatch.setattr(parallel, "rank", lambda n=rank: n)
            shares.append(parallel.part(costs))
        items = list(range(len(costs)))
        assert [i for share in shares for i in items[share]] == items
        # a share is off by one item at most
        assert all(abs(sum(costs[share]) - sum(costs) / count) <= max(costs, default=0) for share in shares)


def test_the_example_of_a_share(monkeypatch):
    monkeypatch.setattr(parallel, "count", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert parallel.part([4, 1, 1, 2]) == slice(1, 4)


def test_exchanges_of_three_processes():
    def work(rank):
        mine = [("text", rank)] * rank  # process 0 has none
        tensors = [torch.full((2, 2), float(rank)), torch.tensor(10.0**rank)]
        parallel.add_up(tensors, "numbers")
        parallel.agree({"number": 7})
        calls = []
        return (
            parallel.gather(mine, "texts", about=["same"]),
            [tensor.tolist() for tensor in tensors],
            parallel.first(lambda: calls.append(rank) or "of process 0", "a text"),
            calls,
            [parallel.anywhere(flag, "flags") for flag in (rank == 2, False)],
            [10, 20, 30, 40][parallel.part([1] * 4)],
        )

    results, codes = in_processes(3, work)
    texts = [("text", 1), ("text", 2), ("text", 2)]
    shares = [[10], [20, 30], [40]]
    assert codes == [0, 0, 0]
    assert results == [
        (texts, [[[3.0, 3.0], [3.0, 3.0]], 111.0], "of process 0", [0] if rank == 0 else [], [True, False], shares[rank])
        for rank in range(3)
    ]


OTHERS = {
    "another list": lambda rank: parallel.gather([rank], "texts", about=[rank == 1]),
    "another exchange": lambda rank: parallel.gather([rank], "texts") if rank == 1 else parallel.gather([rank], "rewards"),
    "another kind": lambda rank: parallel.gather([rank], "numbers") if rank == 1 else parallel.add_up([torch.ones(1)], "numbers"),
    "another shape": lambda rank: parallel.add_up([torch.ones(1 + rank)], "numbers"),
    "an end too early": lambda rank: parallel.gather([rank], "texts") if rank == 1 else None,
}


@pytest.mark.parametrize("work", OTHERS.values(), ids=OTHERS)
def test_processes_that_decide_differently_end_and_are_named(work):
    results, codes = in_processes(2, work)
    assert codes == [1, 1]
    told = [result for result in results if result is not None]
    assert told and all("RuntimeError: the processes have taken different decisions: process 0 on" in result for result in told)
    assert all(f"process 1 on {socket.gethostname()} is about to" in result for result in told)


def test_what_differs_between_machines_is_named():
    results, codes = in_processes(3, lambda rank: parallel.agree({"model": "same", "data": "mine" if rank == 2 else "all"}))
    host = socket.gethostname()
    assert codes == [1, 1, 1] and len(set(results)) == 1
    assert results[0].startswith(f"UserError: process 2 on {host} has another data than process 0 on {host}")


@pytest.mark.parametrize("code, error", [(1, UserError("mine")), (1, ValueError("mine")), (130, SystemExit(130)), (0, SystemExit(0))])
def test_an_end_in_one_process_ends_all_with_its_code(code, error):
    def fail():
        raise error

    for number in (0, 1):
        _, codes = in_processes(2, lambda rank, one=number: fail() if rank == one else parallel.gather([rank], "texts"))
        assert codes == [code, code]
    _, codes = in_processes(2, lambda rank: parallel.first(fail, "a text"))
    assert codes == [code, code]


def test_what_cannot_be_sent_ends_all():
    results, codes = in_processes(2, lambda rank: parallel.gather([lambda: rank] if rank == 1 else [0], "functions"))
    assert codes == [1, 1] and "pickle" in results[1]


def test_a_process_that_is_killed_is_noticed():
    results, codes = in_processes(3, lambda rank: os._exit(9) if rank == 1 else parallel.gather([rank], "texts"))
    assert codes == [1, 9, 1]
    assert all("UserError: the connection to another process of this run is lost" in results[rank] for rank in (0, 2))


def test_each_process_sees_its_own_card(monkeypatch):
    def card(local, visible):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        parallel._take_card()
        return os.environ["CUDA_VISIBLE_DEVICES"]

    assert [card(local, None) for local in (0, 3)] == ["0", "3"]
    assert [card(local, "5,GPU-7") for local in (0, 1)] == ["5", "GPU-7"]
    assert [card(local, none) for local in (0, 1) for none in ("", "-1")] == ["", "-1", "", "-1"]
    assert card(2, "0,1") == ""


def test_a_process_without_a_card_beside_others_that_have_one_ends_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ["CUDA_VISIBLE_DEVICES"] != "")
    monkeypatch.setattr(torch.distributed, "init_process_group", partial(call_with_gloo, torch.distributed.init_process_group))
    results, codes = in_processes(3, lambda rank: rank, visible="5,7")
    assert codes == [1, 1, 1] and results == [None] * 3


def test_cards_meet_before_anybody_asks_for_free_memory(monkeypatch):
    real, met = torch.ones, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: met.append("they wait"))
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: met.append(device) or real(*size))
    monkeypatch.setattr(torch.distributed, "init_process_group", partial(call_with_gloo, torch.distributed.init_process_group))
    assert in_processes(2, lambda rank: met, visible="0,1") == ([["cuda", "they wait"]] * 2, [0, 0])

    def apart(_):
        raise RuntimeError("NCCL error in: NCCLUtils.cpp, unhandled cuda error\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", apart)
    with pytest.raises(UserError, match=r"cannot reach each other \(NCCL error in: NCCLUtils.cpp, unhandled cuda error\): start one"):
        parallel._meet_cards()


def test_whether_rows_are_packed_is_the_same_in_all_processes(monkeypatch):
    config = CommonConfig()
    files = load_tokenizer(config)
    monkeypatch.setattr(load, "keeps_packed_rows_apart", lambda policy: parallel.rank() == 0)  # the card of process 1 cannot

    def work(rank):
        said = []
        monkeypatch.setattr(load, "say", said.append)
        return load.load_policy(config, *files).packs, [line.partition(", as")[0] for line in said]

    note = "note: rows are padded and prompts not shared in the update"
    assert in_processes(2, work) == ([(False, [note]), (False, [])], [0, 0])


def test_an_engine_that_nobody_needs_any_more_takes_no_connections_with_it():
    class Collected:
        """As vLLM: its end is that of its own groups, and of the group of all."""

    def work(rank):
        engine = Collected()
        weakref.finalize(engine, lambda group: [torch.distributed.destroy_process_group(one) for one in (group, None)],
                         torch.distributed.new_group([0, 1]))  # fmt: skip
        SharedEngine(engine)
        del engine
        gc.collect()
        return parallel.count()  # else one process could wait for another that has left

    assert in_processes(2, work) == ([2, 2], [0, 0])


@pytest.mark.parametrize("typed", [None, 0.5])
def test_all_processes_make_the_plan_of_the_smallest_card(typed, tmp_path, monkeypatch):
    """Cards of 24 GB with 20 free, and of 80 GB with 30 free: each gives vLLM the same bytes."""
    from common.run import memory_plan

    model = write_config("Qwen2.5-7B", tmp_path)
    free = [(20e9, 24e9), (30e9, 80e9)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ.get("WORLD_SIZE") is None)  # not while it joins
    monkeypatch.setattr(memory_plan, "card_memory", lambda: free[parallel.rank()])

    def plan(rank):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        config = CommonConfig(model=str(model), dataset="gsm8k", load_in_4bit=True, engine="vllm")
        if typed:
            config.vllm_gpu_memory_utilization, config.given = typed, frozenset({"vllm_gpu_memory_utilization"})
        made = memory_plan.plan_run(config)
        return made, config.max_tokens_per_microbatch, config.planned, config.vllm_gpu_memory_utilization * free[rank][1]

    (small, large), codes = in_processes(2, plan)
    assert codes == [0, 0] and small[:3] == large[:3]
    assert typed or small[3] == pytest.approx(large[3], rel=0.01)


def test_a_launch_without_all_that_it_takes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set: start the script with torchrun"):
        parallel.join()


def test_the_launcher_is_that_of_the_parent_process_or_says_the_numbers(monkeypatch):
    assert parallel.launcher() is None
    monkeypatch.setattr(parallel, "count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(sys, "argv", ["no/such/script.py", "--seed", "1"])
    assert parallel.launcher() == ["torchrun", "--nnodes", "2", "--nproc_per_node", "8", "no/such/script.py"]
    start = "import subprocess, sys; subprocess.run([*sys.argv[2:], sys.argv[1]])"
    words = [sys.executable, "-c", start, "script.py", sys.executable, "-c"]
    code = (
        "import sys; sys.argv = ['script.py', '--seed', '1']; from common import parallel; parallel.count = lambda: 2;"
        "print(parallel.launcher())"
    )
    told = subprocess.run([*words, code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told == f"{words[:4]}\n"
