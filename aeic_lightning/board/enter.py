"""Run as a program inside new namespaces: makes all but one folder read-only, hides paths, then becomes a command.

    python -I enter.py SCRATCH HIDDEN... -- COMMAND...

A file that is hidden is empty, and so is a folder. The command is in a user namespace of its own, so that it cannot
undo this. Needs Linux 5.12 and util-linux; a failure ends with exit code 125 before the command starts.
"""

import ctypes
import os
import subprocess
import sys

AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_SETATTR = -100, 0x8000, 1, 442


def main(scratch: str, *words: str) -> None:
    """Never returns."""
    hidden, command = words[: words.index("--")], words[words.index("--") + 1 :]
    mount("--make-rprivate", "/")
    mount("--bind", scratch, scratch)
    set_read_only("/", True)
    set_read_only(scratch, False)
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm")
    mount("-t", "tmpfs", "-o", "size=4k,ro", "tmpfs", "/run")  # sockets of services
    for path in hidden:
        if os.path.isdir(path):
            mount("-t", "tmpfs", "-o", "size=4k,ro", "tmpfs", path)
        elif os.path.exists(path):
            mount("--bind", "/dev/null", path)
    os.chdir(scratch)  # what was the folder before is on the mount below
    os.execvp("unshare", ["unshare", "--user", "--", *command])


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def set_read_only(path: str, on: bool) -> None:
    """Of everything mounted at and below `path`."""
    setting = MOUNT_ATTR_RDONLY
    attributes = (ctypes.c_uint64 * 4)(setting if on else 0, 0 if on else setting, 0, 0)  # set, clear, -, -
    libc = ctypes.CDLL(None, use_errno=True)
    flags = AT_RECURSIVE if on else 0
    if libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), ctypes.sizeof(attributes)):
        raise OSError(ctypes.get_errno(), f"mount_setattr {path}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"isolation failed: {error}", file=sys.stderr)
        sys.exit(125)
