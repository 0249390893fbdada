"""Labels of runs. Imports nothing, so that a sweep starts at once."""


def agree(labels: dict, wanted: dict) -> bool:
    """Whether `labels` has all that is `wanted`, numbers and words compared as they are written."""
    return all(str(labels.get(label)) == str(value) for label, value in wanted.items())
