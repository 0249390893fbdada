import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tiny_system import TinySystem, photo, records
from torch.utils.data import DataLoader


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def val_loader():
    return DataLoader(records(), batch_size=1)


@pytest.fixture
def train_loader():
    crops = [{"image": photo(64, 64, top=64 * i, left=128), "name": str(i)} for i in range(4)]
    return DataLoader(crops, batch_size=2, shuffle=True)


@pytest.fixture
def system():
    seed_everything(3, verbose=False)
    return TinySystem()


@pytest.fixture
def trainer_of(tmp_path):
    """Trainer with the callbacks, a TensorBoard logger and the run folder tmp_path/run."""

    def build(*callbacks, **options):
        logger = TensorBoardLogger(tmp_path, name="", version="run")
        defaults = {
            "accelerator": "cpu",
            "logger": logger,
            "default_root_dir": tmp_path / "run",
            "max_epochs": 3,
            "check_val_every_n_epoch": 1,
            "enable_progress_bar": any("Progress" in type(c).__name__ for c in callbacks),
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
        }
        return Trainer(callbacks=list(callbacks), **(defaults | options))

    return build


@pytest.fixture
def run_folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def events(run_folder):
    """Reads the run's event files back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read():
        return EventAccumulator(str(run_folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()

    return read
