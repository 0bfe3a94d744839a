"""The rows of completions.jsonl. A few rows also hold their completion token by token, for report.html."""
from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.records import Batch
from common.rollout.text import token_offsets
from common.verify.answers import MAX_ANSWER_LENGTH

SHOWN = 16  # completions of an evaluated step that are kept token by token


def completion_rows(step: int, batch: Batch, rewards: Tensor, advantages: Tensor, more: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """One row for each completion. rewards, advantages (B,); `more`: further fields, one value for each row.

    A reference answer for a custom reward may be a long text. The rows have its beginning.
    """
    return [
        {"step": step, "problem": p.id, "prompt": p.prompt, "completion": c.text, "answer": p.answer[:MAX_ANSWER_LENGTH],
         "reward": r, "advantage": a, "finish_reason": c.finish_reason, "tokens": len(c.ids),
         **{name: values[i] for name, values in more.items()}}
        for i, (p, c, r, a) in enumerate(zip(batch.problems, batch.completions, rewards.tolist(), advantages.tolist(), strict=True))]


def add_tokens(rows: list[dict[str, Any]], batch: Batch, tokenizer: PreTrainedTokenizerBase, advantages: Tensor, values: Tensor | None,
               ) -> None:
    """Adds to SHOWN of the rows where the text of each token begins, the token's advantage, and the value before the token.

    advantages (B,) or (B, T), values (B, T). Problems whose rewards differ most come first, because equal rewards often give no
    advantage. At most half of the rows that are shown belong to one problem: its best and its worst completions.
    """
    groups: dict[int, list[int]] = {}
    for i, group in enumerate(batch.group_ids.tolist()):
        groups.setdefault(group, []).append(i)
    rewards = [row["reward"] for row in rows]
    order = sorted(groups.values(), key=lambda own: min(rewards[i] for i in own) - max(rewards[i] for i in own))
    for own in order:
        own.sort(key=lambda i: rewards[i])
        if len(own) > SHOWN // 2:
            del own[SHOWN // 4:-SHOWN // 4]
    for i in [i for own in order for i in own][:SHOWN]:
        ids = batch.completions[i].ids
        per_token = {"token_advantages": advantages[i].expand(len(ids)) if advantages.ndim == 1 else advantages[i, :len(ids)]}
        if values is not None:
            per_token["token_values"] = values[i, :len(ids)]
        rows[i] |= {"offsets": token_offsets(tokenizer, ids),
                    **{name: [float(f"{x:.3g}") for x in own.tolist()] for name, own in per_token.items()}}
