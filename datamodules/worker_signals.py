"""Workers of a DataLoader: signals to stop that reach all processes of a run, and whether workers can start at all."""

import os
import signal
import socket
import tempfile
import threading

from aeic_lightning.errors import UserError

STOPPING = {signal.SIGINT, signal.SIGTERM}


def leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in a worker, unless its own main process sends them. A `worker_init_fn`.

    A terminal and SLURM send them to every process of the run. The main process then finishes its step and saves, for
    which it needs its workers; in the end it stops them itself. Where it is killed, they notice and end.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS and Windows cannot tell who has sent a signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    threading.Thread(target=_wait_for_the_main_process, daemon=True, name="signals").start()


def _wait_for_the_main_process() -> None:
    while True:
        if signal.sigwaitinfo(STOPPING).si_pid == os.getppid():
            os.kill(os.getpid(), signal.SIGKILL)


def check_that_workers_can_start() -> None:
    """Raise UserError where workers could not hand over a batch: by a socket in the folder for temporary files.

    A socket's path has about a hundred bytes at most, and some file systems hold none. The worker's error would be its
    own: the main process would wait for its batch for ever.
    """
    if not hasattr(socket, "AF_UNIX"):
        return
    try:
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder, socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.join(folder, "listener-xxxxxxxx"))  # as Python's multiprocessing names it
    except OSError as error:
        raise UserError(
            f"data.num_workers: workers need sockets in the folder for temporary files, and {tempfile.gettempdir()} "
            f"takes none ({error}); set TMPDIR to another with a shorter path, such as /tmp, or num_workers to 0"
        ) from error
