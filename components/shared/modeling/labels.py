"""Labels of token rows; imports no torch, so that data cards can use it."""

IGNORE_INDEX = -100
"""Label of a token that is not trained (the default `ignore_index` of torch.nn.CrossEntropyLoss)."""
