"""Signed values that a browser may hold: a feedback token that rates one interaction only, and the page's session.

itsdangerous signs them with time stamps; a token says nothing that its holder may not know.
"""

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from attune.errors import RequestError

SESSION_LIFETIME_S = 30 * 24 * 3600


class Tokens:
    """Makes and checks both kinds of token."""

    def __init__(self, secret: str, lifetime_s: float) -> None:
        self._feedback = URLSafeTimedSerializer(secret, salt="feedback")
        self._session = URLSafeTimedSerializer(secret, salt="session")
        self._lifetime_s = lifetime_s

    def for_interaction(self, interaction_id: str, policy_version: int, user: str | None) -> str:
        """Return a token that allows feedback on this interaction, as this user (a pseudonym), until it expires."""
        return str(self._feedback.dumps([interaction_id, policy_version, user]))

    def check(self, token: str, interaction_id: str) -> str | None:
        """Return the user pseudonym that a token was made for; raises a 401 if it is forged, expired or of another interaction."""
        try:
            named, _, user = self._feedback.loads(token, max_age=int(self._lifetime_s))
        except SignatureExpired as error:
            raise RequestError("The feedback token has expired.", status=401, param="token", code="token_expired") from error
        except (BadSignature, ValueError, TypeError) as error:
            raise RequestError("The feedback token is not valid.", status=401, param="token", code="invalid_token") from error
        if named != interaction_id:
            raise RequestError("The feedback token belongs to another interaction.", status=401, param="token", code="invalid_token")
        return str(user) if user else None

    def new_session(self, name: str) -> str:
        """Return a session cookie's value for one browser, under a name of its own."""
        return str(self._session.dumps(name))

    def session(self, value: str) -> str | None:
        """Return the name in a session cookie, or None if it is not one of ours or too old."""
        try:
            return str(self._session.loads(value, max_age=SESSION_LIFETIME_S))
        except BadSignature:
            return None
