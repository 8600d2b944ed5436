ARGUMENTS = [
    "generate",
    "adapter",
    "--base=model",
    "--prompts=prompts.jsonl",
    "--temp=0.7",
    "--top-p=0.95",
    "--max-tokens=24",
    "--seed=5",
    "--record=out",
]
