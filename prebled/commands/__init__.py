"""One module per verb: `configure(parser)` names its arguments, `run(args)` does it and gives the exit code.

They raise `BadUsage` for what was asked wrongly and `PrebledError` for what failed; `prebled.cli` says so.
"""


class BadUsage(Exception):
    """What was asked for makes no sense; the message names the value."""
