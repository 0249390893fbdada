"""Training for a few steps."""


def train(trainer, system, data, steps: int, tmp_path, name: str, **kwargs) -> str:
    """Train without validation; the path of the checkpoint."""
    one = trainer(steps, limit_val_batches=0, **kwargs)
    one.fit(system, data)
    path = tmp_path / f"{name}.ckpt"
    one.save_checkpoint(path)
    return str(path)
