"""Errors of stores, and the meaning of the errors that their libraries raise."""

from collections.abc import Iterable

from raytrain_plus.redaction import redact


class StorageError(ValueError):
    """A location that cannot be used, or a store that fails; the message shows no password."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class StoreError(StorageError):
    """A request to a store did not succeed within the deadline; the message quotes the store."""


class ExistsError(StorageError):
    """An object that should be created exists already."""


def code_of(error: BaseException) -> str:
    """Return the code that a store gave to an error of botocore; empty for other errors."""
    for one in (error, error.__cause__, error.__context__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def is_failed_precondition(error: BaseException) -> bool:
    """Say whether an object was not created because it exists already."""
    return code_of(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict")


def is_denied(error: BaseException) -> bool:
    """Say whether the store denied access."""
    return isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError"


def is_mistyped(error: BaseException) -> bool:
    """Say whether an option has a type that the store's library cannot use."""
    return isinstance(error, TypeError | AttributeError)


def advice_on(error: BaseException, options: Iterable[str] = ()) -> str:
    """Return what a user can do about an error, as the end of its message.

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
