"""The base of every configuration model: frozen, and strict about names."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A piece of configuration that cannot change after it was checked and that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
