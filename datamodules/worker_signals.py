"""Workers of a DataLoader, and signals to stop that reach all processes of a run at once."""

import os
import signal
import threading

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
