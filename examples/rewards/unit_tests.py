"""The share of a problem's unit tests that a program passes. Each program runs in a process that can do little but compute.

The data has a column `tests`: a list of Python statements such as "assert add(2, 3) == 5". They call the program's functions, and arguments
and results are numbers, strings, lists, tuples, sets and dictionaries. Classes of the program cannot be used in a test.

python train_grpo.py --model Qwen/Qwen2.5-Coder-1.5B-Instruct --dataset tasks.jsonl --reward examples/rewards/unit_tests.py:unit_tests \
    --system_prompt "Write one Python program in a code block. Write nothing else."

The program and the tests run in two processes. The program gets the arguments of a call and gives its result. It never sees a test or the
mark of one that passes, so it can pass a test only by the right result. Both processes have an empty environment, no file that can be
written, and limits on time, memory, output and open files. On Linux (x86-64, ARM64) they also have no network, start no programs, send no
signals, and read nothing but Python and the system's libraries. What a machine does not enforce is said when the run starts.
"""

import ast
import builtins
import contextlib
import ctypes
import errno
import functools
import json
import os
import re
import resource
import signal
import struct
import sys

SECONDS = 5  # for a program with all its tests. Keep it well below --reward_timeout, so that the process is ended here
MEMORY = 2**30  # bytes of address space of a process
OUTPUT = 2**20  # bytes of what the program prints, of any file, and of a result
FILES = 64  # open files of a process


def unit_tests(completion: str, problem) -> float:
    """The share of the tests in the row that the program in the completion passes."""
    say_what_is_open()
    return share_passed(program_of(completion), problem.row["tests"])


def program_of(completion: str) -> str:
    """The last code block, or the whole text if there is none."""
    blocks = re.findall(r"```(?:python)?\n(.*?)```", completion, re.DOTALL)
    return blocks[-1] if blocks else completion


def share_passed(program: str, tests: list[str]) -> float:
    """The share of the tests that pass after the program has run. A program that fails or ends the process passes none."""
    return sum(passed(program, tests)) / max(1, len(tests))


