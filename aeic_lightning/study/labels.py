"""Labels of runs. Imports nothing, so that a sweep starts at once."""

Label = int | float | str

OF_CONFIGS = (
    *("role", "encoder", "depth", "widths", "context", "h_a", "h_s", "g_s"),
    *("lambda", "target", "beta1", "beta2", "seed", "loss", "level"),
)
"""Labels that the config of a run says when it is done (`run_description.run_labels`), or the evaluation at a level."""


def agree(labels: dict, wanted: dict) -> bool:
    """Whether `labels` has all that is `wanted`, numbers and words compared as they are written."""
    return all(str(labels.get(label)) == str(value) for label, value in wanted.items())
