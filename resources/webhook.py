"""A message to a webhook, as JSON that Slack and what speaks like it take.

The address of a webhook is its password. It stands in no log, error or run: messages name its host alone.
"""

from urllib.parse import urlsplit

TIMEOUT = 5.0  # seconds to connect, and to wait for an answer
TRIES = 3
LONGEST = 3000  # characters: Slack cuts a text off at 4,000


class WebhookError(RuntimeError):
    """A webhook did not take a message; the text names its host and no more of it."""


def post(url: str, text: str) -> None:
    """Send a text, in Slack's mark-up; see :func:`plain` for what others wrote.

    Args:
        url: the address of the webhook.
        text: cut after 3,000 characters.

    Raises:
        WebhookError: it was not accepted after a few tries.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    host = urlsplit(url).hostname
    retry = Retry(
        TRIES - 1, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None,
        respect_retry_after_header=False, raise_on_status=False, redirect=0,
    )  # fmt: skip
    with requests.Session() as session:
        session.mount("https://", HTTPAdapter(max_retries=retry))
        session.mount("http://", HTTPAdapter(max_retries=retry))
        try:
            answer = session.post(
                url, json={"text": text[:LONGEST]}, timeout=TIMEOUT, allow_redirects=False, stream=True
            )
            answer.close()
        except (requests.RequestException, OSError, ValueError) as error:
            # The text of the error, and whatever caused it, names the whole address.
            raise WebhookError(f"the webhook at {host} did not answer: {type(error).__name__}") from None
    if not answer.ok or answer.is_redirect:
        raise WebhookError(f"the webhook at {host} answered {answer.status_code}")


def plain(text: str) -> str:
    """Text from others, escaped: nothing in it is read as mark-up, a link or a mention."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
