"""The error of this package."""


class UserError(ValueError):
    """Something that the user can mend. The message says what is wrong, where, and what is allowed or to be done."""
