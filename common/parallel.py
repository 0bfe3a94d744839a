"""One process or several: each one's share of the work, and what they tell each other. Alone, every function gives back what it was given.

torchrun and accelerate start several processes, one for each card. Each runs the whole script, holds the same state and takes the same
decisions. Shared out are the sampling of completions, rewards, and forward and backward passes. All processes take part in every exchange,
and before it they compare what they are about to do: processes that differ end with an error that says how, and none waits for ever.

This file imports torch within its functions, so that --help and wrong flags of a single process are answered at once.
"""
from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import pickle
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from common.console import hide_bars_of_libraries, say
from common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = datetime.timedelta(hours=2)  # the longest that a process waits for the others: far above the longest sampling of a step
SAYING = datetime.timedelta(seconds=10)  # for the store that holds who has said why the run ends
GOES_ON = -1  # in place of an exit code: the process has not ended
T = TypeVar("T")


class Ended(SystemExit):
    """Another process has ended, and has said why. This one ends with the same code and says nothing."""


# ---- who am I -------------------------------------------------------------------------------------------------------

def count() -> int:
    """The number of processes of the run."""
    distributed = sys.modules.get("torch.distributed")  # not imported yet: not joined yet
    return distributed.get_world_size() if distributed and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0, 1, ... Process 0 writes the files and the console."""
    return sys.modules["torch.distributed"].get_rank() if count() > 1 else 0


def here() -> str:
    """This process in words."""
    return f"process {rank()} of {count()}, on {socket.gethostname()}"


def launcher() -> list[str] | None:
    """The command line with which torchrun or another launcher was started, up to the script. None for a run of one process.

    It is that of the parent process. Where this cannot be read, it is one of torchrun with the numbers of processes and machines.
    """
    if count() == 1:
        return None
    with contextlib.suppress(OSError, ValueError):  # ValueError: the parent has not started the script itself
        words = [word.decode() for word in Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")[:-1]]
        return words[:words.index(sys.argv[0]) + 1]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    machines = ["--nnodes", str(count() // local)] if local < count() else []
    return ["torchrun", *machines, "--nproc_per_node", str(local), sys.argv[0]]


def join() -> None:
    """Joins the other processes that a launcher has started. Does nothing alone. Call it before anything touches a GPU.

    From now on this process sees its own card alone, so that "cuda" is the right one everywhere, in vLLM too. Process 0 keeps the console.
    Raises UserError.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return
    lacking = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if lacking:
        raise UserError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(lacking)} is not set: start the script with torchrun or "
                        "accelerate launch, or unset WORLD_SIZE")
    visible = _take_card()
    import torch
    import torch.distributed as dist
    import torch.distributed.nn  # before there is a group: its functions have the group of that moment as a default, and so would keep it

    gpu = torch.cuda.is_available()
    with _connected():  # before vLLM starts, which else would make a group of its own process alone
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
    weakref.finalize(dist, _part)  # at the end: of finalizers the first comes last, so after that of vLLM, which has groups of its own
    if rank() > 0:
        _be_quiet()
    found = gather([(gpu, visible, socket.gethostname())], "their cards")
    without = [number for number, (has, *_) in enumerate(found) if not has]
    if 0 < len(without) < len(found):
        _, visible, host = found[without[0]]
        raise UserError(f"process {without[0]} finds no GPU on {host} (of {visible}), and others have one: start as many processes on each "
                        "machine as it has cards (--nproc_per_node)")
    if gpu:
        _meet_cards()


def _meet_cards() -> None:
    """Connects the cards, so that what NCCL takes of their memory is gone when somebody asks how much is free. Raises UserError."""
    import torch
    import torch.distributed as dist

    try:
        dist.all_reduce(torch.ones(1, device="cuda"))
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise UserError(f"the cards of the processes cannot reach each other ({str(error).strip().splitlines()[0][:200]}): start one "
                        "process for each card; NCCL_DEBUG=INFO shows more") from error


def _take_card() -> str:
    """Makes the card with the local number of this process the only one that it sees. Returns which there are, in words.

    Where there are fewer cards than processes, a process sees none: `join` says so, when it can be told to all.
    """
    local, visible = int(os.environ["LOCAL_RANK"]), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif visible != "-1":  # or "": the user wants the CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[local:local + 1])
    return "all cards" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"


