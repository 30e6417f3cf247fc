"""Generates answers with vLLM; run as a script in a process of its own.

The script imports nothing of this package. Its argument is a folder with `request.json`, which has `engine` (arguments
of `vllm.LLM`), `adapter` (folder) and `candidates`: by name the `prompts` as token ids, whether the adapter is used
(`tuned`), `sampling` (arguments of `vllm.SamplingParams`) and the `seed` of the first prompt. The script writes
`answers.json` when all prompts are answered: vLLM's `version`, and by candidate the `answers` as token ids.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def generate(request: dict[str, Any]) -> dict[str, object]:
    """Returns the content of `answers.json`."""
    import vllm
    from vllm.lora.request import LoRARequest

    engine = vllm.LLM(**request["engine"])
    answers = {}
    for name, candidate in request["candidates"].items():
        prompts = [vllm.TokensPrompt(prompt_token_ids=ids) for ids in candidate["prompts"]]
        # One seed per prompt: with a common seed, all prompts would use the same random numbers.
        sampling = [
            vllm.SamplingParams(**candidate["sampling"], seed=candidate["seed"] + i) for i in range(len(prompts))
        ]
        adapter = LoRARequest("tuned", 1, request["adapter"]) if candidate["tuned"] else None
        outputs = engine.generate(prompts, sampling, lora_request=adapter)
        answers[name] = [list(output.outputs[0].token_ids) for output in outputs]
        print(f"{len(prompts)} prompts answered ({name})", flush=True)
    return {"version": vllm.__version__, "answers": answers}


def main() -> int:
    """Processes the request; the last line printed is the error, if there is one."""
    folder = Path(sys.argv[1])
    try:
        answers = generate(json.loads((folder / "request.json").read_text(encoding="utf-8")))
        (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    os._exit(status)  # vLLM's exit handlers print warnings after the error
