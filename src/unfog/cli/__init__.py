"""The command line: `unfog generate`, `estimate`, `train`, `report`, `average`, `evaluate`, `plot`, `fit`, `verify`,
`claims`, `models`.

No mathematics and no rules of its own: each command fills in a request (`unfog.requests`) and hands it to
the library. Importing this package loads the standard library only, so that `unfog --help` answers at once.
Exit codes: 0 done, 1 `--like` made different pixels or a check of `verify` failed, 2 bad input (one line on stderr), 130 Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

LONGEST_LINE = 500  # characters of an error; a user's own input may stand inside it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; argv without the program's name (None = sys.argv)."""
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):  # not for callers that own this process
        # File names that are not UTF-8 pass through unchanged.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        from unfog.cli.app import run

        return run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except BrokenPipeError:  # the reader of our stdout (head, less) left: no error of ours
        # Python flushes stdout once more on its way out; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def complain(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    # A file name or a model's error may hold terminal control codes.
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    if len(line) > LONGEST_LINE:
        line = line[: LONGEST_LINE - 1] + "…"
    print(f"unfog: {line}", file=sys.stderr)
