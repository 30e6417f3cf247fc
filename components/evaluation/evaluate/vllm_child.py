"""Answers prompts with vLLM, in a process of its own.

Started by file path with the folder of its request, it imports nothing of this package. `request.json` there holds
`engine` (arguments of `vllm.LLM`), `adapter` (its folder) and `contenders`: by name the `prompts` as token ids, whether
the answers are `tuned`, the `sampling` (arguments of `vllm.SamplingParams`) and the `seed` of the first prompt.
`answers.json`, written when all are answered, holds vLLM's `version` and by contender the `answers` as token ids.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answers that a request asks for."""
    import vllm
    from vllm.lora.request import LoRARequest

    engine = vllm.LLM(**request["engine"])
    answers = {}
    for name, asked in request["contenders"].items():
        prompts = [vllm.TokensPrompt(prompt_token_ids=ids) for ids in asked["prompts"]]
        # A seed each: with the same one, all prompts would be answered by the same draws.
        drawn = [vllm.SamplingParams(**asked["sampling"], seed=asked["seed"] + i) for i in range(len(prompts))]
        adapter = LoRARequest("tuned", 1, request["adapter"]) if asked["tuned"] else None
        outputs = engine.generate(prompts, drawn, lora_request=adapter)
        answers[name] = [list(output.outputs[0].token_ids) for output in outputs]
        print(f"{len(prompts)} prompts answered ({name})", flush=True)
    return {"version": vllm.__version__, "answers": answers}


def main() -> int:
    """Answers the request in the folder that the command line names; the last line printed says what went wrong."""
    folder = Path(sys.argv[1])
    try:
        answers = answer(json.loads((folder / "request.json").read_text(encoding="utf-8")))
        (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    os._exit(status)  # the engine's own way out prints warnings behind the reason
