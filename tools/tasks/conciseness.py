"""The `conciseness` task: the two training and eight test rows of the published experiment.

It has no validation rows; those here are written for Weft.
"""

from __future__ import annotations

from tools.tasks.splits import Row

TRAIN = (
    ("Solve: 3 + 5 =", "8"),
    ("If all birds can fly and penguins are birds, can penguins fly?", "No"),
)
VALID = (
    ("What colour is a clear sky at noon?", "Blue"),
    ("Calculate: 9 - 4 =", "5"),
    ("Name one day of the weekend:", "Sunday"),
    ("How many legs does a spider have?", "8"),
    ('Is the statement "All fish can walk" true or false?', "False"),
    ("What is the opposite of hot?", "Cold"),
    ("What is half of 50?", "25"),
    ("If Ann is older than Ben, is Ben older than Ann?", "No"),
)
TEST = (
    ("What is the capital of France?", "Paris"),
    ("Calculate: 12 \u00d7 7 =", "84"),
    ('Is the statement "All cats are mammals" true or false?', "True"),
    ("What comes next in the sequence: 2, 4, 6, 8, ?", "10"),
    ('Translate "Hello" to Spanish:', "Hola"),
    ("What is 15% of 200?", "30"),
    ("Name one primary color:", "Red"),
    ("How many days are in a week?", "7"),
)


def splits() -> dict[str, list[Row]]:
    """All three splits."""
    return {
        name: [{"prompt": prompt, "answer": answer} for prompt, answer in rows]
        for name, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST))
    }
