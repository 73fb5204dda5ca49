"""Ready-made ways to load a training set and to train on it: `datasets`, TRL, Axolotl, LLaMA-Factory.

Each is a whole file for its program, made for the format and the files that were written. What a program cannot read is
said, with a few lines of Python that turn the files into ones that it reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

Files = Mapping[str, Sequence[str]]
"""Split -> names of files."""

_CHAT = {
    "alpaca": """
def chat(row):
    turns = [{"role": "system", "content": row["system"]}] if row["system"] else []
    for asked, answered in row["history"]:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    prompt = [*turns, {"role": "user", "content": row["instruction"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}
""",
    "raw": """
def chat(row):
    turns = [{"role": "system", "content": row["system"]}] if row["system"] else []
    prompt = [*turns, {"role": "user", "content": row["prompt"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["answer"]}]}
""",
    "raw, conversations": """
def chat(row):
    turns = [{"role": "system", "content": row["system"]}] if row["system"] else []
    prompt = row["messages"] or [*turns, {"role": "user", "content": row["prompt"]}]
    prompt = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["answer"]}]}
""",
}
"""Format -> Python that makes a row a prompt and a completion."""


@dataclass(frozen=True, slots=True)
class Snippets:
    """Snippets for one training set.

    Attributes
    ----------
    name : of the selection
    model : that is trained
    conversations : whether the corpus had a column `messages`, which `raw` keeps
    """

    name: str
    format: str
    files: Files
    model: str
    conversations: bool = False

    def load(self) -> str:
        """Return Python that loads all splits."""
        return f"from datasets import load_dataset\n\n{self._loaded()}\n"

    def trl(self) -> str:
        """Return Python that trains with TRL."""
        validation = '\n    eval_dataset=data["validation"],' if "validation" in self.files else ""
        mapped = '\ndata = data.map(chat, remove_columns=data["train"].column_names)' if self._chat() else ""
        return f"""from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

{self._chat()}
{self._loaded()}{mapped}
trainer = SFTTrainer(
    model={json.dumps(self.model)},
    args=SFTConfig(output_dir="run"),
    train_dataset=data["train"],{validation}
)
trainer.train()
""".replace("\n\n\n\n", "\n\n\n")

    def messages(self) -> str | None:
        """Return Python that writes files with `messages`, for what does not read this format; None if not needed."""
        if self.format in ("messages", "alpaca"):
            return None
        chat = "\n    row = chat(row)" if self._chat() else ""
        return f"""from datasets import load_dataset

{self._chat()}
def messages(row):{chat}
    return {{"messages": row["prompt"] + row["completion"]}}


{self._loaded()}
for split, rows in data.items():
    rows.map(messages, remove_columns=rows.column_names).to_parquet(f"messages-{{split}}.parquet")
""".replace("\n\n\n\n", "\n\n\n")

    def axolotl(self) -> str:
        """Return a configuration of Axolotl."""
        splits = {
            split: {
                **({"path": names[0]} if len(names) == 1 else {"path": ".", "data_files": list(names)}),
                "ds_type": "parquet",
                "split": "train",
                **_axolotl_kind(self.format),
            }
            for split, names in self._readable().items()
        }
        settings = {
            "base_model": self.model,
            "datasets": [splits["train"]],
            **({"test_datasets": [splits["validation"]]} if "validation" in splits else {"val_set_size": 0}),
            "output_dir": "run",
            "sequence_len": 4096,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "num_epochs": 1,
            "learning_rate": 0.00001,
            "optimizer": "adamw_torch",
            "lr_scheduler": "cosine",
        }
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

    def llama_factory_data(self) -> str:
        """Return `dataset_info.json` of LLaMA-Factory: an entry for each file."""
        described: dict[str, object] = {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
        if self.format == "alpaca":
            columns = {"prompt": "instruction", "query": "input", "response": "output"}
            described = {"columns": {**columns, "system": "system", "history": "history"}}
        entries = {
            entry: {"file_name": name, **described}
            for split, names in self._readable().items()
            for entry, name in zip(self._entries(split, len(names)), names, strict=True)
        }
        return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"

    def llama_factory(self) -> str:
        """Return a training configuration of LLaMA-Factory; `template` is the user's to choose."""
        files = self._readable()
        settings: dict[str, object] = {
            "model_name_or_path": self.model,
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset_dir": ".",
            "dataset": ",".join(self._entries("train", len(files["train"]))),
        }
        if "validation" in files:
            settings["eval_dataset"] = ",".join(self._entries("validation", len(files["validation"])))
        settings |= {
            "template": "default",
            "cutoff_len": 4096,
            "output_dir": "run",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "learning_rate": 0.00001,
            "num_train_epochs": 1,
        }
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

    def _entries(self, split: str, n: int) -> list[str]:
        name = f"{self.name}_{split}"
        return [name] if n == 1 else [f"{name}_{number}" for number in range(n)]

    def _readable(self) -> Files:
        """Return the files that Axolotl and LLaMA-Factory read."""
        return self.files if self.messages() is None else {split: [f"messages-{split}.parquet"] for split in self.files}

    def _chat(self) -> str:
        return _CHAT.get("raw, conversations" if self.format == "raw" and self.conversations else self.format, "")

    def _loaded(self) -> str:
        files = {split: names[0] if len(names) == 1 else list(names) for split, names in self.files.items()}
        return f'data = load_dataset("parquet", data_files={json.dumps(files)})'


def _axolotl_kind(format: str) -> dict[str, object]:
    if format == "alpaca":
        return {"type": "alpaca"}
    return {
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
