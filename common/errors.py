"""The error that the user sees as one line, without a stack trace."""
from __future__ import annotations


class UserError(Exception):
    """An error that the user can put right. Its text names the cause and the remedy. The console shows the text alone.

    Further arguments are further lines, such as a table.
    """

    def __str__(self) -> str:
        return "\n".join(self.args)

    @property
    def lines(self) -> list[str]:
        """The lines with which a script ends."""
        return [f"error: {self.args[0]}", *self.args[1:]]
