"""Whether two run folders hold the same run, and whether a folder was touched."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMES = ("step_time", "time/", "memory/")  # of metrics.jsonl: no two runs share them


def content(path: Path) -> Any:
    """What a file must share with the same file of another run."""
    if not path.is_file() or path.name == "report.html":  # it shows times
        return path.is_file()
    if path.name == "metrics.jsonl":
        rows = map(json.loads, path.read_text().splitlines())
        return [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows]
    if path.name in ("config.json", ".config.json"):
        record = json.loads(path.read_text())
        record["flags"].pop("resume_from_checkpoint", None)  # a path, once the run was resumed
        return record
    if path.name == "rows.json":  # sizes and hashes of the files that grow; metrics.jsonl has times
        return json.loads(path.read_text())["completions.jsonl"]
    if path.name == "trainer_state.pt":
        import torch  # takes seconds

        return plain(torch.load(path, weights_only=True))
    return sorted(json.loads(path.read_text())) if path.name == "manifest.json" else path.read_bytes()


def plain(value: Any) -> Any:
    """A state with tensors as bytes, so that == compares all of it."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return (str(value.dtype), tuple(value.shape), value.numpy().tobytes()) if hasattr(value, "numpy") else value


def differences(folder: Path, other: Path) -> str:
    """Files that two runs do not share."""
    names = sorted({str(path.relative_to(root)) for root in (folder, other) for path in root.rglob("*")})
    return ", ".join(name for name in names if not (folder / name).exists() or not (other / name).exists()
                     or content(folder / name) != content(other / name))


def snapshot(folder: Path) -> dict[str, Any]:
    """All files with their bytes and times, and all folders."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
            for path in folder.rglob("*")}


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Names of what differs between two snapshots."""
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)))
