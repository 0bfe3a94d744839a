"""The one exception that is shown to the user without a stack trace."""
from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: the text names the cause and the remedy, and is shown without a stack trace."""
