"""vLLM in a process of its own, with its own packages: `vllm_peer` starts this file there.

It takes lines of JSON and answers each with one. The first holds what `LLM` is made with, and the
folders of the adapters; every other one prompts, which are continued under every adapter, in one
call, and how many tokens to add to each. What vLLM itself prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Until there are no more lines."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import vllm.v1.worker.cpu_worker  # which it would import later: its memory is told from here
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers)

    answer(version=vllm.__version__)
    asked = json.loads(sys.stdin.readline())
    llm = LLM(**asked["settings"])
    adapters = [LoRARequest(path, n, path) for n, path in enumerate(asked["adapters"], start=1)]
    answer(built=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        sampling = SamplingParams(
            temperature=0.0, max_tokens=asked["new_tokens"], ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        outputs = llm.generate(
            prompts * len(adapters),
            sampling,
            lora_request=[adapter for adapter in adapters for _ in prompts],
            use_tqdm=False,
        )
        seconds = time.perf_counter() - start
        answer(seconds=seconds, rows=[list(output.outputs[0].token_ids) for output in outputs])


if __name__ == "__main__":
    main()
