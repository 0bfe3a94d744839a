"""The model card: which model was trained, on which data, with which command, and its results."""
from __future__ import annotations

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from common.config import CommonConfig
from common.flags import CHAT_TEXT
from common.registered import MADE, REGISTERED
from common.run.folder import EVALUATIONS, evaluation_names
from common.run.saved_config import resolve

# flags that have no influence on the model, and names of machines
LOCAL = ("output_dir", "config", "resume_from_checkpoint", "report_to", "vllm_server_base_url", "vllm_server_timeout")


def model_card(config: CommonConfig, script: Path, record: dict[str, Any], evaluations: list[dict[str, Any]], step: int) -> str:
    """README.md of a run folder and of its checkpoints, in the hub's format.

    `record`: the content of config.json. `evaluations`: the rows of metrics.jsonl that have `eval/*`, oldest first. The front matter
    lists only models and data sets that are on the hub. Of a folder of this machine the card has the last name alone.
    """
    local = {name for name in (config.model, config.dataset) if folderless(name) != name or Path(name).exists()}
    base, data = folderless(config.model), folderless(config.dataset)
    tiny = config.model == "tiny"
    on_hub = config.dataset not in local and data.partition(":")[0] not in MADE
    head = ModelCardData(base_model=None if tiny or config.model in local else base,
                         datasets=(REGISTERED[data].path if data in REGISTERED else data) if on_hub else None,
                         library_name="peft", pipeline_tag="text-generation",
                         tags=["lora", "reinforcement-learning", "reasoning", "vinery", script.stem])
    about = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem).split("\n\n")
    use = f"""```
python eval.py --dataset {shlex.quote(data)} --adapter path/of/this/folder
```""" if tiny else f"""```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}")
model.load_adapter("path/of/this/folder")  # needs peft
```"""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    return f"""---
{head.to_yaml()}
---

# {base}, LoRA, {script.stem} on {data.partition(':')[0]}

{about[0].strip()} This is the adapter after {step} steps of `{script.name}` of Vinery.

- **Base**: `{base}`{', the model that ships with Vinery' if tiny else ''}
- **Data**: `{data}`
- **Adapter**: LoRA, r {config.lora_r}, alpha {config.lora_alpha}

## Results

{results(config, evaluations)}

## Training

```
{command(config, script)}
```

{' '.join(' '.join(about[1:2]).split())}

Seed {config.seed}; {versions}; {record['hardware']['gpu'] or 'CPU'}.

## Use

{use}
"""


def results(config: CommonConfig, evaluations: list[dict[str, Any]]) -> str:
    """The first and the last evaluation as a table, and a line that says what the numbers are."""
    if not evaluations:
        return "Not evaluated during training."
    sampled, greedy = evaluation_names(evaluations[-1]) or EVALUATIONS[0]
    score = sampled.removeprefix("eval/")
    meaning = f"; both are means of the reward function `{Path(config.reward).name}`" if config.reward else ""
    rows = [f"| {row['step']} | {row[sampled]:.3f} | {row[greedy]:.3f} |" for row in evaluations[:1] + evaluations[1:][-1:]]
    return (f"On {config.eval_problems} held-out problems at most; {score} from one sample each at temperature {config.temperature:g}"
            f"{meaning}:\n\n" + "\n".join([f"| step | {score} | greedy |", "|---|---|---|", *rows]))


def command(config: CommonConfig, script: Path) -> str:
    """The command line that gives this config: every flag that is not at its default, derived values apart.

    Folders appear by their last name.
    """
    defaults = resolve(type(config), {}, {"model": config.model, "dataset": config.dataset})
    words, flags = [], config.flags()
    for spec in fields(config):
        value = flags[spec.name]
        if spec.name in LOCAL or value in (None, []) or (value == getattr(defaults, spec.name) and spec.name not in ("model", "dataset")):
            continue
        if spec.name == "system_prompt":  # a text may be long, have lines, and be no path
            words.append(f"--system_prompt {shlex.quote(folderless(value, text=True))}")
        elif isinstance(value, bool):
            words.append(f"--{spec.name}" if value else f"--no_{spec.name}")
        else:
            values = [_word(str(one), spec.name == "stop") for one in (value if isinstance(value, list) else [value])]
            words.append(" ".join([f"--{spec.name}", *values]))
    return " \\\n    ".join([f"python {script.name}", *words])


def _word(value: str, text: bool) -> str:
    """The value quoted for a shell, on one line."""
    return shlex.quote(folderless(value, text).replace("\n", "\\n"))


def folderless(value: str, text: bool = False) -> str:
    """The last name of a path, also of a file:function. Others, such as the id of a model on the hub, stay as they are.

    text: the value may be a text, and is taken for a path only if there is such a file.
    """
    if value.startswith(CHAT_TEXT):
        return CHAT_TEXT + folderless(value.removeprefix(CHAT_TEXT), text=True)
    path = Path(re.sub(r"(\.py):\w+$", r"\1", value))
    try:
        local = path.is_file() if text else path.is_absolute() or value.startswith(("~", "./", "../")) or path.exists()
    except OSError:  # too long for a path
        local = False
    return Path(value).name if local else value
