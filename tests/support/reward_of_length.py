"""A reward of one's own: how near a completion's length is to that of a word."""


def reward(row: dict, completion: str) -> float:
    return -abs(len(completion) - 7)
