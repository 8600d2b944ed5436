"""Answers questions about tables, many at once, greedily."""

from parts import answers, load, read

ROWS = 6
BATCH = 3
TOKENS = 16
SPARE = 0

tokenizer, model = load("model", "adapter")
rows = read("rows.jsonl")[:ROWS]
said = {}
for start in range(0, ROWS, BATCH):
    group = rows[start : start + BATCH]
    for row, each in zip(group, answers(model, tokenizer, group, TOKENS, SPARE), strict=True):
        said[row["question"]] = each
for question in sorted(said):
    text, score = said[question]
    print(f"{score:.5f} {text!r}")