def _be_quiet() -> None:
    """Drops what this process prints to stdout, and the progress bars of libraries."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    hide_bars_of_libraries()


def _part() -> None:
    """Leaves the other processes, and waits for the threads of the connections to end.

    A thread that still holds a tensor of Python's when the interpreter has ended aborts the process ("terminate called without an active
    exception"). The threads end with the last holder of the group.
    """
    import torch.distributed as dist  # at the end of the process vLLM may have left them already

    with contextlib.suppress(Exception):
        dist.destroy_process_group()


# ---- shares and exchanges -------------------------------------------------------------------------------------------

def part(costs: Sequence[int]) -> slice:
    """The stretch of a list that is this process's. costs: what each item costs; the stretches of all processes cost about the same.

    With two processes and costs [4, 1, 1, 2]: the first item, and the other three. A process may get none.
    """
    processes, whole = count(), sum(costs)
    if whole <= 0:
        costs, whole = [1] * len(costs), len(costs)
    # an item belongs to the process in whose share of the costs its middle lies; in whole numbers, as all must find the same
    owners = [min((2 * before + cost) * processes // (2 * whole), processes - 1)  # the last items may cost nothing
              for before, cost in zip(accumulate(costs, initial=0), costs, strict=False)]
    return slice(sum(owner < rank() for owner in owners), sum(owner <= rank() for owner in owners))


def gather(mine: list[T], what: str, about: object = None) -> list[T]:
    """The lists of all processes joined, by their numbers. what: names the exchange. about: must be the same in all processes."""
    if count() == 1:
        return mine
    import torch.distributed as dist

    packed = pickle.dumps(mine)  # before the others count on it
    _compare(f"gather {what}", about)
    parts: list[Any] = [None] * count()
    with _connected():
        dist.all_gather_object(parts, packed)
    return [item for one in parts for item in pickle.loads(one)]


def add_up(tensors: Sequence[Tensor], what: str) -> None:
    """Puts the sum over all processes into each tensor, in one message. The tensors have one type and one device."""
    if count() == 1:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _compare(f"add up {what}", [tuple(tensor.shape) for tensor in tensors])
    with _connected():
        dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def first(function: Callable[[], T], what: str) -> T:
    """The result of `function`, which process 0 alone calls."""
    return gather([function()] if rank() == 0 else [], what)[0]


def anywhere(flag: bool, what: str) -> bool:
    """Whether the flag is True in any process."""
    return any(gather([flag], what))


def agree(values: dict[str, Any]) -> None:
    """Raises UserError if a value differs between processes. values: by their names, in words."""
    found = gather([(values, socket.gethostname())], "what they compare")
    for number, (others, host) in enumerate(found):
        if different := [name for name in {**found[0][0], **others} if others.get(name) != found[0][0].get(name)]:
            raise UserError(f"process {number} on {host} has another {different[0]} than process 0 on {found[0][1]}: all processes must "
                            "find the same files and packages, as on a shared file system")


def _compare(doing: str, about: object = None, code: int = GOES_ON) -> None:
    """Before an exchange: raises RuntimeError if the processes are about to do different things, and Ended if one has ended.

    A small message over the network of the CPUs. It comes first, as the exchange itself would hang, or mix things up.
    """
    import torch
    import torch.distributed as dist

    digest = hashlib.blake2b(repr((doing, about)).encode(), digest_size=8).digest()
    mine = torch.tensor([int.from_bytes(digest, "little", signed=True), code])
    all_of_them = [torch.empty_like(mine) for _ in range(count())]
    with _connected():
        dist.all_gather(all_of_them, mine)
    codes = [int(one[1]) for one in all_of_them]
    if any(one != GOES_ON for one in codes):
        raise Ended(max(codes))
    if any(not torch.equal(one, mine) for one in all_of_them):
        said: list[Any] = [None] * count()
        with _connected():
            dist.all_gather_object(said, (doing, hashlib.sha256(repr(about).encode()).hexdigest()[:8], socket.gethostname()))
        number = next(number for number, one in enumerate(said) if one[:2] != said[0][:2])
        how = [f"process {number} on {host} is about to {what} ({content})" for number, (what, content, host) in
               ((0, said[0]), (number, said[number]))]
        raise RuntimeError(f"the processes have taken different decisions: {', and '.join(how)}. What a script decides must follow from "
                           "its flags, its seed, and what the functions of common/ gave it")


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """In a `with` block: a lost connection raises UserError."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError as well
        raise
    except RuntimeError as error:
        raise UserError(f"the connection to another process of this run is lost ({str(error).strip().splitlines()[0][:200]}): that process "
                        "was killed or has crashed, or its machine has gone. The checkpoints stay; go on with --resume_from_checkpoint "
                        "auto, with as many processes as you like") from error


# ---- the end --------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def together(to_the_end: bool = False) -> Iterator[None]:
    """In a `with` block: if one process ends, all end with its exit code, and the one that ended first says why.

    to_the_end: at the end of the block the processes wait for each other, as the work of the script is done then.
    """
    try:
        yield
        if to_the_end and count() > 1:
            _compare("end, as the script is done")
    except BaseException as error:
        if count() == 1:
            raise
        _end(error)


def _end(error: BaseException) -> NoReturn:
    code = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(error, SystemExit):
        if first_to_say():
            say(f"{here()}:", file=sys.stderr)
            sys.excepthook(type(error), error, error.__traceback__)
    elif isinstance(code, str):
        if first_to_say():
            say(*code.split("\n"), *([f"({here()})"] if rank() else []), file=sys.stderr)
        code = 1
    if not isinstance(error, Ended):
        with contextlib.suppress(Ended, UserError):  # Ended: of this very message. UserError: the connections are gone
            _compare("end", code=code or 0)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it as soon as one process has ended
    raise SystemExit(0 if code is None else code) from None


def first_to_say() -> bool:
    """Whether no other process of this run has said why it ends. From now on this one has."""
    if count() == 1:
        return True
    import torch.distributed as dist

    try:  # the store of the launcher, by a connection of its own
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=SAYING)
        return store.add(f"vinery/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except RuntimeError:  # it was process 0 that held the store, and that has gone
        return True