def passed(program: str, tests: list[str]) -> list[bool]:
    """Which of the tests pass. Runs this file in a process of its own and ends all of it after SECONDS at the latest."""
    import subprocess  # here, so that the process of a program, which runs this file, starts faster
    import tempfile

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as marks, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", os.path.abspath(__file__), str(SECONDS)],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=marks,
            stderr=output,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(json.dumps([program, tests]).encode(), SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        marks.seek(0)
        return [mark == ord("1") for mark in marks.read(len(tests))]


# ---- in the process -------------------------------------------------------------------------------------------------


def main(seconds: float) -> None:
    """Runs the program in a child process and the tests in this one. Writes 1 or 0 to stdout for each test."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds + 1), int(seconds + 1)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS knows no limit of addresses
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    (its_input, ours), (our_input, its) = os.pipe(), os.pipe()
    if os.fork() == 0:  # before the tests are read: nothing in this child knows them
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.close(ours)
        os.close(our_input)
        run_program((os.fdopen(its_input), os.fdopen(its, "w")))
    os.close(its_input)
    os.close(its)
    marks = os.dup(1)
    os.dup2(2, 1)
    program, tests = json.load(sys.stdin)
    confine()
    channel = os.fdopen(our_input), os.fdopen(ours, "w")  # (from the program, to the program)
    send(channel, program)
    functions, values = receive(channel)
    # a name of Python itself stays what it is: a program must not bring its own `abs` into the tests
    names = {name: functools.partial(call, channel, name) for name in functions if not hasattr(builtins, name)} | values
    for test in tests:
        try:
            exec(test, names)
            os.write(marks, b"1")
        except BaseException:  # whatever a test raises
            os.write(marks, b"0")


def run_program(channel) -> None:
    """Runs the program, tells what it defines, then calls its functions for ever."""
    confine()
    names = {"__name__": "program"}
    exec(compile(receive(channel), "program.py", "exec"), names)
    defined = {name: value for name, value in names.items() if not name.startswith("__")}
    values = {}
    for name, value in defined.items():
        with contextlib.suppress(TypeError):
            values[name] = ast.literal_eval(literal(value))
    send(channel, [[name for name in defined if name not in values and callable(defined[name])], values])
    while True:
        name, given, named = receive(channel)
        try:
            answer = literal([names[name](*given, **named), None])
        except BaseException as error:  # whatever the program raises
            answer = literal([None, type(error).__name__])
        print(answer, file=channel[1], flush=True)


def call(channel, name: str, *given, **named):
    """What the program's function returns. If it raises an error that Python knows, this raises the same error."""
    send(channel, [name, list(given), named])
    value, error = receive(channel)
    if error is not None:
        kind = getattr(builtins, error, None)
        raise kind("in the program") if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(error)
    return value


def send(channel, value) -> None:
    print(literal(value), file=channel[1], flush=True)


def receive(channel):
    """The next value. `literal_eval` reads plain values and never runs anything."""
    return ast.literal_eval(channel[0].readline(OUTPUT))


def literal(value) -> str:
    """The value as a Python literal. Subclasses become their plain type. Raises TypeError for other types."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(map(literal, value))}}}" if value else "set()"
    if isinstance(value, tuple):
        return f"({''.join(f'{literal(item)}, ' for item in value)})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if value is None or isinstance(value, bool):
        return repr(value)
    for kind in (int, float, complex, str, bytes):
        if isinstance(value, kind):
            return ascii(kind(value)).replace("inf", "1e999") if kind in (float, complex) else ascii(kind(value))
    raise TypeError(f"a value of the type {type(value).__name__} is not passed on")


# ---- what the processes may not do ----------------------------------------------------------------------------------

# system calls that are refused, with their numbers on x86-64 and ARM64: other processes and their priorities, signals, network, programs,
# shared memory that stays, and what changes files without opening them. Threads are allowed; MEMORY limits their number.
REFUSED = """
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, setsid 112 157, setpgid 109 154, unshare 272 97, setns 308 268, ptrace 101 117,
process_vm_readv 310 270, process_vm_writev 311 271, kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138,
rt_tgsigqueueinfo 297 240, pidfd_open 434 434, pidfd_send_signal 424 424, socket 41 198, io_uring_setup 425 425, shmget 29 194,
shmat 30 196, shmctl 31 195, semget 64 190, semctl 66 191, msgget 68 186, msgctl 71 187, mq_open 240 180, mq_unlink 241 181,
add_key 248 217, request_key 249 218, keyctl 250 219, bpf 321 280, perf_event_open 298 241, setpriority 141 140, ioprio_set 251 30,
sched_setparam 142 118, sched_setscheduler 144 119, sched_setaffinity 203 122, sched_setattr 314 274, migrate_pages 256 238,
move_pages 279 239, kcmp 312 272, pidfd_getfd 438 438, process_madvise 440 440, process_mrelease 448 448,
userfaultfd 323 282, truncate 76 45, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, lchown 94 -, fchown 93 55,
fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
setxattrat 463 463, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, file_setattr 469 469
"""
# system calls that are refused by an argument: its place, whether the values that follow are the refused ones or the only allowed ones.
# prlimit64 is allowed for this process alone. F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN and SIOCSPGRP let the kernel send signals.
BY_ARGUMENT = """
prlimit64 302 261 0 allowed 0, fcntl 72 25 1 refused 8 10 15, ioctl 16 29 1 refused 35073 35074
"""
READABLE = ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix)


def confine() -> None:
    """Takes away this process's rights, for good. Does as much of it as the system offers."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.capset(ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0)), ctypes.create_string_buffer(24))  # if it is root's
        libc.prctl(38, 1, 0, 0, 0)  # no new privileges: Linux asks for this before the following two
        close_files(libc)
        refuse_calls(libc)
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def close_files(libc: ctypes.CDLL) -> None:
    """Landlock: from now on files can only be opened to read, and only below READABLE."""
    version = libc.syscall(444, None, 0, 1)  # landlock_create_ruleset; -1: this Linux does not have it
    if version < 1:
        return
    rights = 2 ** (13 + min(version - 1, 2) + (version > 4)) - 1  # all that the version knows
    rules = libc.syscall(444, ctypes.byref(ctypes.c_uint64(rights)), 8, 0)
    for place in filter(os.path.isdir, READABLE):
        handle = os.open(place, os.O_PATH)
        rule = struct.pack("=Qi", 0b1101, handle)  # execute, read files, read folders
        libc.syscall(445, rules, 1, ctypes.create_string_buffer(rule), 0)
        os.close(handle)
    libc.syscall(446, rules, 0)
    os.close(rules)


def refuse_calls(libc: ctypes.CDLL) -> None:
    """Seccomp: from now on the calls of REFUSED fail, and so does `clone`, except for threads."""
    machine = {"x86_64": (1, 0xC000003E, 56), "aarch64": (2, 0xC00000B7, 220)}.get(os.uname().machine)
    if machine is None:
        return
    column, architecture, clone = machine
    numbers = [int(entry.split()[column]) for entry in REFUSED.split(",") if entry.split()[column] != "-"]
    load, equal, at_least, has_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06  # of the filter language
    allow, refuse, kill = 0x7FFF0000, 0x00050000, 0x80000000  # refuse: plus the error number
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (end, 0, 0, refuse + errno.EPERM)]  # a second set of numbers, on x86-64
    program += [(equal, 0, 1, 435), (end, 0, 0, refuse + errno.ENOSYS)]  # clone3: the C library then uses clone
    program += [(equal, 0, 4, clone), (load, 0, 0, 16), (has_bit, 1, 0, 0x10000), (end, 0, 0, refuse + errno.EPERM), (end, 0, 0, allow)]
    for entry in BY_ARGUMENT.split(","):
        words = entry.split()
        values = [int(value) for value in words[5:]]
        inside, outside = (allow, refuse + errno.EPERM)[:: 1 if words[4] == "allowed" else -1]
        program += [(equal, 0, 2 * len(values) + 2, int(words[column])), (load, 0, 0, 16 + 8 * int(words[3]))]
        program += [line for value in values for line in ((equal, 0, 1, value), (end, 0, 0, inside))] + [(end, 0, 0, outside)]
    for number in numbers:
        program += [(equal, 0, 1, number), (end, 0, 0, refuse + errno.EPERM)]
    program += [(end, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    libc.prctl(22, 2, ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code))), 0, 0)


@functools.cache
def say_what_is_open() -> None:
    """Prints once what programs can do here although they should not. Finds out by trying."""
    probe = f"""
import os, socket

def refused(function, *given):
    try:
        function(*given)
    except OSError:
        return True

def network(): return refused(socket.socket)
def processes(): return refused(lambda: os.fork() or os._exit(0))
def files(): return refused(os.listdir, {os.path.expanduser("~")!r})
"""
    names = ["network", "processes", "files"]
    found = passed(probe, [f"assert {name}()" for name in names])
    if left := names[len(found):] + [name for name, closed in zip(names, found, strict=False) if not closed]:
        print(f"note: programs of the model can get at {', '.join(left)} on this machine: run it in a container", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
