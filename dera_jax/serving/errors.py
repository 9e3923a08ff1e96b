"""What a request is answered where it cannot be served, in the form that OpenAI's clients read."""


class ApiError(Exception):
    """A request that is refused.

    Args:
      message: one sentence for the client.
      status: of HTTP.
      param: the field that is wrong.
      retry_after: seconds after which it is worth another try.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after = retry_after

    def body(self) -> dict:
        """Returns the JSON of the answer."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""`type` of an error, by its status."""
