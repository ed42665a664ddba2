"""The error of this package."""


class UserError(ValueError):
    """An error the user can fix. The message says what is wrong, where, and what is allowed or to be done."""
