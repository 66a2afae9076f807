"""Commands under the names that they once had: each says what it is called now, and runs that."""

__all__: list[str] = []
