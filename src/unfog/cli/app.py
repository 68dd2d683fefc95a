"""The table of commands and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import errno

from cyclopts import App, CycloptsError

from unfog.cli import complain
from unfog.cli.average import average
from unfog.cli.claims import claims
from unfog.cli.control import control
from unfog.cli.edit import edit
from unfog.cli.estimate import estimate
from unfog.cli.evaluate import evaluate
from unfog.cli.fit import fit
from unfog.cli.forecast import forecast
from unfog.cli.generate import generate
from unfog.cli.models import models
from unfog.cli.novel import spelled_out
from unfog.cli.plot import app as plot
from unfog.cli.report import report
from unfog.cli.train import train
from unfog.cli.verify import verify
from unfog.errors import UserError


def _version() -> str:
    import unfog

    return unfog.__version__


DENIED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

app = App(
    name="unfog",
    help="""Train, sample and evaluate diffusion models on your own machine.

Try:
  unfog generate "a red apple" --style noto --seed 7
  unfog generate --like out/a-red-apple-noto-7.png
  unfog edit cat.png "a dog" --strength 0.5
  unfog estimate my-pictures/ --budget 30m
  unfog train my-pictures/ --out my-model --budget 30m
  unfog report my-model --open
  unfog verify my-model
  unfog evaluate my-model --against my-pictures/
  unfog claims --quick
""",
    version=_version,
    help_format="plaintext",  # markdown would load a parser that costs a quarter of the start-up
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
# Each command imports the library inside its function, so these imports cost a millisecond or two.
for command in (generate, edit, control, estimate, train, report, average, evaluate, fit, forecast, verify, claims, models):
    app.command(command)
app.command(plot)


def run(tokens: list[str]) -> int:
    """Run the command line's words and return the exit code."""
    try:
        code = app(spelled_out(tokens))
    except CycloptsError as error:
        complain(f"{error} (see `{' '.join(['unfog', *(error.command_chain or ())])} --help`)")
        return 2
    except UserError as error:
        complain(str(error))
        return 2
    except OSError as error:  # the machine's answer, not a fault of ours; any other still shows where it came from
        if error.errno not in DENIED:
            raise
        complain(f"{error.filename or 'the disk'}: {error.strerror}; make room or choose another place (training: then --resume)")
        return 2
    return code if isinstance(code, int) else 0
