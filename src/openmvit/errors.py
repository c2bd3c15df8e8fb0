"""The one exception for bad input: a cause and a fix, in one line."""


class UserError(ValueError):
    """What the user gave cannot be used; says why and what to do.

    Args:
        cause: what is wrong, with the offending value. No full stop.
        fix: what to do about it. No full stop.
    """

    def __init__(self, cause: str, fix: str = "") -> None:
        self.cause, self.fix = " ".join(cause.split()), " ".join(fix.split())
        super().__init__(f"{self.cause}. {self.fix}." if self.fix else f"{self.cause}.")
