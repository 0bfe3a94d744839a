"""A graphics card that computes nothing, for tests without one: memory is counted and runs out, kernels are counted and not run.

    make .venv-nullgpu/installed
    .venv-nullgpu/bin/python tests/nullgpu/card.py --gib 24 COMMAND ...  # runs a command with such a card

stubs/ stands in for libcuda, libcudart, libcublas, libcublasLt and libnvidia-ml. Everything above them is real: pip's CUDA builds of torch,
bitsandbytes and vLLM. What is read back from the card is 0 (a single byte: 1). So this shows exceptions, devices and types that do not
match, memory, launches, waits and copies. It shows no numbers, no kernel times, and not the memory of a real driver (500 MiB are assumed).
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

STUBS = Path(__file__).parent / "stubs"
PACKAGES = Path(sysconfig.get_paths()["purelib"])
CUDA = PACKAGES / "nvidia" / "cu13"
LIBRARIES = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcuda.so.1", "libnvidia-ml.so.1")


def build(out: Path) -> None:
    """Compiles the stand-ins into the folder `out`. Functions of a library that have no stand-in of their own return 0."""
    out.mkdir(parents=True, exist_ok=True)
    compile_shared(out / "libnullgpu.so", STUBS / "core.c", "-lpthread")
    driver = (CUDA / "include" / "cuda.h").read_text()
    functions = set(re.findall(r"CUresult\s+CUDAAPI\s+(cu\w+)\s*\(", driver)) | set(
        re.findall(r"#\s*define\s+cu\w+\s+(cu[A-Z]\w+)\s*$", driver, re.MULTILINE))
    nvml = (PACKAGES / "pynvml.py").read_text()
    exported = {
        **{name: symbols(CUDA / "lib" / name) for name in LIBRARIES[:3]},
        "libcuda.so.1": {name for name in functions if "__CUDA_API" not in name},
        "libnvidia-ml.so.1": set(re.findall(r'_nvmlGetFunctionPointer\("(nvml\w+)"\)', nvml))}
    for name in LIBRARIES:
        build_library(out, name, exported[name])
    (out / "libcuda.so").unlink(missing_ok=True)
    (out / "libcuda.so").symlink_to("libcuda.so.1")


def build_library(out: Path, name: str, exported: set[str]) -> None:
    """One stand-in: our functions, and a function that returns 0 for every other name that the library exports."""
    source = STUBS / {"libnvidia-ml.so.1": "nvml.c"}.get(name, name[3:].partition(".")[0].lower() + ".c")
    own, rest, versions = out / f"{name}.o", out / f"{name}.rest.c", out / f"{name}.map"
    subprocess.run(["gcc", "-O1", "-w", "-fPIC", "-I", CUDA / "include", "-c", "-o", own, source], check=True)
    rest.write_text("".join(f"int {function}(void) {{ return 0; }}\n" for function in sorted(exported - symbols(own, "T"))))
    versions.write_text(f"{name} {{ global: *; }};\n")
    versioned = [f"-Wl,--version-script={versions}"] if name in LIBRARIES[:3] else []
    compile_shared(out / name, own, str(rest), "-fno-builtin", f"-Wl,-soname,{name}", *versioned, f"-L{out}", "-lnullgpu", "-ldl")


def compile_shared(target: Path, source: Path, *options: str) -> None:
    subprocess.run(["gcc", "-O1", "-w", "-fPIC", "-shared", "-o", target, source, *options], check=True)


def symbols(library: Path, kinds: str = "TWi") -> set[str]:
    """The functions that a library or an object file defines."""
    options = ["-D", "--defined-only"] if ".so" in library.name and library.suffix != ".o" else []
    lines = subprocess.run(["nm", *options, library], capture_output=True, text=True, check=True).stdout.splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines if line.split()[-2] in kinds}
    return {name for name in names if not name.startswith("_ZN")}


def environment(lib: Path, gib: float, capability: int = 80) -> dict[str, str]:
    """The environment of a process that sees a card of `gib` GiB and of this compute capability (75, 80, 86, 89 or 90).

    Every sampled token is the token 5, as 0 may end a completion.
    """
    return {**os.environ, "LD_LIBRARY_PATH": f"{lib}:{CUDA / 'lib'}", "TRITON_LIBCUDA_PATH": str(lib), "NULLGPU_GIB": str(gib),
            "LD_PRELOAD": ":".join(str(lib / name) for name in ("libnullgpu.so", *LIBRARIES)), "NULLGPU_CC": str(capability),
            "NULLGPU_TOKEN": "5", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="compile the stand-ins and end")
    parser.add_argument("--lib", type=Path, default=PACKAGES / "nullgpu", help="the folder of the stand-ins")
    parser.add_argument("--gib", type=float, default=24, help="memory of the card, in GiB")
    parser.add_argument("--capability", type=int, default=80, help="compute capability: 75, 80, 86, 89 or 90")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.lib.resolve())
        return
    command = [sys.executable if word == "python" else word for word in arguments.command]
    os.execvpe(command[0], command, environment(arguments.lib.resolve(), arguments.gib, arguments.capability))


if __name__ == "__main__":
    main()
