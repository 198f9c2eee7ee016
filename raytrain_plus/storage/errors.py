"""Errors of stores, and what a store means by the errors that its library raises."""

from collections.abc import Iterable


class StorageError(ValueError):
    """A location that cannot be used, or a store that does not do what it is asked for."""


class StoreError(StorageError):
    """A store did not give what it should within the deadline; the message says what it said."""


class ExistsError(StorageError):
    """What was to be created is there already."""


def code_of(error: BaseException) -> str:
    """Return what a store calls the error, if it is one of botocore's."""
    for one in (error, error.__cause__, error.__context__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def is_failed_precondition(error: BaseException) -> bool:
    """Say whether what was to be created was there already."""
    return code_of(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict")


def is_denied(error: BaseException) -> bool:
    """Say whether the store has refused for lack of rights."""
    return isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError"


def is_mistyped(error: BaseException) -> bool:
    """Say whether an option is of a type that the store's library cannot use."""
    return isinstance(error, TypeError | AttributeError)


def advice_on(error: BaseException, options: Iterable[str] = ()) -> str:
    """Return what a person can do about an error, as the end of its message.

    Args:
        error: what the store's library has raised.
        options: the names of the storage options that were given.
    """
    if is_mistyped(error) and (names := ", ".join(options)):
        return f". Check the types of the storage options {names}."
    if is_denied(error):
        return (
            ". Check the credentials and their rights, on every node: the environment, the "
            "store's own configuration files, or `storage_options`."
        )
    if isinstance(error, FileNotFoundError):
        return ". Check the URL: there is no such bucket, folder or object."
    return ". Check the network and the store."
