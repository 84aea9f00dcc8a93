"""What the hub refuses: each refusal is one error with one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_one_sentence(repo: str, revision: str, near: str) -> Iterator[None]:
    """Turn the client's errors into one sentence each.

    Their own text can hold request ids and several lines, so only the kind of the error is passed on.

    Args:
        near: which known names are like this one, as an insertion; may be empty.
    """
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        if error.response.status_code == 403:
            raise PermissionError(
                f"{repo} is gated and your account has no access: accept its terms at {page}, signed in as the owner "
                "of your token, give the token read access, and load again"
            ) from None
        raise PermissionError(
            f"{repo} is gated: accept its terms at {page}, make a token at https://huggingface.co/settings/tokens, run "
            "`hf auth login` (or set HF_TOKEN) and load again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"no model {repo} on the hub{near}, or a private one, which needs `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} has no revision {revision!r}: see {page}/commits/main") from None
    except errors.LocalEntryNotFoundError as error:  # the client looked into its cache after an error
        cause = error.__cause__
        raise (_refused(repo, cause) if isinstance(cause, errors.HfHubHTTPError) else _unreachable(repo)) from None
    except errors.EntryNotFoundError:
        raise FileNotFoundError(f"no config.json in {repo} on the hub: no transformers checkpoint") from None
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from None
    except (errors.OfflineModeIsEnabled, errors.HTTPError):  # the latter where no answer came
        raise _unreachable(repo) from None


def _refused(repo: str, error) -> OSError:
    status = error.response.status_code
    if status == 401:
        return PermissionError(
            "the hub refused the access token: make a new one at https://huggingface.co/settings/tokens and run "
            "`hf auth login`"
        )
    if status == 403:
        return PermissionError(
            f"your access token may not read {repo}: accept its terms at https://huggingface.co/{repo} and give the "
            "token read access"
        )
    if status == 429:
        return ConnectionError(
            f"the hub answered 429 (too many requests) for {repo}: wait five minutes and load again, which goes on "
            "where this stopped; `hf auth login` raises the limit"
        )
    return ConnectionError(
        f"the hub answered {status} for {repo}: try again later; what has arrived stays and is used again"
    )


def _unreachable(repo: str) -> ConnectionError:
    return ConnectionError(
        f"{repo} is not on this machine and the hub cannot be reached: connect to the network (and unset "
        "HF_HUB_OFFLINE), or use load('tiny-mistral'), which needs none"
    )
