"""lm-eval's local-chat-completions on a JSONL file: lm_eval_chat.py URL ITEMS COUNT CONCURRENCY.

Prints samples per second of the whole simple_evaluate call, imports excluded, and of its asking
alone (generate_until).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.openai_completions import LocalChatCompletion
from lm_eval.tasks import TaskManager

TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}} Answer with the number."
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 64, temperature: 0.0, do_sample: false}}
filter_list:
  - name: number
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "([0-9]+)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


class Timed(LocalChatCompletion):  # type: ignore[misc]
    """The same, with a clock around the asking."""

    seconds = 0.0

    def generate_until(self, *arguments: Any, **options: Any) -> Any:
        """Ask everything."""
        began = time.perf_counter()
        answers = super().generate_until(*arguments, **options)
        self.seconds += time.perf_counter() - began
        return answers


def main(url: str, items: str, count: int, concurrency: int) -> None:
    """Evaluate once."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sums.yaml").write_text(TASK.format(items=items))
        began = time.perf_counter()
        model = Timed(
            model="fixed",
            base_url=f"{url}/v1/chat/completions",
            num_concurrent=concurrency,
            tokenized_requests=False,
        )
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=["sums"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            apply_chat_template=True,
            limit=count,
        )
        seconds = time.perf_counter() - began
    asked = results["n-samples"]["sums"]["effective"]
    if asked != count:
        sys.exit(f"asked {asked} samples instead of {count}")
    print(count / seconds, count / model.seconds)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
