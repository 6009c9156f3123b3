"""Errors that a user can act on. Commands print them as one line each."""


class UserError(Exception):
  """An error that whoever started the run can fix; each line stands alone."""

  exit_code = 2


class ConfigError(UserError):
  """A flag, or several flags together, ask for what cannot be done."""


class DataError(UserError):
  """A file or folder of the data set is missing, empty or unreadable."""


class WorkdirError(UserError):
  """The work directory holds another run, or one that cannot be continued."""


class OutputError(UserError):
  """Says that what is printed goes to a full disk, or to a program that no longer reads."""


class DivergedError(UserError):
  """The loss is no longer a finite number."""

  exit_code = 3


class LostProcessError(UserError):
  """Another process of the run ended before it."""

  exit_code = 4
