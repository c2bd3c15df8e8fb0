"""A terminal for tests: a command on a pseudo-terminal of some width, and what its screen shows afterwards."""

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Sequence


def on_terminal(
    argv: Sequence[str], columns: int, seen: Callable[[int, bytes], None] = lambda fd, data: None
) -> tuple[int, str]:
    """Exit code and raw output of `openmvit ARGV`.

    Args:
        seen: called with the terminal and all output so far; what it writes there is typed.
    """
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "openmvit", *argv])
    output = b""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not data:
            break
        output += data
        seen(fd, output)
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode()


def screen_of(output: str, columns: int) -> list[str]:
    """The rows that the terminal shows; a row that was broken for want of width ends with a backslash."""
    rows, row, column = [""], 0, 0
    for sign in output:
        if sign == "\n":
            row += 1
        elif sign == "\r":
            column = 0
        else:
            assert sign.isprintable(), repr(sign)
            if column == columns:
                rows[row] += "\\"
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row][:column].ljust(column) + sign + rows[row][column + 1 :]
            column += 1
        rows += [""] * (row + 1 - len(rows))
    return [text.rstrip() for text in rows]


def shown(output: str) -> list[str]:
    """Everything that stood in a row at some time."""
    return [text.rstrip() for line in output.split("\n") for text in line.split("\r")]
