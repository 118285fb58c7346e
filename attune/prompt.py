"""Which prompt a conversation becomes: the model's own chat template, named by its hash.

For a request the template is applied once, by the server that samples; everybody else reads the recorded token ids and never renders
again, so sampler and trainer cannot disagree. `render` is for what was never sampled: demonstrations.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def prompt_version(model_folder: Path) -> str:
    """Return `template-` and the first 12 hex digits of the chat template's sha256; `template-none` if the model has none."""
    template = ""
    if (file := model_folder / "chat_template.jinja").is_file():
        template = file.read_text()
    elif (file := model_folder / "tokenizer_config.json").is_file():
        template = str(json.loads(file.read_text()).get("chat_template") or "")
    return "template-" + (hashlib.sha256(template.encode()).hexdigest()[:12] if template else "none")


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the token ids that the server would answer; `tokenizer` is the model's own, of `transformers`."""
    return tuple(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"])
