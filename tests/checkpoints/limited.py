"""Commands of the command line in a process whose file sizes or memory end somewhere; test_checkpoint_files.py."""

import resource
from pathlib import Path


def file_size(words: list[str]) -> int:
    """After the first checkpoint no file may be larger than half of it."""
    from aeic_lightning.cli import main
    from callbacks.checkpoint import LastCheckpoint

    save = LastCheckpoint._save

    def limited(self, trainer, step):
        save(self, trainer, step)
        half = (self.folder / "last.ckpt").stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, -1))

    LastCheckpoint._save = limited
    return main(words)


def memory(words: list[str]) -> int:
    """The address space ends 600 MiB above what the program itself takes."""
    from aeic_lightning.cli import main

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 600 * 2**20, -1))
    return main(words)
