"""The error that the user sees as one line, without a stack trace."""
from __future__ import annotations


class UserError(Exception):
    """An error that the user can put right. Its text names the cause and the remedy. The console shows the text alone."""
